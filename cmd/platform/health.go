package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/internal/tlsconf"
)

// largestAnswer is more than any health answer needs, in bytes.
const largestAnswer = 1 << 20

// probe is one address that is asked for its health, and what it said.
type probe struct {
	name, addr string
	body       []byte
	err        error // nil if it is ok
}

// answer is the part of a health answer that this command reads.
type answer struct {
	Status  string `json:"status"`
	Service string `json:"service"`
	Checks  map[string]struct {
		Status string `json:"status"`
		Error  string `json:"error"`
	} `json:"checks"`
}

// health asks each address for its health and prints one line for each. It returns an error unless all are ok.
func health(ctx context.Context, settings config.Health, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, settings.Timeout)
	defer cancel()
	probes := targets(settings)
	client, scheme, err := healthClient(settings.TLSClient)
	if err != nil {
		return err
	}
	var asked sync.WaitGroup
	for _, p := range probes {
		asked.Go(func() { p.ask(ctx, client, scheme) })
	}
	asked.Wait()

	var failed []string
	for _, p := range probes {
		if p.err != nil {
			failed = append(failed, p.name)
		}
		if err := p.print(out, settings.JSON); err != nil {
			return fmt.Errorf("print the health of %s: %w", p.name, err)
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("%d of %d not ok: %s", len(failed), len(probes), strings.Join(failed, ", "))
	}
	return nil
}

func targets(settings config.Health) []*probe {
	var probes []*probe
	for _, addr := range settings.Addr {
		probes = append(probes, &probe{name: addr, addr: reachable(addr)})
	}
	if len(probes) > 0 {
		return probes
	}
	for _, service := range settings.Services {
		probes = append(probes, &probe{name: service, addr: reachable(settings.Of(service))})
	}
	return probes
}

// reachable returns where a listener on all addresses of the machine can be asked.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		host = "localhost"
	}
	return net.JoinHostPort(host, port)
}

// healthClient returns a client for the services, and the scheme that they speak. It keeps no connections and uses no
// proxy: it asks its own machine.
func healthClient(settings config.TLSClient) (client *http.Client, scheme string, err error) {
	transport := &http.Transport{DisableKeepAlives: true}
	scheme = "https"
	switch {
	case settings.CAFile != "":
		if transport.TLSClientConfig, err = tlsconf.Client(settings.CAFile); err != nil {
			return nil, "", fmt.Errorf("HEALTH_TLS_CA_FILE: %w", err)
		}
	case settings.CertFile != "":
		if transport.TLSClientConfig, err = tlsconf.Pinned(settings.CertFile); err != nil {
			return nil, "", fmt.Errorf("TLS_CERT_FILE: %w", err)
		}
	default:
		scheme = "http"
	}
	return &http.Client{Transport: transport}, scheme, nil
}

func (p *probe) ask(ctx context.Context, client *http.Client, scheme string) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+p.addr+"/health", http.NoBody)
	if err != nil {
		p.err = fmt.Errorf("can't be asked: %w", err)
		return
	}
	response, err := client.Do(request)
	if err != nil {
		p.err = fmt.Errorf("no answer: %w", errors.Unwrap(err)) // the address is printed already
		return
	}
	defer response.Body.Close() //nolint:errcheck // nothing was written
	if p.body, err = io.ReadAll(io.LimitReader(response.Body, largestAnswer)); err != nil {
		p.err = fmt.Errorf("answer broke off: %w", err)
		return
	}
	p.err = judge(response.StatusCode, p.body)
}

// judge returns what is wrong with a service that gave this answer, nil if nothing is.
func judge(status int, body []byte) error {
	var a answer
	if err := json.Unmarshal(body, &a); err != nil {
		return fmt.Errorf("answered %d, which is no health answer: %w", status, err)
	}
	if status == http.StatusOK && a.Status == "ok" {
		return nil
	}
	var reasons []string
	for _, name := range slices.Sorted(maps.Keys(a.Checks)) {
		check := a.Checks[name]
		switch {
		case check.Status == "ok":
		case check.Error != "":
			reasons = append(reasons, name+": "+check.Error)
		default:
			reasons = append(reasons, name+": "+check.Status)
		}
	}
	if len(reasons) == 0 {
		return fmt.Errorf("answered %d, status %q", status, a.Status)
	}
	return errors.New(strings.Join(reasons, "; "))
}

func (p *probe) print(out io.Writer, asJSON bool) error {
	state := "ok"
	if p.err != nil {
		state = oneLine(p.err)
	}
	if !asJSON {
		_, err := fmt.Fprintf(out, "%-14s %-21s %s\n", p.name, p.addr, state)
		return err
	}
	line := struct {
		Name   string          `json:"name"`
		Addr   string          `json:"addr"`
		OK     bool            `json:"ok"`
		Error  string          `json:"error,omitempty"`
		Answer json.RawMessage `json:"answer,omitempty"`
	}{Name: p.name, Addr: p.addr, OK: p.err == nil}
	if !line.OK {
		line.Error = state
	}
	if json.Valid(p.body) {
		line.Answer = p.body
	}
	return json.NewEncoder(out).Encode(line)
}
