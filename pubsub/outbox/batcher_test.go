package outbox

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
)

// gate is a database that answers when it is told to.
type gate struct {
	entered chan string // the aggregates of a batch
	answer  chan error
}

func newGate() *gate { return &gate{entered: make(chan string, 100), answer: make(chan error)} }

func (g *gate) write(ctx context.Context, events []event.Envelope) error {
	g.entered <- names(events)
	select {
	case err := <-g.answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func names(events []event.Envelope) (all string) {
	for i := range events {
		all += events[i].AggregateID
	}
	return all
}

// named returns one event for each letter.
func named(letters string) (all []event.Envelope) {
	for _, letter := range letters {
		all = append(all, event.Envelope{AggregateID: string(letter)})
	}
	return all
}

func startBatcher(t *testing.T, b *batcher) *batcher {
	t.Helper()
	b.start()
	t.Cleanup(func() { require.NoError(t, b.close(context.Background())) })
	return b
}

func TestBatcherGathersWhileABatchIsStored(t *testing.T) {
	t.Parallel()
	g := newGate()
	b := startBatcher(t, &batcher{write: g.write, maxBatch: 4, maxQueue: 7})
	answers := []*request{b.submit(named("a"))}
	require.Equal(t, "a", <-g.entered, "nothing is waited for")
	for _, call := range []string{"bc", "d", "efg"} {
		answers = append(answers, b.submit(named(call)))
	}
	require.True(t, b.full())
	big := named("h")
	big[0].Payload = make([]byte, 20_000)
	answers = append(answers, b.submit(big))
	require.Equal(t, 7+1+4, b.queued(), "a large event counts for more")
	for _, want := range []string{"bcd", "efg", "h"} {
		g.answer <- nil
		require.Equal(t, want, <-g.entered)
	}
	g.answer <- nil
	for _, r := range answers {
		require.NoError(t, <-r.done)
	}
	require.Zero(t, b.queued())
}

func TestBatcherHalvesAroundWhatCannotBeStored(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func() error{
		"permanent error": func() error { return fault.Permanent(errors.New("poison")) },
		"panic":           func() error { panic("poison") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var stored string
			begin := make(chan struct{})
			b := startBatcher(t, &batcher{maxBatch: 100, write: func(_ context.Context, events []event.Envelope) error {
				<-begin
				for i := range events {
					if events[i].AggregateID == "x" {
						return fail()
					}
				}
				stored += names(events)
				return nil
			}})
			var answers []*request
			for _, call := range []string{"a", "b", "cx", "d", "e", "x", "fg"} {
				answers = append(answers, b.submit(named(call)))
			}
			close(begin)
			for i, r := range answers {
				err := <-r.done
				if i != 2 && i != 5 {
					require.NoError(t, err)
					continue
				}
				require.True(t, fault.IsPermanent(err), "%v", err)
				require.ErrorContains(t, err, "poison")
			}
			require.Equal(t, "abdefg", stored, "in order, each once")
		})
	}
}

func TestBatcherWaitsOutAnOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began, away := time.Now(), errors.New("database is away")
		var attempts []time.Duration
		var told []error
		b := startBatcher(t, &batcher{
			maxBatch: 10,
			write: func(context.Context, []event.Envelope) error {
				attempts = append(attempts, time.Since(began)/time.Millisecond)
				if time.Since(began) < 6*time.Second {
					return away
				}
				return nil
			},
			onFlush: func(events int, err error) {
				require.Equal(t, 2, events)
				told = append(told, err)
			},
		})
		require.NoError(t, <-b.submit(named("ab")).done)
		require.Equal(t, []time.Duration{0, 50, 150, 350, 750, 1550, 3150, 5150, 7150}, attempts)
		require.Equal(t, []error{away, away, away, away, away, away, away, away, nil}, told)
	})
}

func TestBatcherWithdraws(t *testing.T) {
	t.Parallel()
	g := newGate()
	b := startBatcher(t, &batcher{write: g.write, maxBatch: 1})
	first, second, third := b.submit(named("a")), b.submit(named("b")), b.submit(named("c"))
	require.Equal(t, "a", <-g.entered)
	b.withdraw(first) // too late
	b.withdraw(second)
	require.Equal(t, 2, b.queued())
	g.answer <- nil
	require.Equal(t, "c", <-g.entered)
	g.answer <- nil
	require.NoError(t, <-first.done)
	require.NoError(t, <-third.done)
	require.Empty(t, second.done)
}

func TestBatcherCloseDrains(t *testing.T) {
	t.Parallel()
	g := newGate()
	b := &batcher{write: g.write, maxBatch: 1}
	b.start()
	answers := []*request{b.submit(named("a")), b.submit(named("b"))}
	closed := make(chan error, 1)
	go func() { closed <- b.close(context.Background()) }()
	require.Eventually(t, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.closed
	}, 5*time.Second, time.Millisecond)
	require.ErrorIs(t, <-b.submit(named("c")).done, ErrClosed)
	for _, r := range answers {
		<-g.entered
		require.Empty(t, closed)
		g.answer <- nil
		require.NoError(t, <-r.done)
	}
	require.NoError(t, <-closed)
	require.NoError(t, b.close(context.Background()), "again")
}

// The first batch hangs until it is given up; a later one would succeed, and must not: it would overtake.
func TestBatcherCloseGivesUpAtItsDeadline(t *testing.T) {
	t.Parallel()
	for name, hang := range map[string]func(context.Context) error{
		"an attempt that hangs": func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		"an outage":             func(context.Context) error { return errors.New("away") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var once sync.Once
			entered := make(chan struct{})
			var written []string
			b := &batcher{maxBatch: 1, write: func(ctx context.Context, events []event.Envelope) error {
				once.Do(func() { close(entered) })
				written = append(written, names(events))
				return hang(ctx)
			}}
			b.start()
			var answers []*request
			for i := range 3 {
				answers = append(answers, b.submit(named(strconv.Itoa(i))))
			}
			<-entered
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			require.ErrorIs(t, b.close(ctx), context.Canceled)
			for _, r := range answers {
				require.ErrorIs(t, <-r.done, ErrClosed)
			}
			require.NotContains(t, written, "1")
			require.Zero(t, b.queued())
		})
	}
}
