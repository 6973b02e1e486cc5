package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/pubsub/batch"
	"github.com/cornjacket/platform-services/pubsub/outbox"
)

// hold keeps the outbox locked until the returned function is called, so that callers gather.
func (s *store) hold() (release func()) {
	s.t.Helper()
	tx, err := s.pool.Begin(context.Background())
	require.NoError(s.t, err)
	_, err = tx.Exec(context.Background(), "LOCK TABLE outbox IN EXCLUSIVE MODE")
	require.NoError(s.t, err)
	return sync.OnceFunc(func() { require.NoError(s.t, tx.Commit(context.Background())) })
}

// awaitBlocked waits until a statement waits for the lock on the outbox.
func (s *store) awaitBlocked() {
	s.t.Helper()
	require.Eventually(s.t, func() bool {
		return scan[int](s, "SELECT count(*) FROM pg_locks WHERE relation = 'outbox'::regclass AND NOT granted") > 0
	}, soon, tick)
}

func TestPublisherCommitsInGroups(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	var flushes, commits atomic.Int32
	p := s.publisher(outbox.PublisherConfig{
		OnFlush:  func(int, error) { flushes.Add(1) },
		OnCommit: func() { commits.Add(1) },
	})
	release := s.hold()
	defer release()
	const callers = 300
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			if err := p.Ingest(t.Context(), []event.Envelope{newEvent("a", i), newEvent("b", i)}); err != nil {
				t.Error(err)
			}
		})
	}
	require.Eventually(t, func() bool { return p.Queued() == 2*callers }, soon, tick)
	require.Zero(t, s.count("outbox"), "nothing is durable yet, and nobody was answered")
	release()
	wg.Wait()
	require.Equal(t, 2*callers, s.count("outbox"))
	require.LessOrEqual(t, scan[int](s, "SELECT count(DISTINCT xmin::text) FROM outbox"), 2, "what came first, and all that gathered meanwhile")
	require.LessOrEqual(t, flushes.Load(), int32(2))
	require.Equal(t, flushes.Load(), commits.Load())
	require.Zero(t, p.Queued())
}

func TestPublisherStoresWhatItWasGiven(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{})
	e := newEvent("Gerät-1", 1)
	e.Time = time.Date(1, 1, 1, 0, 0, 0, 1000, time.UTC)
	e.IngestedAt = time.Date(9999, 12, 31, 23, 59, 59, 999999000, time.UTC)
	e.Payload = []byte(`{"b":1.50,"a":"\u00e9 <&>","n":123456789012345678901234567890}`)
	e.Metadata = event.Metadata{Source: "mqtt", CorrelationID: "c\"'", Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", SchemaVersion: 1}
	require.NoError(t, p.Store(t.Context(), e))
	_, out := s.subscribe(outbox.SubscriberConfig{})
	got := next(t, out)
	got.msg.Ack()
	e.Metadata.Position = 1
	require.Equal(t, e, got.Envelope, "payload byte for byte, and all metadata")
	require.Equal(t, message.Metadata{"event_type": "sensor.reading", "correlation_id": "c\"'", "traceparent": e.Metadata.Traceparent}, got.msg.Metadata)
	require.Equal(t, "Gerät-1", batch.From(got.msg).Records()[0].Key)
}

func TestPublisherKeepsOrder(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{MaxBatch: 7})
	const total = 200
	release := s.hold()
	defer release()
	var wg sync.WaitGroup
	for i := range total {
		wg.Go(func() {
			if err := p.Store(t.Context(), newEvent("a", i)); err != nil {
				t.Error(err)
			}
		})
		require.Eventually(t, func() bool { return p.Queued() == i+1 }, soon, 10*time.Microsecond)
	}
	release()
	wg.Wait()
	var call []event.Envelope
	for i := range 50 {
		call = append(call, newEvent("a", total+i))
	}
	require.NoError(t, p.Ingest(t.Context(), call))
	var msgs []*message.Message
	for i := range 50 {
		e := newEvent("a", total+50+i)
		m, err := outbox.Message(&e)
		require.NoError(t, err)
		msgs = append(msgs, m)
	}
	require.NoError(t, p.Publish(outbox.Topic, msgs...))
	require.Equal(t, values(0, total+100), scan[string](s, "SELECT string_agg(payload->>'value', ' ' ORDER BY id) FROM outbox"))
}

