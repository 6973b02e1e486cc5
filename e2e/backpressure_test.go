package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What the platform may take, resident, however much is pushed at it.
const mostMemory = 250 << 20

// brake makes each statement that writes a table slow, until it is released.
func brake(t *testing.T, db *pgxpool.Pool, table string, each time.Duration) (release func()) {
	t.Helper()
	_, err := db.Exec(t.Context(), fmt.Sprintf(`
		CREATE FUNCTION brake() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			PERFORM pg_sleep(%f);
			RETURN NULL;
		END $$;
		CREATE TRIGGER brake BEFORE INSERT OR UPDATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION brake()`, each.Seconds(), table))
	require.NoError(t, err)
	return func() {
		t.Helper()
		_, err := db.Exec(t.Context(), `DROP FUNCTION brake() CASCADE`)
		require.NoError(t, err)
	}
}

// resident returns the memory that a process has.
func (p *process) resident() (int, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("no VmRSS in:\n%s", status)
}

// watchMemory follows the platform's memory until the function that it returns is called, which says that it stayed
// within bounds.
func watchMemory(t *testing.T, p *platform) (bounded func()) {
	t.Helper()
	if _, err := p.process.resident(); err != nil {
		return func() { t.Logf("the platform's memory can't be seen here: %v", err) }
	}
	ctx, cancel := context.WithCancel(t.Context())
	most := make(chan int, 1)
	go func() {
		poll := time.NewTicker(tick)
		defer poll.Stop()
		highest := 0
		for {
			if n, err := p.process.resident(); err == nil {
				highest = max(highest, n)
			}
			select {
			case <-poll.C:
			case <-ctx.Done():
				most <- highest
				return
			}
		}
	}()
	t.Cleanup(cancel)
	return func() {
		t.Helper()
		cancel()
		highest := <-most
		t.Logf("at most %d MiB resident", highest>>20)
		require.Less(t, highest, mostMemory)
	}
}

// count returns the number that a query gives.
func count(t testing.TB, db *pgxpool.Pool, query string, args ...any) int {
	t.Helper()
	var n int
	require.NoError(t, db.QueryRow(t.Context(), query, args...).Scan(&n))
	return n
}

// stored returns how many events of an aggregate are durable. What the relay moves meanwhile is counted once.
func stored(t testing.TB, db *pgxpool.Pool, aggregate string) int {
	t.Helper()
	return count(t, db, `SELECT count(*) FROM (
		SELECT event_id FROM outbox WHERE aggregate_id = $1 UNION SELECT event_id FROM event_store WHERE aggregate_id = $1) AS e`, aggregate)
}

// verdicts are what clients were told about their events.
type verdicts struct {
	mu                          sync.Mutex
	accepted, refused           []string
	withoutRetryAfter, surprise []string
}

func (v *verdicts) note(id string, a answer, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case err != nil: // it is not known
	case a.status == http.StatusAccepted:
		v.accepted = append(v.accepted, id)
	case a.status == http.StatusTooManyRequests:
		v.refused = append(v.refused, id)
		if n, err := strconv.Atoi(a.header.Get("Retry-After")); err != nil || n < 1 || !strings.HasPrefix(a.header.Get("Content-Type"), "application/problem+json") {
			v.withoutRetryAfter = append(v.withoutRetryAfter, fmt.Sprint(a.header))
		}
	case a.status != http.StatusServiceUnavailable: // it waited for too long: it is not known either
		v.surprise = append(v.surprise, fmt.Sprintf("%d: %s", a.status, a.body))
	}
}

func (v *verdicts) counts() (accepted, refused int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.accepted), len(v.refused)
}

// The outbox is slow and more clients come than the queue has room for: they are answered 429, at once and truly, what
// is accepted is stored, and readiness tells of it.
func TestSlowOutboxAnswersTooManyRequests(t *testing.T) {
	t.Parallel()
	const clients, queue = 200, 100
	s := startParts(t)
	p := s.run(t, "--ingest-queue", strconv.Itoa(queue), "--batch-size", "20")
	bounded := watchMemory(t, p)
	db := pool(t, s.ingestionDB)
	release := brake(t, db, "outbox", 300*time.Millisecond)
	aggregate := unique("slow")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	v := &verdicts{}
	var running sync.WaitGroup
	for range clients {
		running.Go(func() {
			for ctx.Err() == nil {
				id := newID()
				body := fmt.Appendf(nil, `{"event_id":%q,"event_type":"sensor.reading","aggregate_id":%q,"payload":{"value":1,"unit":"count"}}`, id, aggregate)
				// A request that is on its way is waited for: what became of it must be known.
				a, err := request(context.WithoutCancel(ctx), http.MethodPost, p.ingestion+eventsPath, body, "Content-Type", typeJSON)
				v.note(id, a, err)
				if err == nil && a.status == http.StatusAccepted {
					continue
				}
				select {
				case <-ctx.Done():
				case <-time.After(4 * tick):
				}
			}
		})
	}
	require.Eventually(t, func() bool {
		accepted, refused := v.counts()
		return accepted >= 3*queue && refused >= 3*queue
	}, wait, tick, "some are accepted, some are not")
	require.Eventually(t, func() bool {
		_, r, err := askHealth(t.Context(), p.ingestion)
		return err == nil && r.Checks["queue"]["status"] == "failing"
	}, wait, tick, "readiness says that the queue is full")
	cancel()
	running.Wait()
	bounded()
	release()

	accepted, refused := v.counts()
	t.Logf("%d accepted, %d refused", accepted, refused)
	require.Empty(t, v.surprise)
	require.Empty(t, v.withoutRetryAfter)
	const known = `SELECT count(*) FROM event_store WHERE event_id = ANY ($1::uuid[])`
	require.Eventually(t, func() bool { return count(t, db, known, v.accepted) == accepted }, wait, 4*tick, "202 means stored")
	require.Zero(t, count(t, db, known, v.refused), "429 means not stored")
	require.Zero(t, count(t, db, `SELECT count(*) FROM outbox WHERE event_id = ANY ($1::uuid[])`, v.refused))
	p.arrives(t)
	p.stop(t)
}

