package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// healthReport is the answer of GET /health.
type healthReport struct {
	Status        string                    `json:"status"`
	Service       string                    `json:"service"`
	UptimeSeconds *float64                  `json:"uptime_seconds"`
	Checks        map[string]map[string]any `json:"checks"`
}

// askHealth asks one port, which must answer soon whatever hangs behind it.
func askHealth(ctx context.Context, url string) (int, healthReport, error) {
	return askHealthWithin(ctx, url, 2*time.Second)
}

func askHealthWithin(ctx context.Context, url string, limit time.Duration) (status int, r healthReport, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	a, err := request(ctx, http.MethodGet, url+"/health", nil)
	if err != nil {
		return 0, r, err
	}
	return a.status, r, json.Unmarshal(a.body, &r)
}

func TestEveryPortTellsItsHealth(t *testing.T) {
	t.Parallel()
	p := shared(t)
	p.arrives(t)
	for service, url := range p.services() {
		t.Run(service, func(t *testing.T) {
			t.Parallel()
			status, r, err := askHealth(t.Context(), url)
			require.NoError(t, err)
			require.Equal(t, http.StatusOK, status, "%+v", r)
			require.Equal(t, "ok", r.Status)
			require.Equal(t, service, r.Service)
			require.NotNil(t, r.UptimeSeconds)
			require.Contains(t, r.Checks, "postgres")
			for name, check := range r.Checks {
				require.Equal(t, "ok", check["status"], name)
				require.Contains(t, check, "latency_ms", name)
			}
			a, err := request(t.Context(), http.MethodGet, url+"/livez", nil)
			require.NoError(t, err)
			require.Equal(t, http.StatusOK, a.status)

			a, err = request(t.Context(), http.MethodGet, url+"/metrics", nil)
			require.NoError(t, err)
			require.Equal(t, http.StatusOK, a.status)
			require.Contains(t, a.header.Get("Content-Type"), "text/plain")
			for _, name := range []string{"handler_execution_time_seconds_count", "subscriber_messages_received_total", "process_open_fds", "go_goroutines"} {
				require.Contains(t, string(a.body), "\n"+name, "of Watermill and of the Go runtime")
			}
			for _, handler := range []string{"ingestion", "relay", "eventhandler"} {
				require.Contains(t, string(a.body), fmt.Sprintf("handler_name=%q", handler))
			}
		})
	}
}

func TestOpenAPI(t *testing.T) {
	t.Parallel()
	p := shared(t)
	for url, path := range map[string]string{p.ingestion: batchPath, p.query: "/api/v1/projections/{type}/{aggregate_id}"} {
		a, err := request(t.Context(), http.MethodGet, url+"/openapi.json", nil)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, a.status)
		require.Equal(t, typeJSON, a.header.Get("Content-Type"))
		var doc struct {
			OpenAPI string                     `json:"openapi"`
			Paths   map[string]json.RawMessage `json:"paths"`
		}
		require.NoError(t, json.Unmarshal(a.body, &doc))
		require.Regexp(t, `^3\.1\.`, doc.OpenAPI)
		require.Contains(t, doc.Paths, path)
		require.Contains(t, doc.Paths, eventsPath)
	}
}

// healthEnv are the variables by which `platform health` finds a platform.
func (p *platform) healthEnv() (env []string) {
	for name, url := range map[string]string{
		"INGESTION_ADDR": p.ingestion, "QUERY_ADDR": p.query, "EVENTHANDLER_HEALTH_ADDR": p.eventhandler, "RELAY_HEALTH_ADDR": p.relay,
	} {
		env = append(env, name+"="+strings.TrimPrefix(url, "http://"))
	}
	return env
}

func TestHealthCommand(t *testing.T) {
	t.Parallel()
	p := shared(t)
	c := platformCommand(t, p.healthEnv(), "health")
	require.Zero(t, c.code, "%s", c.stdout.String())
	require.Equal(t, 4, strings.Count(c.stdout.String(), " ok\n"), "%s", c.stdout.String())
	require.Empty(t, c.stderr.String())
	c = platformCommand(t, append(p.healthEnv(), "RELAY_HEALTH_ADDR=127.0.0.1:1"), "health")
	require.Equal(t, 1, c.code)
	require.Contains(t, c.oneLine(t), "1 of 4 not ok: relay")
}