func TestPublisherIsFull(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{MaxQueue: 10})
	release := s.hold()
	defer release()
	var wg sync.WaitGroup
	ingest := func(ctx context.Context, e ...event.Envelope) chan error {
		before, answer := p.Queued(), make(chan error, 1)
		wg.Go(func() { answer <- p.Ingest(ctx, e) })
		require.Eventually(t, func() bool { return p.Queued() > before }, soon, tick)
		return answer
	}
	first := ingest(t.Context(), newEvent("a", 0))
	s.awaitBlocked()
	ctx, cancel := context.WithCancelCause(t.Context())
	second := ingest(ctx, newEvent("a", 1))
	big := newEvent("a", 2)
	big.Payload = []byte(`{"value":2,"text":"` + strings.Repeat("x", 32<<10) + `"}`)
	third := ingest(t.Context(), big)
	require.Equal(t, 1+1+9, p.Queued(), "a large event counts for more")
	require.ErrorIs(t, p.Ingest(t.Context(), []event.Envelope{newEvent("a", 3)}), outbox.ErrFull)

	gone := errors.New("client has gone")
	cancel(gone)
	require.ErrorIs(t, <-second, gone)
	require.Equal(t, 1+9, p.Queued(), "what was not begun is withdrawn")
	release()
	require.NoError(t, <-first)
	require.NoError(t, <-third)
	wg.Wait()
	require.NoError(t, p.Ingest(t.Context(), []event.Envelope{newEvent("a", 4)}), "there is room again")
	require.NoError(t, p.Ingest(t.Context(), nil))
	require.Equal(t, "0 2 4", scan[string](s, "SELECT string_agg(payload->>'value', ' ' ORDER BY id) FROM outbox"))
}

func TestPublisherIsolatesBadEvent(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{})
	release := s.hold()
	defer release()
	const callers, bad = 40, 17
	answers := make([]chan error, callers)
	for i := range answers {
		answers[i] = make(chan error, 1)
		call := []event.Envelope{newEvent("a", i)}
		if i == bad {
			call = append(call, poison())
		}
		go func() { answers[i] <- p.Ingest(t.Context(), call) }()
	}
	require.Eventually(t, func() bool { return p.Queued() == callers+1 }, soon, tick)
	release()
	for i, answer := range answers {
		if err := <-answer; i == bad {
			require.True(t, fault.IsPermanent(err), "%v", err)
		} else {
			require.NoError(t, err)
		}
	}
	require.Equal(t, callers-1, s.count("outbox"), "of the bad call nothing")
}

// A batch that the database can't hold, or not in the time there is, is its caller's to divide; one event alone is tried
// for as long as it takes.
func TestPublisherDividesNobodysEvents(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{Timeout: 300 * time.Millisecond})
	batch := []event.Envelope{newEvent("a", 0), poison(), newEvent("a", 2)}
	require.True(t, fault.IsPermanent(p.Publisher.Store(t.Context(), batch)))
	release := s.hold()
	defer release()
	batch[1] = newEvent("a", 1)
	require.True(t, fault.TooSlow(p.Publisher.Store(t.Context(), batch)))
	require.ErrorIs(t, p.Ingest(t.Context(), batch), outbox.ErrTimeout)
	require.Zero(t, s.count("outbox"))
	alone := make(chan error, 1)
	go func() { alone <- p.Store(t.Context(), batch[0]) }()
	require.Never(t, func() bool { return len(alone) > 0 }, 500*time.Millisecond, tick)
	release()
	require.NoError(t, <-alone)
	require.NoError(t, p.Publisher.Store(t.Context(), nil))
	require.Equal(t, 1, s.count("outbox"))
}

