package routers

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/pubsub/window"
)

// memory is an EventStore, and a Watermill publisher, that keeps what it is given.
type memory struct {
	mu        sync.Mutex
	events    []event.Envelope
	published map[string][]string // IDs by topic
	refuse    error
}

func (m *memory) StoreFunc(_ context.Context, parse func() (event.Envelope, error)) error {
	e, err := parse()
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refuse != nil {
		return m.refuse
	}
	m.events = append(m.events, e)
	return nil
}

func (m *memory) Publish(topic string, msgs ...*message.Message) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, msg := range msgs {
		m.published[topic] = append(m.published[topic], msg.UUID)
	}
	return m.refuse
}

func (m *memory) Close() error { return nil }

func mqttMessage(topic, body string, metadata message.Metadata) (*message.Message, window.Source) {
	msg := message.NewMessage(uuid.NewString(), []byte(body))
	for k, v := range metadata {
		msg.Metadata[k] = v
	}
	msg.Metadata[event.MetaMQTTTopic] = topic
	return msg, window.Source{Topic: topic, Partition: -1, Offset: -1, Key: topic}
}

func ingestion(t *testing.T, kept *memory) (*source, *letterBox, func() int) {
	t.Helper()
	src, box := newSource(), &letterBox{}
	var mu sync.Mutex
	woken := 0
	r, err := NewIngestion(IngestionConfig{Stack: stack(), Subscriber: src, Store: kept, Letters: box,
		Now: func() time.Time { return t0 }, NewID: func() uuid.UUID { return uuid.Must(uuid.NewV7()) },
		Added: func() { mu.Lock(); defer mu.Unlock(); woken++ }})
	require.NoError(t, err)
	start(t, r)
	return src, box, func() int { mu.Lock(); defer mu.Unlock(); return woken }
}

func TestIngestionStoresWhatDevicesPublish(t *testing.T) {
	t.Parallel()
	kept := &memory{}
	src, box, _ := ingestion(t, kept)
	id := uuid.New()
	src.send(mqttMessage("devices/device-1/events/sensor.reading", `{"value":1,"unit":"celsius"}`, message.Metadata{
		event.MetaEventID: id.String(), event.MetaEventTime: "2026-01-02T03:04:05Z", event.MetaCorrelationID: "c-9",
		event.MetaTraceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	}))
	require.Eventually(t, func() bool { return src.hasAcked(-1) }, soon, tick)
	require.Empty(t, box.all())
	require.Len(t, kept.events, 1)
	e := kept.events[0]
	require.Equal(t, id, e.ID)
	require.Equal(t, "sensor.reading", e.Type)
	require.Equal(t, "device-1", e.AggregateID)
	require.Equal(t, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), e.Time)
	require.Equal(t, t0, e.IngestedAt)
	require.Equal(t, "c-9", e.Metadata.CorrelationID)
	require.Equal(t, "mqtt", e.Metadata.Source)
	require.NotEmpty(t, e.Metadata.Traceparent)
}

func TestIngestionsDeadLetters(t *testing.T) {
	t.Parallel()
	given := uuid.New()
	for name, tc := range map[string]struct {
		topic, body string
		metadata    message.Metadata
		busTopic    string
		eventID     uuid.UUID
	}{
		"not JSON":          {"devices/d/events/sensor.reading", "\x00{", nil, "sensor-events.dlq", uuid.Nil},
		"breaks its schema": {"devices/d/events/user.login", `{"user_id":1}`, nil, "user-actions.dlq", uuid.Nil},
		"known by its ID":   {"devices/d/events/sensor.reading", `[]`, message.Metadata{event.MetaEventID: given.String()}, "sensor-events.dlq", given},
		"a strange topic":   {"devices/d/what", `{}`, nil, "system-events.dlq", uuid.Nil},
		"a bad envelope":    {"events", `{"event_type":"x"}`, nil, "system-events.dlq", uuid.Nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kept := &memory{}
			src, box, woken := ingestion(t, kept)
			src.send(mqttMessage(tc.topic, tc.body, tc.metadata))
			require.Eventually(t, func() bool { return src.hasAcked(-1) }, soon, tick)
			require.Empty(t, kept.events)
			require.Len(t, box.all(), 1)
			l := box.all()[0]
			require.Equal(t, Ingestion, l.Consumer)
			require.Equal(t, tc.body, string(l.Payload))
			require.Equal(t, tc.topic, l.Topic)
			require.Equal(t, tc.busTopic, l.BusTopic)
			require.Equal(t, tc.eventID, l.EventID, "the ID of a packet is not that of an event")
			require.NotEmpty(t, l.Error)
			require.Equal(t, 1, woken())
		})
	}
}

func TestRelayPublishesOnTheTopicOfTheType(t *testing.T) {
	t.Parallel()
	kept, src, box := &memory{published: map[string][]string{}}, newSource(), &letterBox{}
	r, err := NewRelay(RelayConfig{Stack: stack(), Subscriber: src, Publisher: kept, Letters: box, Now: time.Now})
	require.NoError(t, err)
	start(t, r)
	for i, eventType := range []string{"sensor.reading", "user.login", "ai.anomaly"} {
		msg := message.NewMessage(eventType, nil)
		msg.Metadata = message.Metadata{event.MetaEventType: eventType}
		src.send(msg, window.Source{Topic: "outbox", Partition: -1, Offset: int64(i), Key: eventType})
	}
	require.Eventually(t, func() bool { return src.hasAcked(0, 1, 2) }, soon, tick)
	require.Equal(t, map[string][]string{
		"sensor-events": {"sensor.reading"}, "user-actions": {"user.login"}, "system-events": {"ai.anomaly"},
	}, kept.published)
	require.Empty(t, box.all())
}

func TestRelaySetsAsideWhatTheBusRefuses(t *testing.T) {
	t.Parallel()
	kept, src, box := &memory{published: map[string][]string{}}, newSource(), &letterBox{}
	kept.refuse = fault.Permanent(errors.New("message too large"))
	r, err := NewRelay(RelayConfig{Stack: stack(), Subscriber: src, Publisher: kept, Letters: box, Now: func() time.Time { return t0 }})
	require.NoError(t, err)
	start(t, r)
	e := envelope7(7)
	msg := message.NewMessage(e.ID.String(), marshal(t, e))
	msg.Metadata = message.Metadata{event.MetaEventType: e.Type, event.MetaCorrelationID: "c-7"}
	src.send(msg, window.Source{Topic: "outbox", Partition: -1, Offset: 7, Key: "device-7"})
	require.Eventually(t, func() bool { return src.hasAcked(7) }, soon, tick)
	require.Len(t, box.all(), 1)
	offset := int64(7)
	require.Equal(t, deadletter.Entry{
		Consumer: Relay, EventID: e.ID, Payload: marshal(t, e), Error: "message too large", FailedAt: t0, Topic: "outbox",
		Offset: &offset, Key: "device-7", CorrelationID: "c-7", BusTopic: "sensor-events.dlq",
		EventType: "sensor.reading", Position: 7,
	}, box.all()[0])
}
