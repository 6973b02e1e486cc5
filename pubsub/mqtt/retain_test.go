package mqtt

import (
	"testing"

	"github.com/eclipse/paho.golang/paho"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/batch"
)

// The retain flag of a message without a body, which the broker passes on only if asked to, tells what clears a retained
// message from a mistake.
func TestClearingARetainedMessageIsMarked(t *testing.T) {
	t.Parallel()
	b := newBroker(t, "")
	s := subscribe(t, b.url())
	s.waitUp()
	p := newPublisher(t, b)
	for _, c := range []struct {
		body   string
		retain bool
		marked string
	}{{"{}", true, ""}, {"", true, "true"}, {"", false, ""}} {
		_, err := p.client.Publish(t.Context(), &paho.Publish{Topic: topic1, QoS: 1, Payload: []byte(c.body), Retain: c.retain})
		require.NoError(t, err)
		msg := s.next()
		r := batch.From(msg).Rest()[0]
		require.Equal(t, c.body, string(r.Value))
		require.Equal(t, c.marked, r.Header(event.MetaRetain))
		msg.Ack()
	}
}
