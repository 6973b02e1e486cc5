package health_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/cornjacket/platform-services/internal/health"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clock is set by the test.
type clock struct{ now atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.now.Store(time.Date(2026, 2, 7, 10, 0, 0, 0, time.UTC).UnixNano())
	return c
}

func (c *clock) Now() time.Time          { return time.Unix(0, c.now.Load()) }
func (c *clock) Advance(d time.Duration) { c.now.Add(int64(d)) }

// run runs a monitor until the test ends.
func run(t *testing.T, m *health.Monitor) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

func becomes(t *testing.T, m *health.Monitor, ready bool) {
	t.Helper()
	require.Eventually(t, func() bool {
		_, ok := m.Report()
		return ok == ready
	}, 10*time.Second, time.Millisecond)
}

// probe answers what the test says.
type probe struct {
	mu      sync.Mutex
	err     error
	details health.Details
	calls   int
}

func (p *probe) set(err error, d health.Details) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err, p.details = err, d
}

func (p *probe) called() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls
}

func (p *probe) probe(context.Context) (health.Details, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls++
	return p.details, p.err
}

func TestNotReadyBeforeTheFirstProbes(t *testing.T) {
	t.Parallel()
	c := newClock()
	m := health.New("query", c.Now)
	r, ready := m.Report()
	require.False(t, ready, "a service that has not been built yet is not ready, though no check fails")
	require.Equal(t, []string{"starting"}, r.Failing)

	release := make(chan struct{})
	defer close(release)
	m.Add(health.Check{Name: "postgres", Timeout: time.Minute, Probe: func(context.Context) (health.Details, error) {
		<-release
		return nil, nil
	}})
	m.Add(health.Check{Name: "bus", Probe: new(probe).probe})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go m.Run(ctx)
	require.Eventually(t, func() bool {
		r, ready := m.Report()
		return !ready && len(r.Failing) == 1 && r.Failing[0] == "postgres"
	}, 10*time.Second, time.Millisecond)
	r, _ = m.Report()
	require.Equal(t, "unavailable", r.Status)
	require.Equal(t, health.Details{"status": "failing", "error": "not checked yet"}, r.Checks["postgres"])
	require.Equal(t, "ok", r.Checks["bus"]["status"])
	c.Advance(2 * time.Minute)
	r, _ = m.Report()
	require.Equal(t, "no answer yet", r.Checks["postgres"]["error"])
}

func TestAFailingProbeIsNamedAndRecovers(t *testing.T) {
	t.Parallel()
	m := health.New("relay", newClock().Now)
	good, bad := &probe{}, &probe{}
	m.Add(health.Check{Name: "postgres", Probe: good.probe})
	m.Add(health.Check{Name: "bus", Every: time.Millisecond, Probe: bad.probe})
	run(t, m)
	becomes(t, m, true)

	bad.set(errors.New("no broker answers"), health.Details{"lag_events": 7})
	becomes(t, m, false)
	r, _ := m.Report()
	require.Equal(t, []string{"bus"}, r.Failing)
	require.Equal(t, "failing", r.Checks["bus"]["status"])
	require.Equal(t, "no broker answers", r.Checks["bus"]["error"])
	require.Equal(t, 7, r.Checks["bus"]["lag_events"], "details are told also when it fails")
	require.Equal(t, "ok", r.Checks["postgres"]["status"])

	bad.set(nil, health.Details{"lag_events": 0})
	becomes(t, m, true)
	r, _ = m.Report()
	require.Empty(t, r.Failing)
	require.Equal(t, "ok", r.Status)
	require.NotContains(t, r.Checks["bus"], "error")
	require.Equal(t, 0, r.Checks["bus"]["lag_events"])
}

func TestAFailingCheckIsProbedMoreOftenToSeeItRecover(t *testing.T) {
	t.Parallel()
	m := health.New("relay", time.Now)
	p := &probe{err: errors.New("away")}
	m.Add(health.Check{Name: "bus", Every: time.Hour, Probe: p.probe})
	run(t, m)
	require.Eventually(t, func() bool { return p.called() >= 2 }, 10*time.Second, time.Millisecond)
	p.set(nil, nil)
	becomes(t, m, true)
	n := p.called()
	require.Never(t, func() bool { return p.called() > n }, 400*time.Millisecond, 50*time.Millisecond)
}

// A probe that hangs although its context has ended, as on a frozen server, turns its check red within the 5 s that
// the contract promises, and never holds up the answer.
func TestAHungProbeTurnsRed(t *testing.T) {
	t.Parallel()
	c := newClock()
	m := health.New("query", c.Now)
	var hang atomic.Bool
	entered, release := make(chan struct{}, 1), make(chan struct{})
	m.Add(health.Check{Name: "postgres", Probe: func(context.Context) (health.Details, error) {
		if hang.Load() {
			entered <- struct{}{}
			<-release
		}
		return nil, nil
	}})
	hang.Store(false)
	run(t, m)
	t.Cleanup(func() { hang.Store(false) })
	becomes(t, m, true)
	hang.Store(true)
	<-entered
	_, ready := m.Report()
	require.True(t, ready, "no time has passed")
	c.Advance(5 * time.Second)
	r, ready := m.Report()
	require.False(t, ready)
	require.Equal(t, "no answer for 5s", r.Checks["postgres"]["error"])
	hang.Store(false)
	close(release)
	becomes(t, m, true)
}

