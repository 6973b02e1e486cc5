// Package health knows whether a service is ready, and answers from memory: checks run in the background, so that a
// dependency that hangs can't hang the answer.
package health

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Check is one thing that must be well for a service to be ready.
type Check struct {
	Name string
	// Probe returns what else to tell, which may be nil, and an error if the check fails. It is called again and again,
	// never concurrently; its context ends after Timeout.
	Probe func(ctx context.Context) (Details, error)
	// Every is the time between probes; 2 s if zero.
	Every time.Duration
	// Timeout is how long a probe may take; 2 s if zero.
	Timeout time.Duration
}

// Details are further members of a check in the answer, such as lag.
type Details map[string]any

type result struct {
	at      time.Time // when the probe ended
	latency time.Duration
	details Details
	err     error
}

// Monitor keeps the readiness of one service.
type Monitor struct {
	service string
	started time.Time
	now     func() time.Time

	mu       sync.Mutex
	order    []Check
	results  map[string]result
	running  bool
	stopping bool
}

// New returns a monitor without checks. It is not ready before Run, since nothing has been checked.
func New(service string, now func() time.Time) *Monitor {
	return &Monitor{service: service, started: now(), now: now, results: make(map[string]result)}
}

// Add adds a check; it fails until its first probe has ended. Call it before Run.
func (m *Monitor) Add(c Check) {
	if c.Every == 0 {
		c.Every = 2 * time.Second
	}
	if c.Timeout == 0 {
		c.Timeout = 2 * time.Second
	}
	m.mu.Lock() // the port may be asked while the service is still being built
	defer m.mu.Unlock()
	m.order = append(m.order, c)
}

// Run probes until ctx ends.
func (m *Monitor) Run(ctx context.Context) {
	m.mu.Lock()
	m.running = true
	checks := slices.Clone(m.order)
	m.mu.Unlock()
	var running sync.WaitGroup
	for _, c := range checks {
		running.Go(func() { m.watch(ctx, c) })
	}
	running.Wait()
}

// Stop turns the service not ready for good: it is about to end.
func (m *Monitor) Stop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stopping = true
}

func (m *Monitor) watch(ctx context.Context, c Check) {
	const retry = 250 * time.Millisecond // while failing, so that recovery is seen soon
	for {
		started := time.Now()
		probeCtx, cancel := context.WithTimeout(ctx, c.Timeout)
		details, err := c.Probe(probeCtx)
		cancel()
		if ctx.Err() != nil {
			return
		}
		m.mu.Lock()
		m.results[c.Name] = result{at: m.now(), latency: time.Since(started), details: details, err: err}
		m.mu.Unlock()
		wait := c.Every
		if err != nil {
			wait = min(retry, wait)
		}
		select {
		case <-time.After(untilTick(time.Now(), wait)):
		case <-ctx.Done():
			return
		}
	}
}

// untilTick returns the time to the next whole multiple of every on the clock. Checks wake up together: on an idle
// platform it is not the probes that cost but each waking of the process.
func untilTick(now time.Time, every time.Duration) time.Duration {
	return every - time.Duration(now.UnixNano()%int64(every))
}

// Report is the answer of GET /health.
type Report struct {
	Status        string             `json:"status"` // "ok" or "unavailable"
	Service       string             `json:"service"`
	UptimeSeconds float64            `json:"uptime_seconds"`
	Failing       []string           `json:"failing,omitempty"` // names of the checks that fail
	Checks        map[string]Details `json:"checks"`
}

// Report returns the state of the service, and whether it is ready. It never waits for a probe.
func (m *Monitor) Report() (Report, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	r := Report{
		Status:        "ok",
		Service:       m.service,
		UptimeSeconds: float64(now.Sub(m.started).Milliseconds()) / 1000,
		Checks:        make(map[string]Details, len(m.order)),
	}
	if m.stopping {
		r.Failing = append(r.Failing, "stopping")
		r.Checks["stopping"] = Details{"status": "failing", "error": "the service is stopping"}
	} else if !m.running {
		r.Failing = append(r.Failing, "starting")
		r.Checks["starting"] = Details{"status": "failing", "error": "the service is starting"}
	}
	for _, c := range m.order {
		d := Details{"status": "ok"}
		res, known := m.results[c.Name]
		for k, v := range res.details {
			d[k] = v
		}
		switch silent := now.Sub(res.at); {
		case !known && now.Sub(m.started) < c.Timeout:
			d["error"] = "not checked yet"
		case !known:
			d["error"] = "no answer yet"
		case res.err != nil:
			d["error"] = res.err.Error()
		case silent > c.Every+c.Timeout+500*time.Millisecond: // a probe that ignores its context
			d["error"] = "no answer for " + silent.Round(100*time.Millisecond).String()
		}
		if known {
			d["latency_ms"] = float64(res.latency.Microseconds()) / 1000
		}
		if _, failing := d["error"]; failing {
			d["status"] = "failing"
			r.Failing = append(r.Failing, c.Name)
		}
		r.Checks[c.Name] = d
	}
	if len(r.Failing) > 0 {
		r.Status = "unavailable"
	}
	return r, len(r.Failing) == 0
}

// Mount adds GET /health (readiness) and GET /livez to a port.
func (m *Monitor) Mount(mux *http.ServeMux) {
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		report, ready := m.Report()
		status := http.StatusOK
		if !ready {
			status = http.StatusServiceUnavailable
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(report) // the client has gone
	})
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte("ok\n"))
	})
}
