package routers_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/pubsub/batch"
	"github.com/cornjacket/platform-services/routers"
)

// street is a bus that keeps what is published, refuses some for good, and is away for the first calls.
type street struct {
	away      int
	refuse    []string // event IDs
	published map[string][]string
}

func (s *street) PublishAll(_ context.Context, records []batch.Record) (refused []batch.Refusal, err error) {
	if s.away > 0 {
		s.away--
		return nil, errors.New("no broker answers")
	}
	for i, r := range records {
		if slices.Contains(s.refuse, r.ID) {
			refused = append(refused, batch.Refusal{Index: i, Err: fault.Permanent(errors.New("message too large"))})
			continue
		}
		s.published[r.Topic] = append(s.published[r.Topic], r.ID)
	}
	return refused, nil
}

// sequenced returns events of types as the relay reads them.
func sequenced(t *testing.T, types ...string) (events []event.Envelope, all []batch.Record) {
	t.Helper()
	for i, eventType := range types {
		e := envelope7(int64(i + 1))
		e.Type = eventType
		events = append(events, e)
		all = append(all, batch.Record{Topic: "outbox", Partition: -1, Offset: int64(i + 1), Key: e.AggregateID, ID: e.ID.String(), Value: marshal(t, e), Headers: []batch.Header{
			{Key: event.MetaEventID, Value: e.ID.String()}, {Key: event.MetaEventType, Value: e.Type}, {Key: event.MetaCorrelationID, Value: "c-7"},
		}})
	}
	return events, all
}

// envelope7 is an event of device-7.
func envelope7(position int64) event.Envelope {
	return event.Envelope{
		ID: uuid.Must(uuid.NewV7()), Type: "sensor.reading", AggregateID: "device-7", Time: came, IngestedAt: came,
		Payload:  []byte(`{"value":1,"unit":"celsius"}`),
		Metadata: event.Metadata{Source: "http", CorrelationID: "c-7", SchemaVersion: 1, Position: position},
	}
}

func marshal(t *testing.T, e event.Envelope) []byte {
	t.Helper()
	data, err := e.Marshal()
	require.NoError(t, err)
	return data
}

// Each event goes to the topic of its type; of a batch only what the bus refuses alone is a dead letter.
func TestRelayPublishesAndSetsAside(t *testing.T) {
	t.Parallel()
	events, all := sequenced(t, "sensor.reading", "user.login", "sensor.x", "ai.anomaly", "sensor.reading")
	bus, letters := &street{away: 1, refuse: []string{all[2].ID}, published: map[string][]string{}}, &box{away: 1}
	f := newFeed()
	r, err := routers.NewRelay(routers.RelayConfig{Stack: stack(), Subscriber: f, Bus: bus, Letters: letters, Now: func() time.Time { return came }})
	require.NoError(t, err)
	through(t, f, r, all...)
	want := map[string][]string{
		"sensor-events": {all[0].ID, all[4].ID}, "user-actions": {all[1].ID}, "system-events": {all[3].ID},
	}
	for topic, ids := range want {
		want[topic] = append(ids, ids...) // once more, since the letter could not be stored
	}
	require.Equal(t, want, bus.published)
	offset := int64(3)
	require.Equal(t, []deadletter.Entry{{
		Consumer: routers.Relay, EventID: events[2].ID, Payload: all[2].Value, Error: "message too large", FailedAt: came, Topic: "outbox",
		Offset: &offset, Key: "device-7", CorrelationID: "c-7", BusTopic: "sensor-events.dlq", EventType: "sensor.x", Position: 3,
	}}, letters.letters)
}
