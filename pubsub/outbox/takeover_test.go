package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/batch"
	"github.com/cornjacket/platform-services/pubsub/outbox"
)

// killLeader ends the session that holds the relay's lock, as an administrator would, as soon as there is one.
func (s *store) killLeader() {
	s.t.Helper()
	require.Eventually(s.t, func() bool {
		return scan[bool](s, `SELECT coalesce(bool_or(pg_terminate_backend(pid)), false) FROM pg_locks JOIN pg_database d ON d.oid = database
			WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND granted AND objsubid = 2 AND classid = x'636f726e'::int::oid AND datname = current_database()`)
	}, soon, tick)
}

func TestSubscriberTakesOver(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{})
	cfg := outbox.SubscriberConfig{Poll: 20 * time.Millisecond, CloseTimeout: 10 * time.Millisecond}
	first, out1 := s.batches(cfg)
	require.Eventually(t, func() bool { return first.State().Leading }, soon, tick)
	second, out2 := s.subscribe(cfg)
	require.Eventually(t, func() bool { return !second.State().LastRound.IsZero() }, soon, tick)
	var events []event.Envelope
	for i := range 10 {
		events = append(events, newEvent("a", i))
	}
	require.NoError(t, p.Ingest(t.Context(), events))
	held, records := nextBatch(t, out1)
	require.Len(t, records, 10)
	batch.From(held).Done(4)
	held.Nack()
	held, _ = nextBatch(t, out1)
	require.False(t, second.State().Leading)
	select {
	case m := <-out2:
		require.FailNow(t, "only one may lead", "%s", m.Payload)
	case <-time.After(100 * time.Millisecond):
	}

	// The first comes back too late: it finds out at its next round trip. What it has in flight does not count any more.
	s.killLeader()
	require.Eventually(t, func() bool { return second.State().Leading }, soon, tick)
	after := nextAcked(t, out2, 10)
	for i, r := range after {
		require.Equal(t, records[i].ID, r.ID.String())
		require.Equal(t, records[i].Offset, r.Metadata.Position)
	}
	require.Eventually(t, func() bool { s := first.State(); return !s.Leading && s.Err == nil }, soon, tick, "it stands by again")
	held.Nack()
	require.Eventually(t, func() bool { return held.Context().Err() != nil }, soon, tick, "it is not handed out again")
	require.NoError(t, p.Store(t.Context(), newEvent("a", 10)))
	more := nextAcked(t, out2, 1)
	require.EqualValues(t, 11, more[0].Metadata.Position)

	drain(t, second, out2)
	require.Eventually(t, func() bool { return first.State().Leading }, soon, tick)
	require.NoError(t, p.Store(t.Context(), newEvent("a", 11)))
	last, records := nextBatch(t, out1)
	require.Len(t, records, 1, "nothing twice after a clean end")
	require.EqualValues(t, 12, records[0].Offset)
	last.Ack()
	drain(t, first, out1)
}

// A leader that publishes nothing of what waits is replaced by who stands by, if that one reaches the bus.
func TestStandbyReplacesALeaderThatDoesNothing(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{})
	cfg := outbox.SubscriberConfig{Poll: 20 * time.Millisecond, CloseTimeout: 10 * time.Millisecond}
	first, out1 := s.batches(cfg)
	require.Eventually(t, func() bool { return first.State().Leading }, soon, tick)
	reached := &busStub{err: errors.New("away")}
	cfg.Idle, cfg.Bus = 500*time.Millisecond, reached
	second, out2 := s.subscribe(cfg)
	require.NoError(t, p.Store(t.Context(), newEvent("a", 0)))
	held, _ := nextBatch(t, out1)
	flowing, stop := context.WithCancel(t.Context())
	defer stop()
	go func() { // what comes in is sequenced all the time
		for i := 1; flowing.Err() == nil; i++ {
			if p.Store(context.Background(), newEvent("a", i)) != nil {
				return
			}
		}
	}()
	require.Eventually(t, func() bool { return second.State().Idle > 0 }, soon, tick, "it says so")
	require.Eventually(t, func() bool { return reached.asked() > 0 }, soon, tick)
	require.True(t, first.State().Leading, "who can't publish does not take over")
	stop()
	reached.set(nil)
	all := nextAcked(t, out2, 2)
	require.Equal(t, []int64{1, 2}, positions(all))
	require.True(t, second.State().Leading)
	require.Zero(t, second.State().Idle)
	held.Ack() // too late, and no harm
	drain(t, first, out1)
}

