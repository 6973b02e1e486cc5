package outbox_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/outbox"
)

// counts is what the relay says of the events that its cursor has passed.
type counts struct {
	Position, Counted, Sensor, User, System, Duplicates int64
}

const readCounts = `SELECT position, counted,
	coalesce((SELECT events FROM relay_counts WHERE topic = 'sensor-events'), 0),
	coalesce((SELECT events FROM relay_counts WHERE topic = 'user-actions'), 0),
	coalesce((SELECT events FROM relay_counts WHERE topic = 'system-events'), 0), duplicates
	FROM relay_cursor WHERE name = 'bus'`

func (s *store) counts() (c counts) {
	s.t.Helper()
	require.NoError(s.t, s.pool.QueryRow(s.t.Context(), readCounts).Scan(&c.Position, &c.Counted, &c.Sensor, &c.User, &c.System, &c.Duplicates))
	return c
}

// logged counts the log itself, up to where relay_cursor says that it has counted.
func (s *store) logged(upTo int64) (c counts) {
	s.t.Helper()
	rows, err := s.pool.Query(s.t.Context(), `SELECT event_type FROM event_store WHERE position <= $1`, upTo)
	require.NoError(s.t, err)
	defer rows.Close()
	for rows.Next() {
		var kind string
		require.NoError(s.t, rows.Scan(&kind))
		switch event.Topic(kind) {
		case event.TopicSensor:
			c.Sensor++
		case event.TopicUser:
			c.User++
		default:
			c.System++
		}
	}
	require.NoError(s.t, rows.Err())
	return c
}

// settled waits until the cursor stands at the end of the log, and requires that its counts are those of the log.
func (s *store) settled() counts {
	s.t.Helper()
	newest := scan[int64](s, "SELECT coalesce(max(position), 0) FROM event_store")
	require.EventuallyWithT(s.t, func(c *assert.CollectT) { require.Equal(c, newest, s.counts().Position) }, soon, tick)
	got, want := s.counts(), s.logged(newest)
	require.Equal(s.t, []int64{want.Sensor, want.User, want.System}, []int64{got.Sensor, got.User, got.System})
	require.Equal(s.t, got.Position, got.Counted)
	return got
}

func ofType(kind string, value int) event.Envelope {
	e := newEvent("a", value)
	e.Type = kind
	return e
}

func TestTheCursorCountsWhatItPasses(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{})
	kinds := []string{"sensor.reading", "sensor.", "sensor.a.b", "user.login", "system.alert", "sensors.x", "ai.anomaly", "user-x.y", "x.user"}
	var events []event.Envelope
	for i, kind := range kinds {
		events = append(events, ofType(kind, i))
	}
	first, out := s.start(outbox.SubscriberConfig{})
	require.NoError(t, p.Ingest(t.Context(), events))
	nextAcked(t, out, len(kinds))
	require.Equal(t, counts{Position: 9, Counted: 9, Sensor: 3, User: 1, System: 5}, s.settled())
	drain(t, first, out)

	t.Run("set back, they are published again and count once", func(t *testing.T) {
		s.exec("UPDATE relay_cursor SET position = 0")
		again, out := s.start(outbox.SubscriberConfig{})
		nextAcked(t, out, len(kinds))
		require.Equal(t, counts{Position: 9, Counted: 9, Sensor: 3, User: 1, System: 5}, s.settled())
		drain(t, again, out)
	})
	t.Run("moved by a relay that does not count, they count later", func(t *testing.T) {
		s.exec("UPDATE relay_cursor SET counted = 0")
		s.exec("DELETE FROM relay_counts")
		later, out := s.start(outbox.SubscriberConfig{})
		require.NoError(t, p.Store(t.Context(), ofType("user.login", 10)))
		nextAcked(t, out, 1)
		require.Equal(t, counts{Position: 10, Counted: 10, Sensor: 3, User: 2, System: 5}, s.settled())
		drain(t, later, out)
	})
}

// Asked to, the relay publishes again from a position on, and the counts stay.
func TestRepublish(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{})
	_, _, err := outbox.Republish(t.Context(), s.pool, 1)
	require.ErrorIs(t, err, outbox.ErrNotLogged)
	sub, out := s.start(outbox.SubscriberConfig{Poll: 20 * time.Millisecond})
	var events []event.Envelope
	for i := range 9 {
		events = append(events, newEvent("a", i))
	}
	require.NoError(t, p.Ingest(t.Context(), events))
	nextAcked(t, out, 9)
	before := s.settled()

	n, leads, err := outbox.Republish(t.Context(), s.pool, 4)
	require.NoError(t, err)
	require.Equal(t, []any{int64(6), true}, []any{n, leads})
	require.Equal(t, []int64{4, 5, 6, 7, 8, 9}, positions(nextAcked(t, out, 6)))
	require.Equal(t, before, s.settled())
	drain(t, sub, out)

	require.Eventually(t, func() bool { // the next relay does it
		n, leads, err = outbox.Republish(t.Context(), s.pool, 9)
		return err == nil && n == 1 && !leads
	}, soon, tick, "the session of the last one has ended")
	_, out = s.subscribe(outbox.SubscriberConfig{})
	require.Equal(t, []int64{9}, positions(nextAcked(t, out, 1)))
	require.Equal(t, before, s.settled())
}

