// Package client asks the services of the platform over HTTP, for the command line and the doctor. What it returns are
// the API's own types.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/cornjacket/platform-services/internal/tlsconf"
)

// largest is more than any answer is, a page of dead letters included, in bytes.
const largest = 64 << 20

// Config says how services are spoken to.
type Config struct {
	CertFile string        // ask over HTTPS, and take only the certificate in this file
	CAFile   string        // ask over HTTPS, and take what an authority in this file has signed; before CertFile
	Token    string        // bearer token; none if empty
	Timeout  time.Duration // for each answer; zero: as long as the context lasts
}

// Client speaks with services. It keeps no connections and uses no proxy. Its methods can be called concurrently.
type Client struct {
	cfg    Config
	scheme string
	http   *http.Client
}

// New returns a client. The error names the variable of the file that can't be read.
func New(cfg Config) (*Client, error) {
	transport := &http.Transport{DisableKeepAlives: true}
	c := &Client{cfg: cfg, scheme: "https", http: &http.Client{Transport: transport}}
	var err error
	switch {
	case cfg.CAFile != "":
		if transport.TLSClientConfig, err = tlsconf.Client(cfg.CAFile); err != nil {
			return nil, fmt.Errorf("HEALTH_TLS_CA_FILE: %w", err)
		}
	case cfg.CertFile != "":
		if transport.TLSClientConfig, err = tlsconf.Pinned(cfg.CertFile); err != nil {
			return nil, fmt.Errorf("TLS_CERT_FILE: %w", err)
		}
	default:
		c.scheme = "http"
	}
	return c, nil
}

// Service is one service at its address.
type Service struct {
	Name, Addr string
	client     *Client
}

// Service returns the service that listens on an address, host:port. One that listens on all addresses of the machine is
// asked at localhost.
func (c *Client) Service(name, addr string) *Service {
	if host, port, err := net.SplitHostPort(addr); err == nil {
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			addr = net.JoinHostPort("localhost", port)
		}
	}
	return &Service{Name: name, Addr: addr, client: c}
}

// Answer is what a service has said.
type Answer struct {
	Status int
	Body   []byte
}

// NoAnswerError says that a service could not be asked, or did not answer.
type NoAnswerError struct {
	Service *Service
	Err     error
}

func (e *NoAnswerError) Error() string {
	return fmt.Sprintf("%s (%s) does not answer: %v", e.Service.Name, e.Service.Addr, e.Err)
}

func (e *NoAnswerError) Unwrap() error { return e.Err }

// Cause returns why there was no answer, for callers that name the service themselves; other errors are returned as they are.
func Cause(err error) error {
	if none := (*NoAnswerError)(nil); errors.As(err, &none) {
		return none.Err
	}
	return err
}

// RefusedError is a problem that a service has answered with.
type RefusedError struct {
	Service *Service
	Status  int
	Detail  string // what the problem says (RFC 9457), or the status in words
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("%s answered %d: %s", e.Service.Name, e.Status, e.Detail)
}

// StatusOf returns the status that an error was answered with; zero if there was no answer.
func StatusOf(err error) int {
	if refused := (*RefusedError)(nil); errors.As(err, &refused) {
		return refused.Status
	}
	return 0
}

// ask sends a request, with body as JSON unless it is nil, and returns the answer with any status. The error is a
// [*NoAnswerError].
func (s *Service) ask(ctx context.Context, method, path string, query url.Values, body any) (Answer, error) {
	if s.client.cfg.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.client.cfg.Timeout)
		defer cancel()
	}
	answer, err := s.client.send(ctx, method, url.URL{Scheme: s.client.scheme, Host: s.Addr, Path: path, RawQuery: query.Encode()}, body)
	if err != nil {
		return Answer{}, &NoAnswerError{Service: s, Err: err}
	}
	return answer, nil
}

func (c *Client) send(ctx context.Context, method string, target url.URL, body any) (Answer, error) {
	var sent io.Reader = http.NoBody
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return Answer{}, fmt.Errorf("encode request: %w", err)
		}
		sent = bytes.NewReader(data)
	}
	request, err := http.NewRequestWithContext(ctx, method, target.String(), sent)
	if err != nil {
		return Answer{}, fmt.Errorf("make request: %w", err)
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if c.cfg.Token != "" {
		request.Header.Set("Authorization", "Bearer "+c.cfg.Token)
	}
	response, err := c.http.Do(request)
	if err != nil {
		if u := (*url.Error)(nil); errors.As(err, &u) {
			err = u.Err // the address is told anyway
		}
		return Answer{}, err
	}
	defer response.Body.Close() //nolint:errcheck // nothing was written
	answer := Answer{Status: response.StatusCode}
	if answer.Body, err = io.ReadAll(io.LimitReader(response.Body, largest)); err != nil {
		return Answer{}, fmt.Errorf("answer broke off: %w", err)
	}
	return answer, nil
}

// call asks a service and reads its answer into out. The error is a [*NoAnswerError], a [*RefusedError], or says that
// the answer can't be read.
func (s *Service) call(ctx context.Context, method, path string, query url.Values, body, out any) error {
	answer, err := s.ask(ctx, method, path, query, body)
	if err != nil {
		return err
	}
	if answer.Status >= http.StatusBadRequest {
		refused := &RefusedError{Service: s, Status: answer.Status, Detail: http.StatusText(answer.Status)}
		var problem struct{ Detail string }
		if json.Unmarshal(answer.Body, &problem) == nil && problem.Detail != "" {
			refused.Detail = problem.Detail
		}
		return refused
	}
	if err := json.Unmarshal(answer.Body, out); err != nil {
		return fmt.Errorf("read answer of %s: %w", s.Name, err)
	}
	return nil
}
