package routers

import (
	"context"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/batch"
)

// EventStore makes events durable, all or none. Store returns once they are, as long as that takes, or with an error
// marked as permanent if the database can't hold one of them. The events are its own until it returns.
type EventStore interface {
	Store(ctx context.Context, events []event.Envelope) error
}

// IngestionConfig configures the router from MQTT to the outbox.
type IngestionConfig struct {
	Stack
	Subscriber message.Subscriber // batches of MQTT messages; acknowledged once their events are durable
	Store      EventStore
	Letters    DeadLetterStore
	Added      func() // told of dead letters; may be nil
	Now        func() time.Time
	Clock      event.Clock       // the times that are believed
	Odd        func(kind string) // told of each of the [Oddities]; may be nil
}

// Kinds of oddities.
const (
	oddAhead = "clock_" + event.ClockAhead
	oddUnset = "clock_" + event.ClockUnset
	oddClear = "retained_cleared"
)

// Oddities returns the kinds of messages that are odd, and neither refused nor an error.
func Oddities() []string { return []string{oddAhead, oddUnset, oddClear} }

// NewIngestion returns the router that validates what devices publish and stores it; a message by which a device clears
// what the broker retains is no event. The ID of a record, a UUID, becomes
// that of an event whose sender gave none, and the time at which it came its time: what is handed out again is the same
// event.
func NewIngestion(cfg IngestionConfig) (*Router, error) {
	if cfg.Odd == nil {
		cfg.Odd = func(string) {}
	}
	refused := &letters{consumer: Ingestion, store: cfg.Letters, complete: completeIngestion, now: cfg.Now, log: cfg.Log, added: cfg.Added}
	return newRouter(Ingestion, cfg.Stack, Policy{}, "mqtt", cfg.Subscriber, func(ctx context.Context, b *batch.Batch) error {
		records := b.Records()
		events := make([]event.Envelope, 0, len(records))
		var broken []deadletter.Entry
		cleared := 0
		for i := range records {
			if len(records[i].Value) == 0 && records[i].Header(event.MetaRetain) != "" {
				cleared++
				continue
			}
			e, err := parseMQTT(&records[i], cfg.Clock)
			if err != nil {
				broken = append(broken, refused.entry(&records[i], 1, err.Error()))
				continue
			}
			events = append(events, e)
		}
		if err := refused.add(ctx, broken...); err != nil {
			return err
		}
		if err := cfg.Store.Store(ctx, events); err != nil {
			return err
		}
		for range cleared {
			cfg.Odd(oddClear)
		}
		for i := range events {
			if clock := events[i].Metadata.Clock; clock != "" {
				cfg.Odd("clock_" + clock)
			}
		}
		return nil
	}, refused.refuse)
}

// parseMQTT returns the event of an MQTT message. Its error is permanent.
func parseMQTT(r *batch.Record, clock event.Clock) (event.Envelope, error) {
	return event.ParseMQTT(r.Topic, r.Value, event.Properties{
		EventID:       r.Header(event.MetaEventID),
		EventTime:     r.Header(event.MetaEventTime),
		CorrelationID: r.Header(event.MetaCorrelationID),
		Traceparent:   r.Header(event.MetaTraceparent),
	}, event.Origin{Source: "mqtt", Now: r.At, Clock: clock, NewID: func() uuid.UUID { return uuid.MustParse(r.ID) }})
}

// maxRefused is how much is kept of a message that is too large to be an event.
const maxRefused = 64 << 10

// completeIngestion adds to a dead letter what a replay reads again. Of a message that no replay could take, since it is
// too large, only the beginning is kept: a sender must not fill the database with what is refused.
func completeIngestion(r *batch.Record, l *deadletter.Entry) {
	if len(l.Payload) > event.MaxBody {
		l.Error = fmt.Sprintf("%s (%d bytes came, the first %d are kept)", l.Error, len(l.Payload), maxRefused)
		l.Payload = l.Payload[:maxRefused]
	}
	l.Position = 0 // it is not in the log, whatever it says
	l.Properties = make(map[string]string)
	for _, name := range []string{event.MetaEventID, event.MetaEventTime, event.MetaCorrelationID, event.MetaTraceparent} {
		if value := r.Header(name); value != "" {
			l.Properties[name] = value
		}
	}
	if _, eventType, err := event.SplitMQTTTopic(r.Topic); err == nil {
		l.EventType, l.BusTopic = eventType, event.DeadLetterTopic(event.Topic(eventType))
	}
}
