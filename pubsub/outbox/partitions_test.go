package outbox_test

import (
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/outbox"
)

func TestPartitionsAreRemembered(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := outbox.Partitions{Pool: s.pool}
	for _, step := range []struct{ now, want int }{{8, 8}, {12, 8}, {8, 8}, {6, 6}, {8, 6}} {
		if spread, err := p.Spread(t.Context(), "t", step.now); step.now > 6 {
			require.NoError(t, err)
			require.GreaterOrEqual(t, spread, step.want)
		}
		got, err := p.Remember(t.Context(), "t", step.now)
		require.NoError(t, err)
		require.Equal(t, step.want, got)
	}
	got, err := p.Spread(t.Context(), "t", 8)
	require.NoError(t, err)
	require.Equal(t, 6, got)
	got, err = p.Spread(t.Context(), "unknown", 3)
	require.NoError(t, err)
	require.Equal(t, 3, got)
}

// Two outboxes in schemas of one database have a relay each, which wakes on its own events.
func TestSchemasDoNotShareTheLock(t *testing.T) {
	t.Parallel()
	first := newStore(t, "")
	first.exec("CREATE SCHEMA other")
	address, err := url.Parse(first.pool.Config().ConnString())
	require.NoError(t, err)
	q := address.Query()
	q.Set("search_path", "other")
	address.RawQuery = q.Encode()
	second := newStore(t, address.String())
	sub1, out1 := first.subscribe(outbox.SubscriberConfig{})
	sub2, out2 := second.subscribe(outbox.SubscriberConfig{})
	require.Eventually(t, func() bool { return sub1.State().Leading && sub2.State().Leading }, soon, tick)
	require.NoError(t, first.publisher(outbox.PublisherConfig{}).Ingest(t.Context(), []event.Envelope{newEvent("a", 1)}))
	require.NoError(t, second.publisher(outbox.PublisherConfig{}).Ingest(t.Context(), []event.Envelope{newEvent("b", 2)}))
	require.Equal(t, "1", payloads(nextAcked(t, out1, 1)))
	require.Equal(t, "2", payloads(nextAcked(t, out2, 1)))
}
