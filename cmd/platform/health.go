package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/cornjacket/platform-services/internal/client"
	"github.com/cornjacket/platform-services/internal/config"
)

// probe is one address that is asked for its health, and what it said.
type probe struct {
	*client.Service
	body []byte
	err  error // nil if it is ok
}

// health asks each address for its health and prints one line for each. It returns an error unless all are ok.
func health(ctx context.Context, settings config.Health, out io.Writer) error {
	c, err := client.New(client.Config{CertFile: settings.CertFile, CAFile: settings.CAFile, Timeout: settings.Timeout})
	if err != nil {
		return err
	}
	probes := targets(settings, c)
	var asked sync.WaitGroup
	for _, p := range probes {
		asked.Go(func() { p.ask(ctx) })
	}
	asked.Wait()

	var failed []string
	for _, p := range probes {
		if p.err != nil {
			failed = append(failed, p.Name)
		}
		if err := p.print(out, settings.JSON); err != nil {
			return fmt.Errorf("print the health of %s: %w", p.Name, err)
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("%d of %d not ok: %s", len(failed), len(probes), strings.Join(failed, ", "))
	}
	return nil
}

func targets(settings config.Health, c *client.Client) []*probe {
	var probes []*probe
	for _, addr := range settings.Addr {
		probes = append(probes, &probe{Service: c.Service(addr, addr)})
	}
	if len(probes) > 0 {
		return probes
	}
	for _, service := range settings.Services {
		probes = append(probes, &probe{Service: c.Service(service, settings.Of(service))})
	}
	return probes
}

func (p *probe) ask(ctx context.Context) {
	report, answer, err := p.Health(ctx)
	p.body = answer.Body
	var none *client.NoAnswerError
	switch failing := client.Failing(report); {
	case errors.As(err, &none):
		p.err = fmt.Errorf("no answer: %w", none.Err) // the address is printed already
	case err != nil:
		p.err = err
	case answer.Status == http.StatusOK && report.Status == "ok":
	case len(failing) == 0:
		p.err = fmt.Errorf("answered %d, status %q", answer.Status, report.Status)
	default:
		p.err = errors.New(strings.Join(failing, "; "))
	}
}

func (p *probe) print(out io.Writer, asJSON bool) error {
	state := "ok"
	if p.err != nil {
		state = oneLine(p.err)
	}
	if !asJSON {
		_, err := fmt.Fprintf(out, "%-14s %-21s %s\n", p.Name, p.Addr, state)
		return err
	}
	line := struct {
		Name   string          `json:"name"`
		Addr   string          `json:"addr"`
		OK     bool            `json:"ok"`
		Error  string          `json:"error,omitempty"`
		Answer json.RawMessage `json:"answer,omitempty"`
	}{Name: p.Name, Addr: p.Addr, OK: p.err == nil}
	if !line.OK {
		line.Error = state
	}
	if json.Valid(p.body) {
		line.Answer = p.body
	}
	return json.NewEncoder(out).Encode(line)
}