// A platform that has nothing to do says nothing.
func TestIdlePlatformIsSilent(t *testing.T) {
	t.Parallel()
	own(t)
	p := dev(t, newFolder(t))
	p.arrives(t)
	before := p.process.stderr.String()
	require.Never(t, func() bool { return p.process.stderr.String() != before }, 8*time.Second, 4*tick, "it logs something")
	p.stop(t)
}

// signalPostgres sends a signal to the platform's PostgreSQL and all its sessions.
func (p *platform) signalPostgres(t *testing.T, s syscall.Signal) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(p.dir, "postgres", "data", "postmaster.pid"))
	require.NoError(t, err)
	var server int
	_, err = fmt.Sscan(string(text), &server)
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(server, s)) // before its sessions: a stopped one starts no others
	list, err := exec.CommandContext(t.Context(), "ps", "-A", "-o", "pid=,ppid=").Output()
	require.NoError(t, err)
	for line := range strings.Lines(string(list)) {
		var pid, parent int
		if _, err := fmt.Sscan(line, &pid, &parent); err == nil && parent == server {
			_ = syscall.Kill(pid, s) // a session may have ended meanwhile
		}
	}
}

// becomes waits until all ports say that they are ready, or that they are not because of postgres, and returns how long
// that took. No question may hang.
func (p *platform) becomes(t *testing.T, want int) time.Duration {
	t.Helper()
	started := time.Now()
	var hung error
	require.Eventually(t, func() bool {
		all := true
		for service, url := range p.services() {
			status, r, err := askHealth(t.Context(), url)
			if err != nil {
				hung = fmt.Errorf("%s: %w", service, err)
				return true
			}
			all = all && status == want && (want == http.StatusOK || r.Checks["postgres"]["status"] == "failing" && r.Checks["postgres"]["error"] != nil)
		}
		return all
	}, wait, 2*tick, "all ports answer %d", want)
	require.NoError(t, hung, "/health does not answer")
	return time.Since(started)
}

// PostgreSQL hangs under load: all ports say so in time and go on answering, clients wait or are told to come again,
// and nothing that was acknowledged is lost.
func TestFrozenPostgres(t *testing.T) {
	t.Parallel()
	own(t)
	const inTime, slack = 5 * time.Second, time.Second // by the contract; what a busy machine may add
	p := dev(t, newFolder(t))
	l := startLoad(t, p, 4, 4)
	l.reach(t, 500)

	p.signalPostgres(t, syscall.SIGSTOP)
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		select {
		case <-p.process.done:
		default:
			p.signalPostgres(t, syscall.SIGCONT)
		}
	})
	red := p.becomes(t, http.StatusServiceUnavailable)
	c := platformCommand(t, p.healthEnv(), "health")
	require.Equal(t, 1, c.code)
	require.Contains(t, c.stdout.String(), "postgres")
	for service, url := range p.services() {
		a, err := request(t.Context(), http.MethodGet, url+"/livez", nil)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, a.status, "the %s process is alive", service)
	}
	a := p.post(t, eventsPath, typeJSON, reading(newID(), unique("frozen"), "2026-02-07T10:00:00Z", 1))
	require.Equal(t, http.StatusServiceUnavailable, a.status, "%s", a.body)
	require.NotEmpty(t, a.header.Get("Retry-After"))

	p.signalPostgres(t, syscall.SIGCONT)
	green := p.becomes(t, http.StatusOK)
	l.reach(t, 500)
	l.stop()
	l.proven(t, p)
	t.Logf("red %s after the freeze, green %s after the thaw", red.Round(time.Millisecond), green.Round(time.Millisecond))
	require.Less(t, red, inTime+slack)
	require.Less(t, green, inTime+slack)
	require.NotContains(t, p.process.stderr.String(), "dead letter", "an outage of our own is no reason for one")
	p.stop(t)
}