// busStub is an empty bus.
type busStub struct {
	mu    sync.Mutex
	err   error
	times int
}

func (b *busStub) set(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}

func (b *busStub) asked() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.times
}

// Newest implements [outbox.Bus].
func (b *busStub) Newest(context.Context) (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.times++
	return 0, b.err
}

// Since implements [outbox.Bus].
func (*busStub) Since(context.Context, time.Time, func([]event.Envelope) error) error { return nil }

// The leader dies over and over while events come in: everything comes, in order, each with one position.
func TestSubscriberSurvivesLostConnections(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{})
	cfg := outbox.SubscriberConfig{Poll: 20 * time.Millisecond, MaxBatch: 3, Window: 20}
	_, out1 := s.subscribe(cfg)
	_, out2 := s.subscribe(cfg)
	const total = 400
	go func() {
		for i := range total {
			if err := p.Store(context.Background(), newEvent(fmt.Sprint(i%3), i)); err != nil {
				t.Error(err)
			}
		}
	}()
	position := map[string]int64{}
	for len(position) < total {
		var m *message.Message
		select {
		case m = <-out1:
		case m = <-out2:
		case <-time.After(soon):
			require.FailNow(t, "no message")
		}
		e, err := event.Unmarshal(m.Payload)
		require.NoError(t, err)
		if before, ok := position[m.UUID]; ok {
			require.Equal(t, before, e.Metadata.Position)
		} else if position[m.UUID] = e.Metadata.Position; len(position)%80 == 0 {
			s.killLeader()
		}
		m.Ack()
	}
	require.Equal(t, values(0, total), s.stored())
	require.Equal(t, total, scan[int](s, "SELECT count(DISTINCT position) FROM event_store"))
}

const insertRow = `INSERT INTO outbox (event_id, event_type, aggregate_id, event_time, ingested_at, payload, metadata)
	VALUES (gen_random_uuid(), $1, $2, $3::timestamptz, now(), $4::text::json, $5::text::json)`

