package outbox_test

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/outbox"
)

func TestLagIsWhatTheBusDoesNotHave(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{})
	sub, out := s.subscribe(outbox.SubscriberConfig{Window: 5, MaxBatch: 3, Poll: 20 * time.Millisecond})
	lag := func(events int64) (found outbox.Lag) {
		t.Helper()
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			l, err := sub.Lag(t.Context())
			require.NoError(c, err)
			require.Equal(c, events, l.Outbox+l.Log)
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
	held := []*message.Message{next(t, out).msg}
	l := lag(21)
	require.Positive(t, l.Outbox, "it takes no more than its window and a batch")
	require.True(t, l.Oldest.Equal(events[0].IngestedAt))
	held[0].Ack()
	l = lag(20)
	require.True(t, l.Oldest.Equal(events[1].IngestedAt))
	nextAcked(t, out, 19)
	require.True(t, lag(0).Oldest.IsZero())
	require.False(t, l.AtLeast)
}
