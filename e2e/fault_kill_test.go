package e2e

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// seeded returns a source of random numbers that E2E_FAULTS_SEED repeats.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := cmp.Or(os.Getenv("E2E_FAULTS_SEED"), run)
	t.Logf("E2E_FAULTS_SEED=%s", seed)
	h := fnv.New64a()
	_, _ = h.Write([]byte(seed)) // never fails
	return rand.New(rand.NewPCG(h.Sum64(), 0))
}

// kill -9 of the platform at random moments, at work and while it starts: everything that was acknowledged is there,
// once, and projections move again soon after each start.
func TestFaultsKill(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	random := seeded(t)
	i := r.instance(t)
	l := startTraffic(t, r)
	r.moves(t, time.Now())
	var took []time.Duration
	for round := range longer(5, 40) {
		<-time.After(time.Duration(random.Int64N(int64(1500 * time.Millisecond))))
		i.kill(t)
		for round%4 == 3 && random.IntN(3) > 0 { // not even up yet
			i.launch(t)
			<-time.After(time.Duration(random.Int64N(int64(time.Second))))
			i.kill(t)
		}
		started := time.Now()
		i.launch(t)
		moved := r.moves(t, started)
		took = append(took, moved)
		i.ready(t)
		t.Logf("round %d: projections move %s after the start, all green after %s", round, short(moved), short(time.Since(started)))
		require.Less(t, moved, recoversIn)
	}
	slices.Sort(took)
	r.note(t, "kill -9, %d rounds: projections move again after a start in %s (median), %s (longest)", len(took), short(took[len(took)/2]), short(took[len(took)-1]))
	l.finish(t)
	r.proven(t, l)
	i.p.stop(t)
	r.report(t)
}

// Two instances, of which one is killed again and again, also the one whose relay leads: the other takes over, and the
// first finds its place when it is back.
func TestFaultsOfPair(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	r.instance(t)
	r.instance(t)
	l := startTraffic(t, r)
	r.moves(t, time.Now())
	for round := range longer(1, 6) { // with the second, dead partitions are waited for: 10 s
		victim, other := r.instances[0], r.instances[1]
		r.balanced(t)
		led := round%2 == 0 // the one whose relay leads, and the one that stands by, in turn
		if leads(t, victim) != led {
			victim, other = other, victim
		}
		require.Equal(t, []bool{led, !led}, []bool{leads(t, victim), leads(t, other)}, "one relay leads")
		killed := time.Now()
		victim.kill(t)
		published := r.relays(t, killed)
		moved := r.moves(t, killed)
		alone := "not waited for"
		if round%2 == 1 { // the other has to do all of it before the victim is back
			r.caughtUp(t)
			alone = short(time.Since(killed)).String()
			other.ready(t)
		}
		started := time.Now()
		victim.launch(t)
		victim.ready(t)
		other.ready(t)
		green := time.Since(started)
		r.caughtUp(t)
		r.note(t, "one of two killed (relay led: %t): log goes on in %s, projections in %s, all of them by the other in %s; back and green in %s, caught up in %s",
			led, short(published), short(moved), alone, short(green), short(time.Since(started)))
		require.Less(t, published, recoversIn)
	}
	if full {
		for _, led := range []bool{false, true} {
			r.sleeper(t, led)
		}
	}
	l.finish(t)
	r.proven(t, l)
	for _, i := range r.instances {
		i.p.stop(t)
	}
	r.report(t)
}