// Rows that somebody wrote past our door: what the log can't hold, and what it can but no envelope can.
func TestSubscriberSetsBadRowsAside(t *testing.T) {
	t.Parallel()
	const ok = `{"source":"http","correlation_id":"c-9","schema_version":1}`
	bad := []struct{ aggregate, at, payload, metadata, reason, correlation string }{
		{"nul", "now", `{"a":"\u0000"}`, ok, "unsupported Unicode escape sequence", "c-9"},
		{"surrogate", "now", `{"a":"\ud800"}`, ok, "invalid input syntax for type json", "c-9"},
		{"metadata-nul", "now", `{}`, `{"correlation_id":"\u0000"}`, "unsupported Unicode escape sequence", ""},
		{"number", "now", `{"a":1e999999}`, ok, "value overflows numeric format", "c-9"},
		{"infinity", "infinity", `{}`, ok, "infinite time", "c-9"},
		{"bc", "0044-03-15 BC", `{}`, ok, "", "c-9"},
		{"metadata-array", "now", `{}`, `[]`, "metadata", ""},
		{"metadata-number", "now", `{}`, `{"schema_version":"x"}`, "metadata", ""},
		{"duplicate", "now", `{"a":1,"a":2}`, ok, "duplicate", "c-9"},
	}
	for _, batch := range []int{1, 4, 1000} {
		t.Run(fmt.Sprint(batch), func(t *testing.T) {
			t.Parallel()
			s := newStore(t, "")
			n := 0
			good := func(count int) {
				for range count {
					s.exec(insertRow, "sensor.reading", "good", "now", fmt.Sprintf(`{"value":%d}`, n), ok)
					n++
				}
			}
			good(5)
			for _, b := range bad {
				s.exec(insertRow, "user.login", b.aggregate, b.at, b.payload, b.metadata)
				good(3)
			}
			sub, out := s.start(outbox.SubscriberConfig{MaxBatch: batch})
			require.Equal(t, values(0, n), payloads(nextAcked(t, out, n)))
			require.Eventually(t, func() bool { return s.count("outbox") == 0 && s.count("dlq") == len(bad) }, soon, tick)
			for _, b := range bad {
				var reason, correlation, payload, topic, source string
				require.NoError(t, s.pool.QueryRow(t.Context(), `SELECT error_message, coalesce(correlation_id, ''),
					convert_from(event_payload, 'UTF8'), bus_topic, source_topic
					FROM dlq WHERE message_key = $1 AND consumer = 'relay' AND event_id IS NOT NULL`, b.aggregate).
					Scan(&reason, &correlation, &payload, &topic, &source), b.aggregate)
				require.Contains(t, reason, b.reason, b.aggregate)
				require.Equal(t, b.correlation, correlation, b.aggregate)
				require.Equal(t, "user-actions.dlq", topic)
				require.Equal(t, outbox.Topic, source)
				if b.aggregate != "duplicate" { // jsonb keeps the last one
					require.Contains(t, payload, b.payload)
				}
			}
			drain(t, sub, out)
			s.exec("UPDATE relay_cursor SET position = 0")
			_, out = s.subscribe(outbox.SubscriberConfig{MaxBatch: batch})
			var again []received
			for len(again) < n { // the duplicate can be read now: the log has mended it
				if r := nextAcked(t, out, 1)[0]; r.AggregateID == "good" {
					again = append(again, r)
				}
			}
			require.Equal(t, values(0, n), payloads(again), "a relay that takes over passes them too")
			require.Equal(t, len(bad), s.count("dlq"), "none is a dead letter twice")
		})
	}
}

// A row with a smaller ID that is committed late must not be taken for the bad one.
func TestSubscriberSetsAsideTheRightRow(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	const rounds = 40
	_, out := s.subscribe(outbox.SubscriberConfig{MaxBatch: 2, Poll: time.Millisecond})
	done := make(chan error, 1)
	go func() {
		for i := range rounds {
			tx, err := s.pool.Begin(context.Background())
			if err != nil {
				done <- err
				return
			}
			_, err = tx.Exec(context.Background(), insertRow, "sensor.reading", "good", "now", fmt.Sprintf(`{"value":%d}`, i), `{}`)
			if err == nil {
				_, err = s.pool.Exec(context.Background(), insertRow, "sensor.reading", "bad", "now", `{"a":"\u0000"}`, `{}`)
			}
			if err == nil {
				err = tx.Commit(context.Background())
			}
			if err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	require.Equal(t, values(0, rounds), payloads(nextAcked(t, out, rounds)))
	require.NoError(t, <-done)
	require.Eventually(t, func() bool { return s.count("dlq") == rounds }, soon, tick)
	require.Equal(t, rounds, scan[int](s, "SELECT count(*) FROM dlq WHERE message_key = 'bad'"))
}

// A position that is taken says that somebody else has sequenced: no row is to blame.
func TestSubscriberReadsThePositionAnew(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{})
	_, out := s.subscribe(outbox.SubscriberConfig{Poll: time.Hour})
	require.NoError(t, p.Store(t.Context(), newEvent("a", 0)))
	nextAcked(t, out, 1)
	require.Eventually(t, func() bool { return scan[int64](s, "SELECT position FROM relay_cursor") == 1 }, soon, tick)
	s.exec(`INSERT INTO event_store SELECT gen_random_uuid(), event_type, aggregate_id, event_time, ingested_at, '{"value":1}', metadata, 2 FROM event_store`)
	require.NoError(t, p.Store(t.Context(), newEvent("a", 2)))
	all := nextAcked(t, out, 2)
	require.Equal(t, "1 2", payloads(all))
	require.Equal(t, []int64{2, 3}, positions(all))
	require.Zero(t, s.count("dlq"))
}
