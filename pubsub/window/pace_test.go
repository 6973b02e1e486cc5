package window_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/pubsub/window"
)

// A batch gathers for as long as it is given, or until it is full or the batcher is closed; one that follows a small
// batch goes through at once.
func TestBatcherPace(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		first, late int           // items handed in at once, and 10 ms after
		close       bool          // after 30 ms
		want        time.Duration // when the late ones are done
	}{
		"waits its time":               {window.PaceFrom, 3, false, time.Second},
		"follows a small batch":        {window.PaceFrom - 1, 3, false, 10 * time.Millisecond},
		"is full":                      {window.PaceFrom, 20, false, 10 * time.Millisecond},
		"ends with the batcher":        {window.PaceFrom, 3, true, 30 * time.Millisecond},
		"has been full from the start": {45, 0, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				gate, begun := make(chan struct{}), false
				b := window.NewBatcher(window.BatcherConfig[int]{
					MaxBatch: 20,
					Flush: func(context.Context, []int) error {
						<-gate // until all of the first ones are handed in
						return nil
					},
					Pace: func(took time.Duration) time.Duration {
						if begun {
							return 0
						}
						begun = true
						return time.Second - took
					},
				})
				began := time.Now()
				var all sync.WaitGroup
				hand := func(n int) {
					for range n {
						all.Go(func() { _ = b.Do(context.Background(), 1) })
					}
					synctest.Wait()
				}
				hand(1) // a small batch, during which the first ones gather
				hand(tc.first)
				close(gate)
				synctest.Wait()
				if tc.late > 0 {
					<-time.After(10 * time.Millisecond)
					hand(tc.late)
				}
				if tc.close {
					<-time.After(20 * time.Millisecond)
					require.NoError(t, b.Close(context.Background()))
				}
				all.Wait()
				require.Equal(t, tc.want, time.Since(began))
				require.NoError(t, b.Close(context.Background()))
			})
		})
	}
}

func TestGather(t *testing.T) {
	t.Parallel()
	for took, want := range map[time.Duration]time.Duration{
		0:                      window.MinGather,
		2 * time.Millisecond:   18 * time.Millisecond, // a machine with time to spare
		8 * time.Millisecond:   16 * time.Millisecond,
		11 * time.Millisecond:  22 * time.Millisecond,
		15 * time.Millisecond:  20 * time.Millisecond, // not more than 35 ms from batch to batch
		35 * time.Millisecond:  0,
		500 * time.Millisecond: 0,
	} {
		require.Equal(t, want, window.Gather(took), "after %s", took)
	}
}
