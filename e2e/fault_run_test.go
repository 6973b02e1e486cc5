package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	redIn       = 10 * time.Second // the contract's 5 s, and what a busy machine adds; what it took is printed
	answersIn   = 5 * time.Second  // /health answers from memory, again on a busy machine; one that hangs takes longer
	recoversIn  = 30 * time.Second // far more than it takes; what it took is printed
	projectedIn = 60 * time.Second // of rebalances, which may have to wait for a dead member
)

// step is one act of a fault and what it must turn red: by service the name of the check.
type step struct {
	inject func()
	red    map[string]string
}

// fault is something that happens while the platform is at work.
type fault struct {
	name  string
	steps []step
	hold  time.Duration // how long it lasts at least
	heal  func()
}

var everywhere = map[string]string{"ingestion": "postgres", "relay": "postgres", "eventhandler": "postgres", "query": "postgres"}

// suffer lets a fault happen to a platform that is healthy and under load: the right ports turn red in time, no port
// hangs meanwhile, and after it projections move again and all ports turn green without help.
func (r *rig) suffer(t *testing.T, i *instance, f fault) {
	t.Helper()
	i.ready(t)
	began := time.Now()
	var slowest time.Duration
	var reds []string
	for _, s := range f.steps {
		injected := time.Now()
		s.inject()
		for service, took := range r.reddens(t, i, f.name, injected, s.red, &slowest) {
			reds = append(reds, fmt.Sprintf("%s/%s %s", service, s.red[service], short(took)))
			require.Less(t, took, redIn, "%s: until %s says that %s fails", f.name, service, s.red[service])
		}
	}
	for time.Since(began) < f.hold { // and no port hangs meanwhile
		r.look(t, i, &slowest)
		<-time.After(2 * tick)
	}
	lasted := time.Since(began)
	f.heal()
	healed := time.Now()
	moved := r.moves(t, healed)
	i.ready(t)
	green := time.Since(healed)
	r.note(t, "%-28s lasted %6s  red: %s; slowest /health %s; after it projections move in %s, all green in %s",
		f.name, short(lasted), strings.Join(reds, ", "), slowest.Round(time.Millisecond), short(moved), short(green))
	require.Less(t, slowest, answersIn, "%s: slowest answer of /health", f.name)
	require.Less(t, moved, recoversIn, "%s: until projections move again", f.name)
}

// reddens waits until services are red because of their checks, and returns how long each took.
func (r *rig) reddens(t *testing.T, i *instance, name string, since time.Time, want map[string]string, slowest *time.Duration) map[string]time.Duration {
	t.Helper()
	took := map[string]time.Duration{}
	for len(took) < len(want) {
		states := r.look(t, i, slowest)
		for service, check := range want {
			s := states[service]
			if _, done := took[service]; !done && s.Status != "ok" && s.Checks[check]["status"] == "failing" && s.Checks[check]["error"] != nil {
				took[service] = time.Since(since)
			}
		}
		require.Less(t, time.Since(since), wait, "%s: waiting for red %v, got %v of %+v", name, want, took, states)
		<-time.After(2 * tick)
	}
	return took
}

// look asks all ports of an instance for their health, and notes the slowest answer. None may hang.
func (r *rig) look(t *testing.T, i *instance, slowest *time.Duration) map[string]healthReport {
	t.Helper()
	states := map[string]healthReport{}
	for service, at := range i.p.services() {
		asked := time.Now()
		status, report, err := askHealthWithin(t.Context(), at, answers)
		require.NoError(t, err, "%s must answer /health", service)
		require.Contains(t, []int{http.StatusOK, http.StatusServiceUnavailable}, status)
		*slowest = max(*slowest, time.Since(asked))
		states[service] = report
	}
	return states
}

// moves waits for the first projection that was written after a moment, and returns how long that took.
func (r *rig) moves(t *testing.T, since time.Time) time.Duration {
	t.Helper()
	var took time.Duration
	require.Eventually(t, func() bool {
		var newest *time.Time
		if err := r.db.QueryRow(t.Context(), `SELECT max(updated_at) FROM projections`).Scan(&newest); err != nil || newest == nil {
			return false // the database may be on its way back
		}
		took = time.Since(since)
		return newest.After(since)
	}, 2*wait, tick/2, "projections move again")
	return took
}
