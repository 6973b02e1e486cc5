package outbox_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/batch"
	"github.com/cornjacket/platform-services/pubsub/outbox"
)

func TestSubscriberSequences(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{})
	sub, out := s.subscribe(outbox.SubscriberConfig{MaxBatch: 7})
	const total = 50
	var events []event.Envelope
	for i := range total {
		events = append(events, newEvent(fmt.Sprint("device-", i%3), i))
	}
	require.NoError(t, p.Ingest(t.Context(), events))
	for i, r := range nextAcked(t, out, total) {
		require.EqualValues(t, i+1, r.Metadata.Position)
		require.Equal(t, events[i].ID, r.ID)
		got := batch.From(r.msg).Records()[0]
		got.Value = nil
		require.Equal(t, batch.Record{
			Topic: outbox.Topic, Partition: -1, Offset: int64(i + 1), Key: r.AggregateID, ID: r.ID.String(),
			Headers: []batch.Header{{Key: event.MetaCorrelationID, Value: "c-1"}, {Key: event.MetaEventType, Value: "sensor.reading"}},
		}, got)
	}
	require.Zero(t, s.count("outbox"))
	require.Equal(t, values(0, total), s.stored())
	require.Eventually(t, func() bool { return sub.Published() == total && sub.Oldest().IsZero() }, soon, tick)
	require.Eventually(t, func() bool {
		return scan[int64](s, "SELECT position FROM relay_cursor WHERE name = 'bus'") == total
	}, soon, tick, "the cursor is saved while the relay runs")
	st := sub.State()
	require.True(t, st.Leading)
	require.NoError(t, st.Err)
	require.EqualValues(t, total, st.Sequenced)
}

func TestSubscriberSkipsRepeatedEvents(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{})
	first, other := newEvent("a", 1), newEvent("a", 2)
	again := newEvent("b", 99)
	again.ID = first.ID
	require.NoError(t, p.Ingest(t.Context(), []event.Envelope{first, again, other, first}), "in one batch")
	sub, out := s.start(outbox.SubscriberConfig{})
	before := nextAcked(t, out, 2)
	require.NoError(t, p.Ingest(t.Context(), []event.Envelope{again, other, newEvent("a", 3)}), "across batches")
	before = append(before, nextAcked(t, out, 1)...)
	require.NoError(t, p.Ingest(t.Context(), []event.Envelope{other, other}), "nothing but those")
	require.Eventually(t, func() bool { return s.count("outbox") == 0 }, soon, tick)
	drain(t, sub, out)
	_, out = s.subscribe(outbox.SubscriberConfig{})
	require.NoError(t, p.Ingest(t.Context(), []event.Envelope{first, newEvent("a", 4)}), "after a restart")
	before = append(before, nextAcked(t, out, 1)...)
	require.Equal(t, "1 2 3 4", payloads(before))
	require.Equal(t, "1 2 3 4", s.stored())
	for i, pos := range positions(before)[1:] {
		require.Greater(t, pos, positions(before)[i])
	}
}

