package routers

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/store"
)

// postBus is a bus that is away at first, and notes what is published.
type postBus struct {
	mu     sync.Mutex
	away   bool
	refuse string // payloads with this in them are refused for good
	broken string // and with this, each time, as if their topic were away
	calls  int
	sent   []string // payloads
}

func (b *postBus) Publish(_ string, msgs ...*message.Message) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls++
	for _, m := range msgs {
		switch payload := string(m.Payload); {
		case b.away, b.broken != "" && strings.Contains(payload, b.broken):
			return errors.New("no broker answers")
		case b.refuse != "" && strings.Contains(payload, b.refuse):
			return fault.Permanent(errors.New("message too large"))
		default:
			b.sent = append(b.sent, payload)
		}
	}
	return nil
}

func (b *postBus) Close() error { return nil }

func (b *postBus) change(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

func (b *postBus) published() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.sent)
}

// work runs a postman until the test ends.
func work(t *testing.T, p *Postman) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

func addLetter(t *testing.T, box *store.DeadLetters, payload string, age time.Duration) {
	t.Helper()
	require.NoError(t, box.Add(t.Context(), deadletter.Entry{
		Consumer: Eventhandler, Payload: []byte(payload), FailedAt: t0.Add(-age), Topic: "x", BusTopic: "x.dlq",
	}))
}

func TestPostmanWaitsForTheBus(t *testing.T) {
	t.Parallel()
	pool := database(t)
	box, b := store.NewDeadLetters(pool), &postBus{away: true}
	for _, payload := range []string{"one", "two", "three"} {
		addLetter(t, box, payload, 0)
	}
	man := (&Postman{Mailbox: box, Consumers: []string{Eventhandler}, Publisher: b, Now: time.Now, Log: quiet, Poll: time.Hour}).Init()
	work(t, man)
	require.Eventually(t, func() bool { b.mu.Lock(); defer b.mu.Unlock(); return b.calls > 0 }, soon, tick)
	require.Len(t, letters(t, pool), 3, "none is marked")
	b.change(func() { b.away = false })
	require.Eventually(t, func() bool { return len(letters(t, pool)) == 0 }, soon, 20*time.Millisecond)
	require.ElementsMatch(t, []string{"one", "two", "three"}, b.published())

	addLetter(t, box, "four", 0)
	man.Wake()
	require.Eventually(t, func() bool { return slices.Contains(b.published(), "four") }, soon, tick, "it does not wait for the poll")
	require.Eventually(t, func() bool { return len(letters(t, pool)) == 0 }, soon, tick)
}

// One letter that does not get through does not have those before it sent again and again.
func TestPostmanMarksWhatIsPublishedBeforeAFailure(t *testing.T) {
	t.Parallel()
	pool := database(t)
	box, b := store.NewDeadLetters(pool), &postBus{broken: "second"}
	for i, payload := range []string{"first", "second", "third"} {
		addLetter(t, box, payload, -time.Duration(i)*time.Minute)
	}
	man := (&Postman{Mailbox: box, Consumers: []string{Eventhandler}, Publisher: b, Now: time.Now, Log: quiet, Poll: time.Hour}).Init()
	work(t, man)
	require.Eventually(t, func() bool { return len(letters(t, pool)) == 2 }, soon, tick)
	man.Wake()
	require.Eventually(t, func() bool { b.mu.Lock(); defer b.mu.Unlock(); return b.calls >= 3 }, soon, tick)
	require.Equal(t, []string{"first"}, b.published())
	b.change(func() { b.broken = "" })
	man.Wake()
	require.Eventually(t, func() bool { return len(letters(t, pool)) == 0 }, soon, tick)
	require.Equal(t, []string{"first", "second", "third"}, b.published())
}

// What the bus will never take stays in the table and does not hold up the others.
func TestPostmanPassesOverWhatTheBusRefuses(t *testing.T) {
	t.Parallel()
	pool := database(t)
	box, b := store.NewDeadLetters(pool), &postBus{refuse: "huge"}
	for i, payload := range []string{"a", "huge", "b"} {
		addLetter(t, box, payload, -time.Duration(i)*time.Minute)
	}
	man := (&Postman{Mailbox: box, Consumers: []string{Eventhandler}, Publisher: b, Now: time.Now, Log: quiet}).Init()
	work(t, man)
	require.Eventually(t, func() bool { return len(letters(t, pool)) == 0 }, soon, tick)
	require.Equal(t, []string{"a", "b"}, b.published())
}

func TestPostmanPublishesMoreThanOnePage(t *testing.T) {
	t.Parallel()
	pool := database(t)
	_, err := pool.Exec(t.Context(), `INSERT INTO dlq (consumer, event_payload, error_message, source_topic, bus_topic)
		SELECT $1, convert_to(n::text, 'UTF8'), '', 'x', 'x.dlq' FROM generate_series(1, 250) AS n`, Eventhandler)
	require.NoError(t, err)
	b := &postBus{}
	work(t, (&Postman{Mailbox: store.NewDeadLetters(pool), Consumers: []string{Eventhandler}, Publisher: b, Now: time.Now, Log: quiet, Poll: time.Hour}).Init())
	require.Eventually(t, func() bool { return len(letters(t, pool)) == 0 }, soon, 20*time.Millisecond)
	require.Len(t, b.published(), 250)
}
