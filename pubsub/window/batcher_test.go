package window_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/pubsub/window"
)

// gate is a Flush that waits to be let through, and remembers the batches.
type gate struct {
	mu      sync.Mutex
	batches [][]int
	entered chan []int
	answer  chan error
}

func newGate() *gate { return &gate{entered: make(chan []int, 100), answer: make(chan error)} }

func (g *gate) flush(ctx context.Context, items []int) error {
	g.entered <- items
	select {
	case err := <-g.answer:
		if err == nil {
			g.mu.Lock()
			g.batches = append(g.batches, slices.Clone(items))
			g.mu.Unlock()
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// start hands in items one after the other, and returns what Do answers, by item.
func start(t *testing.T, b *window.Batcher[int], queued int, items ...int) []chan error {
	t.Helper()
	answers := make([]chan error, len(items))
	for i, item := range items {
		answers[i] = make(chan error, 1)
		go func() { answers[i] <- b.Do(context.Background(), item) }()
		require.Eventually(t, func() bool { return b.Queued() == queued+i+1 }, 5*time.Second, 10*time.Microsecond)
	}
	return answers
}

func closeBatcher(t *testing.T, b *window.Batcher[int]) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	require.NoError(t, b.Close(ctx))
	require.Zero(t, b.Queued())
}

func TestBatcherGathersWhileABatchIsDone(t *testing.T) {
	t.Parallel()
	g := newGate()
	b := window.NewBatcher(window.BatcherConfig[int]{Flush: g.flush, MaxBatch: 3})
	first := start(t, b, 0, 1)
	require.Equal(t, []int{1}, <-g.entered, "nothing is waited for")
	rest := start(t, b, 1, 2, 3, 4, 5)
	g.answer <- nil
	require.NoError(t, <-first[0])
	require.Equal(t, []int{2, 3, 4}, <-g.entered)
	g.answer <- nil
	require.Equal(t, []int{5}, <-g.entered)
	require.Equal(t, 1, b.Queued())
	g.answer <- nil
	for _, answer := range rest {
		require.NoError(t, <-answer)
	}
	closeBatcher(t, b)
	require.ErrorIs(t, b.Do(context.Background(), 6), window.ErrClosed)
}

func TestBatcherWeighs(t *testing.T) {
	t.Parallel()
	g := newGate()
	b := window.NewBatcher(window.BatcherConfig[int]{Flush: g.flush, MaxBatch: 10, MaxQueue: 40, Weigh: func(n int) int { return n }})
	var wg sync.WaitGroup
	for i, item := range []int{1, 4, 6, 5, 6, 30, 2} {
		before := b.Queued()
		wg.Go(func() {
			if err := b.Do(context.Background(), item); err != nil {
				t.Errorf("item %d: %v", item, err)
			}
		})
		require.Eventually(t, func() bool { return b.Queued() == before+item }, 5*time.Second, 10*time.Microsecond)
		if i == 0 {
			require.Equal(t, []int{1}, <-g.entered)
		}
	}
	require.ErrorIs(t, b.TryDo(context.Background(), 1), window.ErrFull)
	for _, want := range [][]int{{4, 6}, {5}, {6}, {30}, {2}} {
		g.answer <- nil
		require.Equal(t, want, <-g.entered)
	}
	g.answer <- nil
	wg.Wait()
	go func() { <-g.entered; g.answer <- nil }()
	require.NoError(t, b.TryDo(context.Background(), 1), "there is room again")
	closeBatcher(t, b)
}

func TestBatcherHalvesAroundPoison(t *testing.T) {
	t.Parallel()
	poison := errors.New("poison")
	for name, fail := range map[string]func() error{
		"permanent error": func() error { return fault.Permanent(poison) },
		"panic":           func() error { panic(poison) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			var done []int
			release := make(chan struct{})
			entered := make(chan struct{}, 1)
			b := window.NewBatcher(window.BatcherConfig[int]{MaxBatch: 100, Flush: func(_ context.Context, items []int) error {
				if items[0] == -1 {
					entered <- struct{}{}
					<-release
					return nil
				}
				if slices.ContainsFunc(items, func(n int) bool { return n%7 == 3 }) {
					return fail()
				}
				mu.Lock()
				defer mu.Unlock()
				done = append(done, items...)
				return nil
			}})
			head := start(t, b, 0, -1)
			<-entered
			items := make([]int, 50)
			var want []int
			for i := range items {
				items[i] = i
				if i%7 != 3 {
					want = append(want, i)
				}
			}
			answers := start(t, b, 1, items...)
			close(release)
			require.NoError(t, <-head[0])
			for i, answer := range answers {
				err := <-answer
				if i%7 != 3 {
					require.NoError(t, err, "item %d", i)
					continue
				}
				require.True(t, fault.IsPermanent(err), "item %d: %v", i, err)
				require.ErrorContains(t, err, "poison")
			}
			require.Equal(t, want, done, "in order, each once")
			closeBatcher(t, b)
		})
	}
}

func TestBatcherWaitsOutAnOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var attempts []time.Duration
		var told []error
		began := time.Now()
		away := errors.New("database is away")
		b := window.NewBatcher(window.BatcherConfig[int]{
			MaxBatch: 10, MinBackoff: time.Second, MaxBackoff: 5 * time.Second,
			Flush: func(context.Context, []int) error {
				attempts = append(attempts, time.Since(began))
				if time.Since(began) < 20*time.Second {
					return away
				}
				return nil
			},
			OnFlush: func(items int, err error) {
				if items == 1 {
					told = append(told, err)
				}
			},
		})
		require.NoError(t, b.Do(t.Context(), 1))
		require.Equal(t, []time.Duration{0, 1e9, 3e9, 7e9, 12e9, 17e9, 22e9}, attempts)
		require.Equal(t, []error{away, away, away, away, away, away, nil}, told)
		require.NoError(t, b.Close(t.Context()))
	})
}

func TestBatcherTryDoWaitsItsTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		b := window.NewBatcher(window.BatcherConfig[int]{Flush: g.flush, MaxBatch: 1, Wait: time.Second})
		for range 3 { // timers are used again
			first := make(chan error, 1)
			go func() { first <- b.TryDo(t.Context(), 1) }()
			<-g.entered // its batch is being done
			began := time.Now()
			require.ErrorIs(t, b.TryDo(t.Context(), 2), window.ErrTimeout)
			require.Equal(t, time.Second, time.Since(began))
			require.ErrorIs(t, <-first, window.ErrTimeout, "it may succeed yet")
			require.Equal(t, 1, b.Queued(), "what was still queued is withdrawn")
			g.answer <- nil
			synctest.Wait()
			require.Zero(t, b.Queued())
			go func() { first <- b.TryDo(t.Context(), 3) }()
			require.Equal(t, []int{3}, <-g.entered, "the withdrawn one is not done")
			g.answer <- nil
			require.NoError(t, <-first)
		}
		require.NoError(t, b.Close(t.Context()))
	})
}

func TestBatcherCloseDrains(t *testing.T) {
	t.Parallel()
	g := newGate()
	b := window.NewBatcher(window.BatcherConfig[int]{Flush: g.flush, MaxBatch: 1})
	answers := start(t, b, 0, 1, 2, 3)
	closed := make(chan error, 1)
	go func() { closed <- b.Close(context.Background()) }()
	require.Eventually(t, func() bool {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		return errors.Is(b.TryDo(ctx, 9), window.ErrClosed)
	}, 5*time.Second, time.Millisecond)
	for range 3 {
		<-g.entered
		require.Empty(t, closed)
		g.answer <- nil
	}
	require.NoError(t, <-closed)
	for _, answer := range answers {
		require.NoError(t, <-answer)
	}
	require.NoError(t, b.Close(context.Background()), "again")
}

