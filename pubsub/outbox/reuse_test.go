package outbox_test

import (
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/outbox"
)

// An event_id that is used again for something else must not be swallowed like a repeat: it would be acknowledged and
// exist nowhere. It makes no difference whether what came first is in the log already or in the same batch.
func TestAnEventIDThatIsUsedAgainForAnotherEvent(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	in := s.publisher(outbox.PublisherConfig{})
	first := newEvent("a", 1)
	first.Payload = []byte(`{"value":1.0,"b":[1,2]}`)
	with := func(change func(*event.Envelope)) event.Envelope {
		e := first
		change(&e)
		return e
	}
	again := []event.Envelope{
		with(func(e *event.Envelope) {}),
		with(func(e *event.Envelope) { e.Type = "sensor.other" }),
		with(func(e *event.Envelope) { e.AggregateID = "b" }),
		with(func(e *event.Envelope) {
			e.Payload = []byte(`{"b":[1,2],"value":1}`)
			e.Metadata.CorrelationID = "another"
		}),
		with(func(e *event.Envelope) { e.Payload = []byte(`{"value":2.0,"b":[1,2]}`) }),
	}
	last := newEvent("a", 2)
	require.NoError(t, in.Publisher.Store(t.Context(), append([]event.Envelope{first}, again...)))
	_, out := s.subscribe(outbox.SubscriberConfig{})
	nextAcked(t, out, 1)
	require.NoError(t, in.Publisher.Store(t.Context(), append(again, last)))
	require.Equal(t, "2", payloads(nextAcked(t, out, 1)), "none of the others is published")

	var duplicates, letters, pending int
	require.NoError(t, s.pool.QueryRow(t.Context(), `SELECT duplicates, (SELECT count(*) FROM dlq), (SELECT count(*) FROM outbox) FROM relay_cursor`).
		Scan(&duplicates, &letters, &pending))
	require.Equal(t, []int{4, 6, 0}, []int{duplicates, letters, pending}, "what says the same in other words is a repeat")
	rows, err := s.pool.Query(t.Context(), `SELECT consumer, event_id, event_type, message_key, error_message, correlation_id, bus_topic, event_payload
		FROM dlq ORDER BY source_offset`)
	require.NoError(t, err)
	defer rows.Close()
	for i := 0; rows.Next(); i++ {
		want := []event.Envelope{again[1], again[2], again[4]}[i%3]
		var consumer, eventType, key, message, correlation, topic string
		var id uuid.UUID
		var payload []byte
		require.NoError(t, rows.Scan(&consumer, (*[16]byte)(&id), &eventType, &key, &message, &correlation, &topic, &payload))
		require.Equal(t, []string{"relay", want.Type, want.AggregateID, want.Metadata.CorrelationID, event.DeadLetterTopic(event.Topic(want.Type))},
			[]string{consumer, eventType, key, correlation, topic})
		require.Equal(t, first.ID, id)
		require.True(t, strings.HasPrefix(message, "event_id was used for another event"), message)
		var e event.Envelope
		require.NoError(t, json.Unmarshal(payload, &e))
		require.Equal(t, want.AggregateID, e.AggregateID)
	}
	require.NoError(t, rows.Err())
}