// sleeper freezes one of two instances for longer than its session on the bus lasts, and lets it go on: the other has
// its partitions by then, and what the first was about to write must not be applied again. While the one whose relay
// leads is frozen the log waits for it, until the other has seen that for 30 s and ends its session.
func (r *rig) sleeper(t *testing.T, led bool) {
	t.Helper()
	r.balanced(t)
	victim, other := r.instances[0], r.instances[1]
	if leads(t, victim) != led {
		victim, other = other, victim
	}
	frozen := time.Now()
	require.NoError(t, victim.p.process.signal(syscall.SIGSTOP))
	if led {
		require.Eventually(t, func() bool {
			status, report, err := askHealth(t.Context(), other.p.relay)
			return err == nil && status == 503 && strings.Contains(fmt.Sprint(report.Checks["relay"]["error"]), "another instance leads and does nothing")
		}, wait, tick, "the one that stands by says that nothing is done")
		require.Eventually(t, func() bool { return leadsNow(t, other) }, 2*wait, tick, "it takes over")
		r.note(t, "the relay that leads is frozen: the other leads after %s", short(time.Since(frozen)))
	}
	r.relays(t, frozen.Add(time.Second)) // by then there is something in all its partitions
	r.caughtUp(t)
	alone := time.Since(frozen)
	other.ready(t)
	for time.Since(frozen) < 15*time.Second {
		<-time.After(tick)
	}
	thawed := time.Now()
	require.NoError(t, victim.p.process.signal(syscall.SIGCONT))
	moved := r.moves(t, thawed)
	victim.ready(t)
	other.ready(t)
	r.note(t, "one of two frozen for %s (relay led: %t): the log as it was applied by the other in %s; after it projections move in %s, all green in %s",
		short(thawed.Sub(frozen)), led, short(alone), short(moved), short(time.Since(thawed)))
}

// A relay that leads and is frozen, not dead, is replaced, and does no harm when it wakes.
func TestFaultsOfAFrozenLeader(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	r.instance(t)
	r.instance(t)
	l := startTraffic(t, r)
	r.moves(t, time.Now())
	r.sleeper(t, true)
	l.finish(t)
	r.proven(t, l)
	for _, i := range r.instances {
		i.p.stop(t)
	}
	r.report(t)
}

// balanced waits until the bus has given partitions to both instances.
func (r *rig) balanced(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool {
		all := 0.0
		for _, i := range r.instances {
			_, report, err := askHealth(t.Context(), i.p.eventhandler)
			n, ok := report.Checks["consumer"]["partitions"].(float64)
			if err != nil || !ok || n == 0 {
				return false
			}
			all += n
		}
		return all == 3*8 // of three topics
	}, projectedIn, 4*tick, "both instances have partitions")
}

// leads tells whether the relay of an instance is the active one.
func leads(t *testing.T, i *instance) bool {
	t.Helper()
	status, report, err := askHealthWithin(t.Context(), i.p.relay, answers)
	require.NoError(t, err)
	require.Equal(t, 200, status)
	return report.Checks["postgres"]["leading"] == true
}

// leadsNow is leads that says no while the health of the relay is not known, or red.
func leadsNow(t *testing.T, i *instance) bool {
	t.Helper()
	status, report, err := askHealth(t.Context(), i.p.relay)
	return err == nil && status == 200 && report.Checks["postgres"]["leading"] == true
}

// relays waits for the first event that came in after a moment and is in the log, and returns how long that took.
func (r *rig) relays(t *testing.T, since time.Time) time.Duration {
	t.Helper()
	require.Eventually(t, func() bool {
		var there bool
		err := r.db.QueryRow(t.Context(), `SELECT coalesce((SELECT ingested_at FROM event_store ORDER BY position DESC LIMIT 1) > $1, false)`, since).Scan(&there)
		return err == nil && there
	}, 2*wait, tick/2, "the log goes on")
	return time.Since(since)
}

// caughtUp waits until everything that is in the log at its call has been applied.
func (r *rig) caughtUp(t *testing.T) {
	t.Helper()
	const missing = `SELECT count(*) FROM (
			SELECT CASE split_part(event_type, '.', 1) WHEN 'sensor' THEN 'sensor_state' ELSE 'user_session' END AS kind, aggregate_id, max(position) AS position
			FROM event_store WHERE position <= $1 GROUP BY 1, 2) e
		LEFT JOIN projections p ON p.projection_type = e.kind AND p.aggregate_id = e.aggregate_id
		WHERE p.position IS NULL OR p.position < e.position`
	var end int64
	require.NoError(t, r.db.QueryRow(t.Context(), `SELECT max(position) FROM event_store`).Scan(&end))
	require.Eventually(t, func() bool {
		var n int
		err := r.db.QueryRow(t.Context(), missing, end).Scan(&n)
		return err == nil && n == 0
	}, projectedIn, 4*tick, "projections catch up")
}