func TestBatcherCloseGivesUpAtItsDeadline(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	entered := make(chan struct{})
	// The first batch hangs until it is given up; a later one would succeed, and must not: it would overtake.
	b := window.NewBatcher(window.BatcherConfig[int]{MaxBatch: 1, Flush: func(ctx context.Context, _ []int) error {
		if calls.Add(1) == 1 {
			close(entered)
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}})
	answers := start(t, b, 0, 1, 2, 3)
	<-entered
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	require.ErrorIs(t, b.Close(ctx), context.Canceled)
	for _, answer := range answers {
		require.ErrorIs(t, <-answer, window.ErrClosed)
	}
	require.EqualValues(t, 1, calls.Load())
	require.Zero(t, b.Queued())
}

func TestBatcherCloseEndsAnOutage(t *testing.T) {
	t.Parallel()
	failed := make(chan struct{}, 100)
	b := window.NewBatcher(window.BatcherConfig[int]{MaxBatch: 1, MinBackoff: time.Hour, MaxBackoff: time.Hour,
		Flush: func(context.Context, []int) error { failed <- struct{}{}; return errors.New("away") }})
	answers := start(t, b, 0, 1)
	<-failed
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	require.ErrorIs(t, b.Close(ctx), context.Canceled)
	require.ErrorIs(t, <-answers[0], window.ErrClosed)
}

func TestBatcherTakesTurns(t *testing.T) {
	t.Parallel()
	g := newGate()
	b := window.NewBatcher(window.BatcherConfig[int]{Flush: g.flush, MaxBatch: 10})
	turns := window.NewTurns()
	one, two := turns.Take("k"), turns.Take("k")
	answers := make(chan error, 2)
	go func() { answers <- b.Do(window.WithTurn(context.Background(), two), 2) }()
	go func() { answers <- b.Do(window.WithTurn(context.Background(), turns.Take("other")), 9) }()
	require.Equal(t, []int{9}, <-g.entered, "another key goes ahead")
	go func() { answers <- b.Do(window.WithTurn(context.Background(), one), 1) }()
	require.Eventually(t, func() bool { return b.Queued() == 3 }, 5*time.Second, 10*time.Microsecond)
	g.answer <- nil
	require.Equal(t, []int{1, 2}, <-g.entered)
	g.answer <- nil
	for range 3 {
		require.NoError(t, <-answers)
	}
	closeBatcher(t, b)
}

// Many callers, few keys, errors of both kinds: what was done is in order per key, and each Do told the truth.
func TestBatcherUnderLoad(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	done := make(map[int][]int)
	var n atomic.Int64
	b := window.NewBatcher(window.BatcherConfig[int]{
		MaxBatch: 16, MinBackoff: time.Microsecond, MaxBackoff: time.Microsecond,
		Flush: func(_ context.Context, items []int) error {
			if n.Add(1)%5 == 0 {
				return errors.New("away")
			}
			if slices.ContainsFunc(items, func(i int) bool { return i%101 == 100 }) {
				return fault.Permanent(errors.New("poison"))
			}
			mu.Lock()
			defer mu.Unlock()
			for _, i := range items {
				done[i%3] = append(done[i%3], i)
			}
			return nil
		},
	})
	turns := map[int]*window.Turns{0: window.NewTurns(), 1: window.NewTurns(), 2: window.NewTurns()}
	var wg sync.WaitGroup
	slots := make(chan struct{}, 64)
	for i := range 6000 {
		turn := turns[i%3].Take("k")
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if i%17 == 0 { // dead-lettered before it reached the batcher
				turn.Pass()
				return
			}
			if err := b.Do(window.WithTurn(context.Background(), turn), i); (err != nil) != (i%101 == 100) {
				t.Errorf("item %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	closeBatcher(t, b)
	total := 0
	for _, items := range done {
		require.True(t, slices.IsSorted(items))
		total += len(items)
	}
	want := 0
	for i := range 6000 {
		if i%17 != 0 && i%101 != 100 {
			want++
		}
	}
	require.Equal(t, want, total)
}