func TestPublisherReadsEnvelopes(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{})
	require.NoError(t, p.Publish(outbox.Topic))
	e := newEvent("a", 1)
	good, err := outbox.Message(&e)
	require.NoError(t, err)
	err = p.Publish(outbox.Topic, good, message.NewMessage("m-2", []byte("no envelope")))
	require.ErrorContains(t, err, "m-2")
	require.True(t, fault.IsPermanent(err))
	require.Zero(t, s.count("outbox"))
}

func TestPublisherCloseDrains(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{MaxBatch: 5})
	release := s.hold()
	defer release()
	const callers = 50
	answers := make(chan error, callers)
	for i := range callers {
		go func() { answers <- p.Store(t.Context(), newEvent("a", i)) }()
	}
	require.Eventually(t, func() bool { return p.Queued() == callers }, soon, tick)
	closed := make(chan error, 1)
	go func() { closed <- p.Close() }()
	require.Eventually(t, func() bool {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		return errors.Is(p.Ingest(ctx, []event.Envelope{newEvent("a", -1)}), outbox.ErrClosed)
	}, soon, tick)
	require.Empty(t, closed)
	release()
	require.NoError(t, <-closed)
	for range callers {
		require.NoError(t, <-answers)
	}
	require.Equal(t, callers, s.count("outbox"))
}

func TestPublisherShutdownGivesUp(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := publisher{outbox.NewPublisher(s.pool, outbox.PublisherConfig{Timeout: time.Hour})}
	release := s.hold()
	defer release()
	answer := make(chan error, 1)
	go func() { answer <- p.Store(context.Background(), newEvent("a", 0)) }()
	require.Eventually(t, func() bool { return p.Queued() == 1 }, soon, tick)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, p.Shutdown(ctx), context.DeadlineExceeded)
	require.ErrorIs(t, <-answer, outbox.ErrClosed, "the attempt itself is ended too")
}

func ExampleMessage() {
	e := event.Envelope{Type: "sensor.reading", AggregateID: "device-1", Payload: []byte(`{}`)}
	m, err := outbox.Message(&e)
	if err != nil {
		panic(err)
	}
	fmt.Println(m.Metadata[event.MetaEventType], m.Metadata[event.MetaAggregateID])
	// Output: sensor.reading device-1
}

// A full outbox refuses those who would rather not wait, and lets the others wait until there is room.
func TestPublisherKeepsTheOutboxBounded(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{MaxOutbox: 5})
	var events []event.Envelope
	for i := range 5 {
		events = append(events, newEvent("a", i))
	}
	require.NoError(t, p.Ingest(t.Context(), events))
	require.Eventually(t, func() bool {
		err := p.Ingest(t.Context(), []event.Envelope{newEvent("b", 0)})
		return errors.Is(err, outbox.ErrCrowded) && errors.Is(err, fault.ErrOverloaded)
	}, soon, tick)
	rows, full := p.Crowd(t.Context())
	require.True(t, full)
	before := s.count("outbox")
	require.EqualValues(t, before, rows)
	ended, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, p.Store(ended, newEvent("c", 1)), outbox.ErrCrowded)
	stored := make(chan error, 1)
	go func() { stored <- p.Store(context.Background(), newEvent("c", 2)) }()
	require.Equal(t, before, s.count("outbox"))
	_, out := s.subscribe(outbox.SubscriberConfig{})
	nextAcked(t, out, before)
	require.NoError(t, <-stored)
	require.Equal(t, "2", payloads(nextAcked(t, out, 1)))
	require.NoError(t, p.Ingest(t.Context(), []event.Envelope{newEvent("b", 1)}))
	_, full = p.Crowd(t.Context())
	require.False(t, full)
}
