package window_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/pubsub/window"
)

// A database that is too slow for a whole batch is not away: with less to do at once it gets it done, in order.
func TestABatchThatTakesTooLongIsHalved(t *testing.T) {
	t.Parallel()
	var done []int
	tries := 0
	slow := func(_ context.Context, items []int) error {
		if tries++; tries > 1 && len(items) > 3 {
			return fmt.Errorf("write %d rows: %w", len(items), context.DeadlineExceeded)
		}
		done = append(done, items...)
		return nil
	}
	entered, goOn := make(chan struct{}), make(chan struct{})
	b := window.NewBatcher(window.BatcherConfig[int]{MaxBatch: 100, MinBackoff: time.Millisecond, Flush: func(ctx context.Context, items []int) error {
		if tries == 0 {
			close(entered)
			<-goOn
		}
		return slow(ctx, items)
	}})
	first := start(t, b, 0, 0)
	<-entered
	rest := start(t, b, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16)
	close(goOn)
	for _, answer := range append(first, rest...) {
		select {
		case err := <-answer:
			require.NoError(t, err)
		case <-time.After(10 * time.Second):
			require.FailNow(t, "the batch is tried again and again")
		}
	}
	closeBatcher(t, b)
	require.Equal(t, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}, done)
}
