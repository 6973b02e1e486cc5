package kafka_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/pubsub/kafka"
)

// lagOf waits until a subscriber is that far behind.
func lagOf(t *testing.T, sub *kafka.Subscriber, events int64) (found kafka.Lag) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		lag, err := sub.Lag(t.Context())
		require.NoError(c, err)
		require.Equal(c, events, lag.Events)
		found = lag
	}, soon, tick)
	return found
}

func TestLagIsWhatIsNotAcknowledged(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1, "t")
	p := b.publisher()
	publish(t, p, "t", "k", 0, 30) // before anybody has asked, more than a batch
	cfg := b.config("g")
	cfg.MaxBatch = 5
	sub, out := b.subscribe(cfg, "t")
	first := next(t, out)
	lag := lagOf(t, sub, 30)
	require.WithinDuration(t, time.Now(), lag.Oldest, soon)
	first.Nack()
	first = next(t, out)
	require.Equal(t, lag, lagOf(t, sub, 30), "it is refused")
	first.Ack()
	second := next(t, out)
	after := lagOf(t, sub, 25)
	require.Equal(t, lag.Acked+5, after.Acked)
	second.Ack()
	expect(t, out, 10, 30)
	require.True(t, lagOf(t, sub, 0).Oldest.IsZero())
	began := time.Now().Truncate(time.Millisecond) // as the brokers keep it
	publish(t, p, "t", "k", 30, 31)
	last := next(t, out)
	require.False(t, lagOf(t, sub, 1).Oldest.Before(began), "of this one, not of those before")
	last.Ack()
	lagOf(t, sub, 0)
}

// What others have acknowledged is not behind, also where the subscriber has seen nothing of it.
func TestLagBeginsAtWhatIsCommitted(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 2, "t")
	p := b.publisher()
	publish(t, p, "t", "k", 0, 10)
	first := kafka.NewSubscriber(b.config("g"))
	out, err := first.Subscribe(t.Context(), "t")
	require.NoError(t, err)
	expect(t, out, 0, 10)
	lagOf(t, first, 0)
	require.NoError(t, first.Close())
	second, _ := b.subscribe(b.config("g"), "t")
	require.Eventually(t, func() bool { return second.Assigned() == 2 }, soon, tick)
	lagOf(t, second, 0)
	b.stop()
	require.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		_, err := second.Lag(ctx)
		return err != nil
	}, soon, 100*time.Millisecond, "brokers that are away are not taken for ones with nothing to tell")
}