func TestAProbeHasADeadline(t *testing.T) {
	t.Parallel()
	m := health.New("query", newClock().Now)
	m.Add(health.Check{Name: "postgres", Timeout: time.Millisecond, Probe: func(ctx context.Context) (health.Details, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	run(t, m)
	require.Eventually(t, func() bool {
		r, _ := m.Report()
		return r.Checks["postgres"]["error"] == context.DeadlineExceeded.Error()
	}, 10*time.Second, time.Millisecond)
}

func TestStopping(t *testing.T) {
	t.Parallel()
	m := health.New("ingestion", newClock().Now)
	m.Add(health.Check{Name: "postgres", Probe: new(probe).probe})
	run(t, m)
	becomes(t, m, true)
	m.Stop()
	r, ready := m.Report()
	require.False(t, ready)
	require.Equal(t, []string{"stopping"}, r.Failing)
	require.Equal(t, "ok", r.Checks["postgres"]["status"])
	require.Equal(t, "failing", r.Checks["stopping"]["status"])
}

// The port is asked while checks are still being added.
func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	m := health.New("ingestion", time.Now)
	ctx, cancel := context.WithCancel(context.Background())
	var asking sync.WaitGroup
	for range 4 {
		asking.Go(func() {
			for ctx.Err() == nil {
				m.Report()
			}
		})
	}
	for _, name := range []string{"a", "b", "c", "d"} {
		m.Add(health.Check{Name: name, Every: time.Millisecond, Probe: new(probe).probe})
	}
	run(t, m)
	becomes(t, m, true)
	cancel()
	asking.Wait()
}

func get(t *testing.T, mux http.Handler, path string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	c := newClock()
	m := health.New("eventhandler", c.Now)
	p := &probe{details: health.Details{"partitions": 8}}
	m.Add(health.Check{Name: "postgres", Every: time.Millisecond, Probe: new(probe).probe})
	m.Add(health.Check{Name: "consumer", Every: time.Millisecond, Probe: p.probe})
	run(t, m)
	becomes(t, m, true)
	mux := http.NewServeMux()
	m.Mount(mux)
	c.Advance(1500 * time.Millisecond)
	becomes(t, m, true)

	w := get(t, mux, "/health")
	require.Equal(t, http.StatusOK, w.Code)
	require.Equal(t, "application/json", w.Header().Get("Content-Type"))
	require.Equal(t, "no-store", w.Header().Get("Cache-Control"))
	var body map[string]any
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &body))
	checks, ok := body["checks"].(map[string]any)
	require.True(t, ok)
	for _, name := range []string{"postgres", "consumer"} {
		check, ok := checks[name].(map[string]any)
		require.True(t, ok, name)
		require.GreaterOrEqual(t, check["latency_ms"], 0.0)
		delete(check, "latency_ms")
	}
	require.Equal(t, map[string]any{
		"status": "ok", "service": "eventhandler", "uptime_seconds": 1.5,
		"checks": map[string]any{
			"postgres": map[string]any{"status": "ok"},
			"consumer": map[string]any{"status": "ok", "partitions": 8.0},
		},
	}, body)

	p.set(errors.New("no partitions"), nil)
	becomes(t, m, false)
	w = get(t, mux, "/health")
	require.Equal(t, http.StatusServiceUnavailable, w.Code)
	body = nil
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &body))
	require.Equal(t, "unavailable", body["status"])
	require.Equal(t, []any{"consumer"}, body["failing"])

	w = get(t, mux, "/livez")
	require.Equal(t, http.StatusOK, w.Code, "the process can answer")
	w = httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/health", nil))
	require.Equal(t, http.StatusMethodNotAllowed, w.Code)
}

func TestChecksWakeTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		<-time.After(130 * time.Millisecond) // off the beat
		m := health.New("query", time.Now)
		var mu sync.Mutex
		at := map[time.Duration]int{}
		begin := time.Now().Truncate(time.Second)
		for i, every := range []time.Duration{time.Second, time.Second, 500 * time.Millisecond} {
			m.Add(health.Check{Name: fmt.Sprint(i), Every: every, Probe: func(context.Context) (health.Details, error) {
				mu.Lock()
				defer mu.Unlock()
				at[time.Since(begin)]++
				return nil, nil
			}})
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2100*time.Millisecond)
		defer cancel()
		m.Run(ctx)
		require.Equal(t, map[time.Duration]int{
			130 * time.Millisecond: 3, 500 * time.Millisecond: 1, time.Second: 3, 1500 * time.Millisecond: 1, 2 * time.Second: 3,
		}, at)
	})
}
