package window_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/cornjacket/platform-services/pubsub/window"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// order collects what ran, per key.
type order struct {
	mu  sync.Mutex
	ran map[string][]int
}

func (o *order) add(key string, n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ran == nil {
		o.ran = make(map[string][]int)
	}
	o.ran[key] = append(o.ran[key], n)
}

func (o *order) of(key string) []int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.ran[key])
}

func TestTurnsRunInOrder(t *testing.T) {
	t.Parallel()
	var o order
	turns := window.NewTurns()
	a, b, c, other := turns.Take("k"), turns.Take("k"), turns.Take("k"), turns.Take("other")
	c.Do(func() { o.add("k", 3) })
	require.Empty(t, o.of("k"))
	other.Do(func() { o.add("other", 1) })
	require.Equal(t, []int{1}, o.of("other"), "another key does not wait")
	a.Do(func() { o.add("k", 1) })
	require.Equal(t, []int{1}, o.of("k"))
	b.Do(func() { o.add("k", 2) })
	require.Equal(t, []int{1, 2, 3}, o.of("k"))
	next := turns.Take("k")
	next.Do(func() { o.add("k", 4) })
	require.Equal(t, []int{1, 2, 3, 4}, o.of("k"), "nobody is before it")
}

func TestTurnsPass(t *testing.T) {
	t.Parallel()
	var o order
	turns := window.NewTurns()
	a, b, c := turns.Take("k"), turns.Take("k"), turns.Take("k")
	b.Pass()
	b.Pass()
	c.Do(func() { o.add("k", 3) })
	require.Empty(t, o.of("k"), "b gave up, a is still before c")
	a.Pass()
	require.Equal(t, []int{3}, o.of("k"))
	a.Do(func() { o.add("k", 1) })
	b.Do(func() { o.add("k", 2) })
	require.Equal(t, []int{3, 1, 2}, o.of("k"), "after its turn has passed a message runs at once")
	c.Pass()

	d, e := turns.Take("k"), turns.Take("k")
	e.Do(func() { o.add("k", 5) })
	e.Pass()
	d.Do(func() { o.add("k", 4) })
	require.Equal(t, []int{3, 1, 2, 4}, o.of("k"), "what was given up before its turn never runs")
}

func TestNilTurn(t *testing.T) {
	t.Parallel()
	turn := window.TurnFrom(context.Background())
	require.Nil(t, turn)
	ran := false
	turn.Do(func() { ran = true })
	turn.Pass()
	require.True(t, ran)
	turns := window.NewTurns()
	mine := turns.Take("k")
	require.Same(t, mine, window.TurnFrom(window.WithTurn(context.Background(), mine)))
}

// A turn can be passed by its collector while whoever ran it has not come back yet, and the key can be taken anew.
func TestTurnPassedWhileItRuns(t *testing.T) {
	t.Parallel()
	var o order
	turns := window.NewTurns()
	a, b := turns.Take("k"), turns.Take("k")
	var c, d *window.Turn
	b.Do(func() {
		b.Pass() // the batch was done and acknowledged in no time
		c = turns.Take("k")
	})
	a.Pass()
	d = turns.Take("k")
	d.Do(func() { o.add("k", 2) })
	require.Empty(t, o.of("k"), "c is before d")
	c.Do(func() { o.add("k", 1) })
	require.Equal(t, []int{1, 2}, o.of("k"))
}

// Every message does one of: Do, Pass, Pass then Do, Do and Pass at once as the collector of an acknowledged one does.
// Those that ran in their turn must have run in the order of the source, whatever the schedule.
func TestTurnsRandomInterleavings(t *testing.T) {
	t.Parallel()
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 7))
			var o order
			var wg sync.WaitGroup
			turns := window.NewTurns()
			want := make(map[string][]int)
			window := make(chan struct{}, 1+rnd.IntN(40))
			for i := range 800 {
				key := fmt.Sprint(rnd.IntN(1 + int(seed%5)))
				turn := turns.Take(key)
				window <- struct{}{}
				how := rnd.IntN(8)
				if how > 0 {
					want[key] = append(want[key], i)
				}
				wg.Go(func() {
					defer func() { <-window }()
					if how == 0 {
						turn.Pass()
						return
					}
					ran := make(chan struct{})
					turn.Do(func() { o.add(key, i); close(ran) })
					<-ran // the batch is done: acknowledged
					turn.Pass()
				})
			}
			wg.Wait()
			for key, w := range want {
				require.Equal(t, w, o.of(key), "key %s", key)
			}
		})
	}
}