// A slow outbox, and much more pushed at it than it can take, through the batch endpoint with its default queue: what
// there is no room for is refused, not kept.
func TestSlowOutboxFillsNoMemory(t *testing.T) {
	t.Parallel()
	const each, clients, rounds = 1000, 48, 4
	s := startParts(t)
	p := s.run(t)
	bounded := watchMemory(t, p)
	db := pool(t, s.ingestionDB)
	release := brake(t, db, "outbox", time.Second)
	var accepted, refused atomic.Int64
	var running sync.WaitGroup
	aggregate := unique("flood")
	batch := readings(aggregate, each, 2000)
	for range clients {
		running.Go(func() {
			for range rounds {
				a, err := request(t.Context(), http.MethodPost, p.ingestion+batchPath, batch, "Content-Type", typeLines)
				if err == nil && a.status == http.StatusTooManyRequests {
					refused.Add(each)
				}
				accepted.Add(int64(acceptedOf(a)))
			}
		})
	}
	running.Wait()
	t.Logf("%d accepted, %d refused", accepted.Load(), refused.Load())
	require.Positive(t, refused.Load())
	bounded()
	release()
	require.GreaterOrEqual(t, stored(t, db, aggregate), int(accepted.Load()))
	p.arrives(t)
	p.stop(t)
}

// acceptedOf returns how many events of a batch were accepted.
func acceptedOf(a answer) int {
	var body struct{ Accepted int }
	if a.status != http.StatusAccepted || json.Unmarshal(a.body, &body) != nil {
		return 0
	}
	return body.Accepted
}

// readings are n events of an aggregate, one a line, with a payload of about that many bytes.
func readings(aggregate string, n, size int) []byte {
	var b bytes.Buffer
	note := strings.Repeat("x", size)
	for i := range n {
		fmt.Fprintf(&b, `{"event_type":"sensor.bulk","aggregate_id":%q,"event_time":%q,"payload":{"value":%d,"note":%q}}`+"\n",
			aggregate, timeOf(i), i, note)
	}
	return b.Bytes()
}

// What is behind the outbox is slow: clients notice nothing, the events wait on disk and not in memory, and arrive once
// the slowness has ended.
func TestSlowConsumersFillNoMemory(t *testing.T) {
	t.Parallel()
	const aggregates, each, batches = 10, 250, 8 // 20,000 events, 160 MB
	const total = aggregates * each * batches
	for table, waiting := range map[string]func(t *testing.T, ingestion, views *pgxpool.Pool) int{
		"event_store": func(t *testing.T, ingestion, _ *pgxpool.Pool) int {
			return count(t, ingestion, `SELECT count(*) FROM outbox`)
		},
		"projections": func(t *testing.T, ingestion, views *pgxpool.Pool) int {
			return count(t, ingestion, `SELECT count(*) FROM event_store`) -
				count(t, views, `SELECT coalesce(sum(event_count), 0)::int FROM projections`)
		},
	} {
		t.Run(table, func(t *testing.T) {
			t.Parallel()
			s := startParts(t)
			p := s.run(t, "--batch-size", "100")
			bounded := watchMemory(t, p)
			ingestion, views := pool(t, s.ingestionDB), pool(t, s.eventhandlerDB)
			slow, pause := ingestion, time.Second
			if table == "projections" { // written 800 events at a time: slower, or they keep up with a busy machine's clients
				slow, pause = views, 8*time.Second
			}
			release := brake(t, slow, table, pause)
			prefix := unique("pile")
			for range batches {
				for i := range aggregates {
					a := p.post(t, batchPath, typeLines, string(readings(fmt.Sprint(prefix, "-", i), each, 8000)))
					require.Equal(t, each, acceptedOf(a), "%d: %s", a.status, a.body)
				}
			}
			require.Eventually(t, func() bool { return waiting(t, ingestion, views) > total*3/4 }, wait, 4*tick, "events wait before %s", table)
			bounded()
			release()
			require.EventuallyWithT(t, func(c *assert.CollectT) {
				var n int
				require.NoError(c, views.QueryRow(t.Context(),
					`SELECT coalesce(sum(event_count), 0)::int FROM projections WHERE starts_with(aggregate_id, $1)`, prefix).Scan(&n))
				require.Equal(c, total, n)
			}, wait, 10*tick, "all that was accepted is projected, once")
			var shown projection
			status, err := p.get(t.Context(), "/api/v1/projections/sensor_state/"+prefix+"-0", &shown)
			require.NoError(t, err)
			require.Equal(t, http.StatusOK, status)
			var state struct{ Value int }
			require.NoError(t, json.Unmarshal(shown.State, &state))
			require.Equal(t, each-1, state.Value)
			p.stop(t)
		})
	}
}