func TestDuplicatesAreCounted(t *testing.T) {
	t.Parallel()
	for _, batch := range []int{1, 3, 1000} {
		t.Run(fmt.Sprint(batch), func(t *testing.T) {
			t.Parallel()
			s := newStore(t, "")
			p := s.publisher(outbox.PublisherConfig{})
			_, out := s.subscribe(outbox.SubscriberConfig{MaxBatch: batch})
			a, b, c := newEvent("a", 0), newEvent("a", 1), newEvent("a", 2)
			require.NoError(t, p.Ingest(t.Context(), []event.Envelope{a, a, b, a, b, c}))
			require.NoError(t, p.Ingest(t.Context(), []event.Envelope{c, a}))
			require.NoError(t, p.Ingest(t.Context(), []event.Envelope{newEvent("a", 3)}))
			require.Equal(t, "0 1 2 3", payloads(nextAcked(t, out, 4)))
			got := s.settled()
			require.EqualValues(t, 4, got.Sensor)
			require.EqualValues(t, 5, got.Duplicates)
		})
	}
}

// Two relays, the leader killed over and over, each event acknowledged late or twice: what the cursor says is at every
// moment what the log holds up to there, and at the end it is everything.
func TestTheCountsSurviveTakeOvers(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("relays that take over again and again")
	}
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{})
	cfg := outbox.SubscriberConfig{Poll: 20 * time.Millisecond, MaxBatch: 7, Window: 30, CloseTimeout: 10 * time.Millisecond}
	_, out1 := s.subscribe(cfg)
	_, out2 := s.subscribe(cfg)
	const total = 600
	kinds := []string{"sensor.reading", "user.login", "system.alert"}
	go func() {
		for i := range total {
			e := ofType(kinds[i%3], i)
			events := []event.Envelope{e}
			if i%10 == 0 {
				events = append(events, e)
			}
			if err := p.Ingest(t.Context(), events); err != nil {
				t.Error(err)
			}
		}
	}()
	seen := map[string]bool{}
	for len(seen) < total {
		var m *message.Message
		select {
		case m = <-out1:
		case m = <-out2:
		case <-time.After(soon):
			require.FailNow(t, "no message")
		}
		if !seen[m.UUID] {
			if seen[m.UUID] = true; len(seen)%50 == 0 {
				s.killLeader()
				now := s.counts()
				want := s.logged(now.Counted)
				require.Equal(t, []int64{want.Sensor, want.User, want.System}, []int64{now.Sensor, now.User, now.System})
			}
		}
		m.Ack()
	}
	var rest sync.WaitGroup // what the last take-over repeats
	for _, out := range []<-chan *message.Message{out1, out2} {
		rest.Go(func() {
			for m := range out {
				m.Ack()
			}
		})
	}
	got := s.settled()
	require.EqualValues(t, total, got.Sensor+got.User+got.System)
	require.EqualValues(t, total/10, got.Duplicates)
}

// A relay that has lost the lock and does not know it must not count what its successor has counted.
func TestTwoCursorsCountOnce(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{})
	cfg := outbox.SubscriberConfig{Poll: 20 * time.Millisecond}
	first, out1 := s.batches(cfg)
	require.Eventually(t, func() bool { return first.State().Leading }, soon, tick)
	var events []event.Envelope
	for i := range 20 {
		events = append(events, newEvent("a", i))
	}
	require.NoError(t, p.Ingest(t.Context(), events))
	held, records := nextBatch(t, out1)
	require.Len(t, records, 20)
	second, out2 := s.start(cfg)
	s.killLeader()
	held.Ack() // by the bus, while the lock is lost
	deadline := time.After(soon)
	for s.counts().Position < 20 {
		select {
		case m := <-out2:
			m.Ack()
		case m := <-out1:
			m.Ack()
		case <-time.After(tick):
		case <-deadline:
			require.FailNow(t, "the cursor does not move", "%+v", s.counts())
		}
	}
	require.EqualValues(t, 20, s.settled().Sensor)
	drain(t, first, out1)
	drain(t, second, out2)
	require.EqualValues(t, 20, s.settled().Sensor)
}