// Many publishers, several restarts of the relay: positions are the order of the log, unique, and per publisher and
// aggregate the order of the calls.
func TestSubscriberPositionsGrowUnderConcurrency(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	const publishers, calls = 4, 60
	var wg sync.WaitGroup
	for n := range publishers {
		p := s.publisher(outbox.PublisherConfig{MaxBatch: 3})
		wg.Go(func() {
			for i := range calls {
				if err := p.Store(t.Context(), newEvent(fmt.Sprint(n), i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	var all []received
	for len(all) < publishers*calls {
		sub, out := s.start(outbox.SubscriberConfig{MaxBatch: 5, Poll: 50 * time.Millisecond})
		all = append(all, nextAcked(t, out, min(70, publishers*calls-len(all)))...)
		rest := make(chan []received)
		go func() {
			var more []received
			for m := range out {
				e, err := event.Unmarshal(m.Payload)
				if err != nil {
					t.Error(err)
				}
				m.Ack()
				more = append(more, received{Envelope: e, msg: m})
			}
			rest <- more
		}()
		require.NoError(t, sub.Close())
		all = append(all, <-rest...)
	}
	wg.Wait()
	last := int64(0)
	of := map[string]int{}
	for _, r := range all {
		require.Greater(t, r.Metadata.Position, last, "no position twice: every end was a clean one")
		last = r.Metadata.Position
		require.Equal(t, fmt.Sprint(of[r.AggregateID]), value(r.Envelope), "aggregate %s", r.AggregateID)
		of[r.AggregateID]++
	}
	require.Equal(t, publishers*calls, s.count("event_store"))
	require.Len(t, all, publishers*calls)
}

// One batch is in flight, of no more than the window; the log goes on being sequenced, and the rest is read from it.
func TestSubscriberWindowIsBound(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{})
	sub, out := s.batches(outbox.SubscriberConfig{Window: 5, MaxBatch: 10})
	defer func() { require.NoError(t, sub.Close()) }()
	var events []event.Envelope
	for i := range 100 {
		events = append(events, newEvent("a", i))
	}
	require.NoError(t, p.Ingest(t.Context(), events))
	m, records := nextBatch(t, out)
	require.Len(t, records, 5)
	require.False(t, sub.Oldest().IsZero())
	require.Eventually(t, func() bool { return s.count("event_store") == 100 }, soon, tick, "the bus is away")
	require.Empty(t, out)
	batch.From(m).Done(2)
	m.Nack()
	m, records = nextBatch(t, out)
	require.Len(t, records, 3, "with what is left of it")
	require.EqualValues(t, 3, records[0].Offset)
	m.Ack()
	require.Eventually(t, func() bool { return sub.Published() == 5 }, soon, tick)
	for at := int64(6); at <= 100; {
		m, records := nextBatch(t, out)
		require.LessOrEqual(t, len(records), 5)
		for _, r := range records {
			require.Equal(t, at, r.Offset)
			at++
		}
		m.Ack()
	}
}

func TestSubscriberHandsOutAgain(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{})
	sub, out := s.batches(outbox.SubscriberConfig{})
	defer func() { require.NoError(t, sub.Close()) }()
	require.NoError(t, p.Ingest(t.Context(), []event.Envelope{newEvent("a", 0), newEvent("a", 1), newEvent("b", 2)}))
	first, records := nextBatch(t, out)
	first.Nack()
	again, same := nextBatch(t, out)
	require.Equal(t, records, same, "with the same positions")
	again.Ack()
	require.Eventually(t, func() bool { return sub.Published() == 3 }, soon, tick)
	select {
	case <-again.Context().Done():
	case <-time.After(soon):
		require.FailNow(t, "the context of a message ends when it is done")
	}
}

// Crash: what was not acknowledged comes again with the same positions.
func TestSubscriberRepeatsFromTheCursor(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{})
	sub, out := s.batches(outbox.SubscriberConfig{CloseTimeout: 10 * time.Millisecond})
	const total = 1200 // more than is read at once
	var events []event.Envelope
	for i := range total {
		events = append(events, newEvent(fmt.Sprint(i%5), i))
	}
	require.NoError(t, p.Ingest(t.Context(), events))
	m, before := nextBatch(t, out)
	batch.From(m).Done(20)
	m.Nack()
	m, _ = nextBatch(t, out)
	require.Eventually(t, func() bool { return s.count("event_store") == total }, soon, tick)
	require.NoError(t, sub.Close())
	_, open := <-out
	require.False(t, open)
	require.ErrorIs(t, m.Context().Err(), context.Canceled, "it is given up")
	require.EqualValues(t, 20, scan[int64](s, "SELECT position FROM relay_cursor WHERE name = 'bus'"))

	require.NoError(t, p.Ingest(t.Context(), []event.Envelope{newEvent("x", total)}))
	_, out = s.subscribe(outbox.SubscriberConfig{})
	after := nextAcked(t, out, total-20+1)
	for i, r := range before[20:] {
		e, err := event.Unmarshal(r.Value)
		require.NoError(t, err)
		requireSame(t, e, after[i].Envelope)
	}
	require.EqualValues(t, total+1, after[total-20].Metadata.Position)
}

func TestSubscriberWakesOnNotification(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{})
	_, out := s.subscribe(outbox.SubscriberConfig{Poll: time.Hour})
	require.NoError(t, p.Store(t.Context(), newEvent("a", 0)))
	nextAcked(t, out, 1)
	require.Eventually(t, func() bool {
		return scan[int](s, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN %'") == 1
	}, soon, tick)
	best := time.Hour
	for i := range 20 {
		began := time.Now()
		require.NoError(t, p.Store(t.Context(), newEvent("a", i)))
		nextAcked(t, out, 1)
		best = min(best, time.Since(began))
	}
	require.Less(t, best, time.Second, "the poll comes once an hour")
}

func TestSubscriberIgnoresOwnNotifications(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	own, other := s.publisher(outbox.PublisherConfig{}), s.publisher(outbox.PublisherConfig{})
	sub, out := s.subscribe(outbox.SubscriberConfig{Poll: time.Hour, Ignore: own.ID()})
	require.NoError(t, other.Store(t.Context(), newEvent("a", 0)))
	nextAcked(t, out, 1)
	require.Eventually(t, func() bool {
		return scan[int](s, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN %' AND state = 'idle'") == 1
	}, soon, tick)
	require.NoError(t, other.Store(t.Context(), newEvent("a", 1)))
	nextAcked(t, out, 1)
	// Looks that are due already may find an event of our own, but not one each time.
	for attempt := range 5 {
		require.NoError(t, own.Store(t.Context(), newEvent("a", 2)))
		select {
		case m := <-out:
			require.Less(t, attempt, 4, "woken by notifications to ignore")
			m.Ack()
			continue
		case <-time.After(200 * time.Millisecond):
		}
		break
	}
	sub.Wake()
	require.Equal(t, "2", payloads(nextAcked(t, out, 1)))
}

func TestSubscriberCloseDrains(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{})
	sub, out := s.batches(outbox.SubscriberConfig{Window: 10})
	var events []event.Envelope
	for i := range 30 {
		events = append(events, newEvent("a", i))
	}
	require.NoError(t, p.Ingest(t.Context(), events))
	m, records := nextBatch(t, out)
	require.Len(t, records, 10)
	closed := make(chan error, 1)
	go func() { closed <- sub.Close() }()
	require.Eventually(t, func() bool {
		_, err := sub.Subscribe(t.Context(), outbox.Topic)
		return err != nil
	}, soon, tick, "it is closing")
	require.Empty(t, closed)
	m.Ack()
	require.NoError(t, <-closed)
	_, open := <-out
	require.False(t, open)
	require.EqualValues(t, 10, scan[int64](s, "SELECT position FROM relay_cursor WHERE name = 'bus'"))
	require.False(t, sub.State().Leading)
	_, rest := s.subscribe(outbox.SubscriberConfig{})
	require.Equal(t, values(10, 30), payloads(nextAcked(t, rest, 20)), "the rest, and nothing twice")
}

// Subscriptions that end at any moment, in the middle of statements too, lose nothing and give no position twice.
func TestSubscriberEndsAtAnyMoment(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{})
	const total = 1000
	var events []event.Envelope
	for i := range total {
		events = append(events, newEvent(fmt.Sprint(i%5), i))
	}
	require.NoError(t, p.Ingest(t.Context(), events))
	sub := outbox.NewSubscriber(s.pool, outbox.SubscriberConfig{MaxBatch: 5, Window: 40, Poll: 5 * time.Millisecond, CloseTimeout: time.Millisecond})
	defer func() { require.NoError(t, sub.Close()) }()
	position := map[string]int64{}
	for round := 0; len(position) < total; round++ {
		ctx, cancel := context.WithCancel(t.Context())
		batches, err := sub.Subscribe(ctx, outbox.Topic)
		require.NoError(t, err)
		out := single(batches)
		for n := 1; ; n++ {
			m, ok := <-out
			if !ok {
				break
			}
			e, err := event.Unmarshal(m.Payload)
			require.NoError(t, err)
			if before, ok := position[m.UUID]; ok {
				require.Equal(t, before, e.Metadata.Position)
			}
			position[m.UUID] = e.Metadata.Position
			m.Ack()
			if n > round%50 || len(position) == total {
				cancel()
			}
		}
		cancel()
	}
	require.Equal(t, values(0, total), s.stored())
	seen := map[int64]bool{}
	for _, pos := range position {
		require.False(t, seen[pos])
		seen[pos] = true
	}
}

// Plans are made when the outbox is next to empty, and kept when it is full: none may read all of it.
func TestSubscriberNeverScansTheOutbox(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{})
	const scans = "SELECT coalesce(%s, 0) FROM pg_stat_user_tables WHERE relname = 'outbox'"
	sub, out := s.start(outbox.SubscriberConfig{})
	for i := range 20 { // more often than until a plan is kept
		require.NoError(t, p.Store(t.Context(), newEvent("a", i)))
		nextAcked(t, out, 1)
	}
	s.exec(insertRow, "sensor.reading", "bad", "now", `{"a":"\u0000"}`, `{}`)
	sub.Wake()
	require.Eventually(t, func() bool { return s.count("dlq") == 1 }, soon, tick)
	drain(t, sub, out) // a session reports its statistics when it ends
	require.Eventually(t, func() bool { return scan[int](s, fmt.Sprintf(scans, "idx_scan")) > 20 }, soon, tick)
	require.Less(t, scan[int](s, fmt.Sprintf(scans, "seq_scan")), 5, "making the table and its index may count as some")
}
