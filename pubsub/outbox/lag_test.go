package outbox_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/outbox"
)

func TestLagIsWhatTheBusDoesNotHave(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{})
	sub, out := s.batches(outbox.SubscriberConfig{Window: 5, MaxBatch: 3, Poll: 20 * time.Millisecond})
	defer func() { require.NoError(t, sub.Close()) }()
	lag := func(events int64) (found outbox.Lag) {
		t.Helper()
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			l, err := sub.Lag(t.Context())
			require.NoError(c, err)
			require.Equal(c, []int64{0, events}, []int64{l.Outbox, l.Log})
			found = l
		}, soon, tick)
		return found
	}
	require.True(t, lag(0).Oldest.IsZero())
	var events []event.Envelope
	for i := range 20 {
		events = append(events, newEvent("a", i))
		events[i].IngestedAt = events[i].IngestedAt.Add(-time.Hour).Add(time.Duration(i) * time.Minute)
	}
	require.NoError(t, p.Ingest(t.Context(), append(events, events[3]))) // a duplicate is no lag once it was skipped
	held, records := nextBatch(t, out)
	l := lag(20)
	require.EqualValues(t, 20, l.Log, "the log does not wait for the bus")
	require.True(t, l.Oldest.Equal(events[0].IngestedAt))
	held.Ack()
	l = lag(int64(20 - len(records)))
	require.True(t, l.Oldest.Equal(events[len(records)].IngestedAt))
	nextAcked(t, single(out), 20-len(records))
	require.True(t, lag(0).Oldest.IsZero())
	require.False(t, l.AtLeast)
}
