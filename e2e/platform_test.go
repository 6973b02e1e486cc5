package e2e

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// platform is where a platform is.
type platform struct {
	ingestion, query, eventhandler, relay string // http://host:port
	gateway                               string // http://host:port of what stands before both APIs; empty without one
	mqtt, kafka                           string // host:port
	database, projectionsDB               string // URLs
	dir                                   string // data folder
	process                               *process
}

// services are the HTTP ports, by the name of their service.
func (p *platform) services() map[string]string {
	return map[string]string{"ingestion": p.ingestion, "query": p.query, "eventhandler": p.eventhandler, "relay": p.relay}
}

// ingestionAPI and queryAPI are where clients find the APIs: behind the gateway, or on the ports of the services.
func (p *platform) ingestionAPI() string { return cmp.Or(p.gateway, p.ingestion) }

func (p *platform) queryAPI() string { return cmp.Or(p.gateway, p.query) }

// devArgs are the arguments of `platform dev` with free ports. The log is JSON to be read here.
func devArgs(dir string, more ...string) []string {
	args := []string{"dev", "--data-dir", dir, "--log-format", "json"}
	for _, name := range []string{"mqtt", "kafka", "postgres", "ingestion", "query", "eventhandler-health", "relay-health"} {
		args = append(args, "--"+name+"-addr", "127.0.0.1:0")
	}
	return append(args, more...)
}

// dev starts a `platform dev` for this test alone; it is killed at the end if the test has not stopped it.
func dev(t testing.TB, dir string, more ...string) *platform {
	t.Helper()
	p, err := startDev(t.Context(), dir, more...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.process.kill()) })
	return p
}

func startDev(ctx context.Context, dir string, more ...string) (*platform, error) {
	proc, err := launch(nil, binary, devArgs(dir, more...)...)
	if err != nil {
		return nil, err
	}
	p := &platform{dir: dir, process: proc}
	if err := p.awaitReady(ctx, "PostgreSQL "); err != nil {
		_ = proc.kill() // what counts is why it is not ready
		return nil, err
	}
	return p, nil
}

// awaitReady waits until the platform has said that it is ready, and where; the text is the last thing that it prints
// to stdout.
func (p *platform) awaitReady(ctx context.Context, printed string) error {
	deadline := time.NewTimer(wait)
	defer deadline.Stop()
	for {
		if p.readLog() && strings.Contains(p.process.stdout.String(), printed) {
			p.readBanner()
			return nil
		}
		select {
		case <-p.process.done:
			return fmt.Errorf("the platform ended with exit code %d before it was ready:\n%s", p.process.code, p.process.stderr.tail())
		case <-deadline.C:
			return fmt.Errorf("the platform is not ready within %s:\n%s", wait, p.process.stderr.tail())
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(tick):
		}
	}
}

// readLog takes the addresses from the log and tells whether the platform is ready.
func (p *platform) readLog() (ready bool) {
	lines := bufio.NewScanner(strings.NewReader(p.process.stderr.String()))
	for lines.Scan() {
		var entry struct {
			Msg       string            `json:"msg"`
			Addresses map[string]string `json:"addresses"`
		}
		if json.Unmarshal(lines.Bytes(), &entry) != nil {
			continue // a line that is still being written
		}
		if entry.Msg != "ready" {
			continue
		}
		at := func(service string) string { return "http://" + entry.Addresses[service] }
		p.ingestion, p.query, p.eventhandler, p.relay = at("ingestion"), at("query"), at("eventhandler"), at("relay")
		p.mqtt = cmp.Or(entry.Addresses["mqtt"], p.mqtt) // of an embedded broker
		ready = true
	}
	return ready
}

// readBanner takes from what is printed for the user what the log does not say.
func (p *platform) readBanner() {
	for line := range strings.Lines(p.process.stdout.String()) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "Kafka API "); ok {
			p.kafka = strings.TrimSpace(rest)
		}
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "PostgreSQL "); ok {
			p.database = strings.TrimSpace(rest)
			p.projectionsDB = p.database
		}
	}
}

// stop stops the platform as an operator does, and asks for a clean end.
func (p *platform) stop(t testing.TB) {
	t.Helper()
	code, err := p.process.stop()
	require.NoError(t, err)
	require.Zero(t, code, "a clean stop:\n%s", p.process.stderr.tail())
}

// taken returns an address that is listened on until the test ends.
func taken(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}
