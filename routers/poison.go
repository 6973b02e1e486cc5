package routers

import (
	"context"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/google/uuid"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/batch"
)

// DeadLetterStore keeps what a consumer could not handle. Its error means that the letters are not stored yet, and that
// Add is to be called again; a letter that is there already is kept as it is.
type DeadLetterStore interface {
	Add(ctx context.Context, letters ...deadletter.Entry) error
}

// poison is where the poison queue middleware publishes: the record that could not be handled is the first one that is
// left of its batch.
type poison struct {
	refuse  refuser
	timeout time.Duration
}

// Publish keeps the record as a dead letter, and lets the rest of its batch go on.
func (p poison) Publish(_ string, msgs ...*message.Message) error {
	for _, m := range msgs {
		b := batch.From(m)
		rest := b.Rest()
		if len(rest) == 0 {
			continue
		}
		reason := m.Metadata.Get(middleware.ReasonForPoisonedKey)
		// The deadline of the attempt that failed may have passed.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(m.Context()), p.timeout)
		err := p.refuse(ctx, &rest[0], b.Attempts, reason)
		cancel()
		if err != nil {
			return err
		}
		b.Done(1)
	}
	return nil
}

// Close does nothing.
func (poison) Close() error { return nil }

// letters keeps what a router refuses in the dlq table of its service. From there it is published on the bus, so that a
// bus that is away loses nothing.
type letters struct {
	consumer string
	store    DeadLetterStore
	complete func(r *batch.Record, l *deadletter.Entry) // adds what only the router knows of its records
	now      func() time.Time
	log      *slog.Logger
	added    func() // wakes the publisher of dead letters; may be nil
}

// refuse is a [refuser].
func (l *letters) refuse(ctx context.Context, r *batch.Record, attempts int, reason string) error {
	return l.add(ctx, l.entry(r, attempts, reason))
}

// add stores dead letters, all or none.
func (l *letters) add(ctx context.Context, entries ...deadletter.Entry) error {
	if len(entries) == 0 {
		return nil
	}
	if err := l.store.Add(ctx, entries...); err != nil {
		return err
	}
	l.report(entries)
	return nil
}

// report says what has become a dead letter.
func (l *letters) report(entries []deadletter.Entry) {
	for i := range entries {
		e := &entries[i]
		l.log.Warn("message is now a dead letter", "consumer", e.Consumer, "event_id", e.EventID,
			"correlation_id", e.CorrelationID, "topic", e.Topic, "attempts", e.RetryCount+1, "reason", e.Error)
	}
	if l.added != nil && len(entries) > 0 {
		l.added()
	}
}

// entry returns a record as a dead letter. It is the same one each time that the record is refused.
func (l *letters) entry(r *batch.Record, attempts int, reason string) deadletter.Entry {
	e := deadletter.Entry{
		Consumer: l.consumer, Payload: r.Value, Error: reason, FailedAt: l.now().UTC(), RetryCount: max(0, attempts-1),
		Topic: r.Topic, Key: r.Key, CorrelationID: correlationOf(r), EventType: r.Header(event.MetaEventType),
		BusTopic: event.DeadLetterTopic(event.TopicSystem),
	}
	if r.Event != nil {
		e.EventID, e.EventType, e.Position = r.Event.ID, r.Event.Type, r.Event.Metadata.Position
		e.Payload, _ = r.Event.Marshal() // it was read from a valid one
	} else if read, err := event.Unmarshal(r.Value); err == nil {
		e.EventID, e.EventType, e.Position = read.ID, read.Type, read.Metadata.Position
	} else if id, err := uuid.Parse(r.Header(event.MetaEventID)); err == nil {
		e.EventID = id
	}
	if r.Partition >= 0 {
		e.Partition = &r.Partition
	}
	if r.Offset >= 0 {
		e.Offset = &r.Offset
	} else {
		// It is stored again if the answer is lost, and must then be known.
		e.ID = uuid.NewSHA1(uuid.NameSpaceOID, []byte(l.consumer+"\x00"+r.Topic+"\x00"+r.ID))
	}
	l.complete(r, &e)
	return e
}

// correlationOf returns the correlation ID of a record: its sender's, or else its own ID.
func correlationOf(r *batch.Record) string {
	if id := r.Header(event.MetaCorrelationID); id != "" {
		return id
	}
	return r.ID
}
