package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
)

// sender is one client that sends the readings 1, 2, 3 … of an aggregate of its own, each until it is acknowledged. So
// what is stored of it must be 1 … n without a gap, with n the last acknowledged one or, where the acknowledgement was
// lost, the one after it.
type sender struct {
	aggregate string
	acked     int
}

// load is a number of clients at work.
type load struct {
	senders []*sender
	total   atomic.Int64 // acknowledged by all
	cancel  context.CancelFunc
	running sync.WaitGroup
}

// startLoad lets clients send over HTTP and over MQTT until stop.
func startLoad(t testing.TB, p *platform, http, mqtt int) *load {
	t.Helper()
	l := &load{}
	var ctx context.Context
	ctx, l.cancel = context.WithCancel(context.Background())
	t.Cleanup(l.stop)
	for range http {
		l.start(ctx, func(ctx context.Context, s *sender, id string, seq int) error { return p.sendHTTP(ctx, s, id, seq) }, func() {})
	}
	for range mqtt {
		var d *device
		l.start(ctx, func(ctx context.Context, s *sender, id string, seq int) (err error) {
			if d == nil {
				if d, err = dial(ctx, p.mqtt); err != nil {
					d = nil
					return err
				}
			}
			err = d.offer(ctx, "devices/"+s.aggregate+"/events/sensor.reading", payloadOf(seq), "event_id", id, "event_time", timeOf(seq))
			if err != nil { // connect anew: a broker that went has ended the connection
				d.close()
				d = nil
			}
			return err
		}, func() {
			if d != nil {
				d.close()
			}
		})
	}
	return l
}

func (l *load) start(ctx context.Context, send func(ctx context.Context, s *sender, id string, seq int) error, end func()) {
	s := &sender{aggregate: unique("load")}
	l.senders = append(l.senders, s)
	l.running.Go(func() {
		defer end()
		for seq := 1; ; seq++ {
			id := newID()
			for send(ctx, s, id, seq) != nil {
				select {
				case <-ctx.Done():
					return
				case <-time.After(tick): // the platform is away, or overloaded
				}
			}
			s.acked = seq
			l.total.Add(1)
		}
	})
}

func payloadOf(seq int) []byte { return fmt.Appendf(nil, `{"value":%d,"unit":"count"}`, seq) }

func timeOf(seq int) string {
	return time.Date(2026, 2, 7, 10, 0, 0, 0, time.UTC).Add(time.Duration(seq) * time.Second).Format(time.RFC3339)
}

func (p *platform) sendHTTP(ctx context.Context, s *sender, id string, seq int) error {
	body := fmt.Sprintf(`{"event_id":%q,"event_type":"sensor.reading","aggregate_id":%q,"event_time":%q,"payload":%s}`,
		id, s.aggregate, timeOf(seq), payloadOf(seq))
	a, err := request(ctx, http.MethodPost, p.ingestionAPI()+eventsPath, []byte(body), "Content-Type", typeJSON)
	if err == nil && a.status != http.StatusAccepted {
		err = fmt.Errorf("answered %d: %s", a.status, a.body)
	}
	return err
}

// reach waits until that many events more are acknowledged.
func (l *load) reach(t testing.TB, more int64) {
	t.Helper()
	goal := l.total.Load() + more
	require.Eventually(t, func() bool { return l.total.Load() >= goal }, wait, tick, "%d more events are acknowledged", more)
}

// stop ends the clients. What they wait for is given up.
func (l *load) stop() {
	l.cancel()
	l.running.Wait()
}

type tally struct {
	AggregateID string
	Stored      int
	Different   int
	Last        int
	Position    int64
	State       *int
	Seen        *int64
}

// proven shows that everything that was acknowledged is stored once, in order, and projected. The load must have been
// stopped; the platform may be another one on the same data.
func (l *load) proven(t testing.TB, p *platform) {
	t.Helper()
	var aggregates []string
	for _, s := range l.senders {
		aggregates = append(aggregates, s.aggregate)
	}
	db, views := pool(t, p.database), pool(t, p.projectionsDB)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		var left int
		require.NoError(c, db.QueryRow(t.Context(), `SELECT count(*) FROM outbox WHERE aggregate_id = ANY ($1)`, aggregates).Scan(&left))
		require.Zero(c, left, "waiting in the outbox")
		log, err := rows[tally](t.Context(), db, `
			SELECT aggregate_id, count(*)::int AS stored, count(DISTINCT payload->>'value')::int AS different, max((payload->>'value')::int) AS last,
				max(position) AS position, NULL::int AS state, NULL::bigint AS seen
			FROM event_store WHERE aggregate_id = ANY ($1) GROUP BY 1`, aggregates)
		require.NoError(c, err)
		shown, err := rows[tally](t.Context(), views, `
			SELECT aggregate_id, 0 AS stored, 0 AS different, 0 AS last, 0::bigint AS position, (state->>'value')::int AS state, position AS seen
			FROM projections WHERE projection_type = 'sensor_state' AND aggregate_id = ANY ($1)`, aggregates)
		require.NoError(c, err)
		l.compare(c, log, shown)
	}, wait, 4*tick, "acknowledged = stored = projected")
}

func (l *load) compare(c *assert.CollectT, log, shown []tally) {
	stored, projected := map[string]tally{}, map[string]tally{}
	for _, row := range log {
		stored[row.AggregateID] = row
	}
	for _, row := range shown {
		projected[row.AggregateID] = row
	}
	for _, s := range l.senders {
		row := stored[s.aggregate]
		require.Contains(c, []int{s.acked, s.acked + 1}, row.Stored, "stored of %s, with %d acknowledged", s.aggregate, s.acked)
		require.Equal(c, []int{row.Stored, row.Stored}, []int{row.Different, row.Last}, "%s is 1 … n", s.aggregate)
		if row.Stored == 0 {
			continue
		}
		view := projected[s.aggregate]
		require.NotNil(c, view.State, "%s is projected", s.aggregate)
		require.Equal(c, row.Last, *view.State, "state of %s", s.aggregate)
		require.Equal(c, row.Position, *view.Seen, "position of %s", s.aggregate)
	}
}

// published shows that everything that is stored is on the bus, and that in each aggregate nothing new comes with a
// position that is not larger than those before it. What came before a crash may come again.
func (l *load) published(t testing.TB, p *platform) {
	t.Helper()
	last := map[string]int64{}
	for _, s := range l.senders {
		if s.acked > 0 {
			last[s.aggregate] = 0
		}
	}
	missing := map[string]int{}
	for _, s := range l.senders {
		missing[s.aggregate] = s.acked
	}
	done := 0
	seen := map[string]bool{}
	p.listen(t, time.Time{}, "sensor-events").until(t, func(records []*kgo.Record) bool {
		for _, r := range records[done:] {
			highest, ours := last[string(r.Key)]
			id := header(r, "event_id")
			if !ours || seen[id] {
				continue
			}
			seen[id] = true
			var e storedEvent
			require.NoError(t, json.Unmarshal(r.Value, &e))
			require.Greater(t, e.Metadata.Position, highest, "event %s of %s", id, r.Key)
			last[string(r.Key)] = e.Metadata.Position
			missing[string(r.Key)]--
		}
		done = len(records)
		for _, n := range missing {
			if n > 0 {
				return false
			}
		}
		return true
	}, "everything that was acknowledged")
}
