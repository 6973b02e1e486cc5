package routers

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/google/uuid"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/window"
)

// poison is where the poison queue middleware publishes: each message becomes a row in the dlq table of its service.
// From there it is published on the bus, so that a bus that is away loses nothing.
type poison struct {
	consumer string
	store    DeadLetterStore
	now      func() time.Time
	log      *slog.Logger
	added    func() // wakes who publishes them
	ctx      context.Context
	cancel   context.CancelFunc
}

func newPoison(consumer string, store DeadLetterStore, now func() time.Time, log *slog.Logger, added func()) *poison {
	p := &poison{consumer: consumer, store: store, now: now, log: log, added: added}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// Publish stores dead letters, as long as that takes.
func (p *poison) Publish(_ string, msgs ...*message.Message) error {
	for _, msg := range msgs {
		l := p.letter(msg)
		if err := p.add(l); err != nil {
			return err
		}
		p.log.Warn("message is now a dead letter", "consumer", l.Consumer, "event_id", l.EventID,
			"correlation_id", l.CorrelationID, "topic", l.Topic, "attempts", l.RetryCount+1, "reason", l.Error)
		if p.added != nil {
			p.added()
		}
	}
	return nil
}

func (p *poison) add(l deadletter.Entry) error {
	backoff := 50 * time.Millisecond
	warned := false
	for {
		ctx, cancel := context.WithTimeout(p.ctx, 10*time.Second)
		err := p.store.Add(ctx, l)
		cancel()
		if err == nil {
			return nil
		}
		if p.ctx.Err() != nil {
			return fmt.Errorf("store dead letter of %s: %w", p.consumer, err)
		}
		if !warned {
			p.log.Error("dead letter can't be stored, trying again", "consumer", p.consumer, "error", err)
			warned = true
		}
		select {
		case <-time.After(backoff):
		case <-p.ctx.Done():
		}
		backoff = min(2*backoff, 2*time.Second)
	}
}

// Close gives up letters that are not stored; their messages are not acknowledged and come again.
func (p *poison) Close() error {
	p.cancel()
	return nil
}

func (p *poison) letter(msg *message.Message) deadletter.Entry {
	l := deadletter.Entry{
		Consumer:      p.consumer,
		Payload:       msg.Payload,
		Error:         msg.Metadata.Get(middleware.ReasonForPoisonedKey),
		FailedAt:      p.now().UTC(),
		CorrelationID: middleware.MessageCorrelationID(msg),
		BusTopic:      event.DeadLetterTopic(event.TopicSystem),
	}
	l.RetryCount = attempts(msg.Context()) - 1
	if e, err := event.Unmarshal(msg.Payload); err == nil {
		l.EventID, l.EventType, l.Position = e.ID, e.Type, e.Metadata.Position
	} else if id, err := uuid.Parse(msg.Metadata.Get(event.MetaEventID)); err == nil {
		l.EventID = id
	} else if id, err := uuid.Parse(msg.UUID); err == nil && p.consumer != Ingestion { // there it is the message's own
		l.EventID = id
	}
	src, ok := window.SourceFrom(msg.Context())
	if !ok {
		return l
	}
	l.Topic, l.Key = src.Topic, src.Key
	if l.EventType == "" {
		l.EventType = msg.Metadata.Get(event.MetaEventType)
	}
	if src.Partition >= 0 {
		l.Partition = &src.Partition
	}
	if src.Offset >= 0 {
		l.Offset = &src.Offset
	} else if msg.UUID != "" {
		// It is stored again if the answer is lost, and must then be known: what was handed out once is one letter.
		l.ID = uuid.NewSHA1(uuid.NameSpaceOID, []byte(p.consumer+"\x00"+src.Topic+"\x00"+msg.UUID))
	}
	switch p.consumer {
	case Ingestion:
		l.Position, l.Properties = 0, properties(msg) // it is not in the log, whatever it says
		if _, eventType, err := event.SplitMQTTTopic(src.Topic); err == nil {
			l.EventType = eventType
			l.BusTopic = event.DeadLetterTopic(event.Topic(eventType))
		}
	case Relay:
		if l.Position == 0 && l.Offset != nil {
			l.Position = *l.Offset
		}
		l.BusTopic = event.DeadLetterTopic(event.Topic(msg.Metadata.Get(event.MetaEventType)))
	default:
		l.BusTopic = event.DeadLetterTopic(src.Topic)
	}
	return l
}

// properties are what an MQTT message says beside its body; a replay reads them again.
func properties(msg *message.Message) map[string]string {
	given := make(map[string]string)
	for _, name := range []string{event.MetaEventID, event.MetaEventTime, event.MetaCorrelationID, event.MetaTraceparent} {
		if value := msg.Metadata.Get(name); value != "" {
			given[name] = value
		}
	}
	return given
}
