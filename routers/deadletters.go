package routers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/google/uuid"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
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

// Mailbox is where dead letters wait to be published. It may be used concurrently.
type Mailbox interface {
	Unpublished(ctx context.Context, consumers []string, limit int) ([]deadletter.Entry, error)
	MarkPublished(ctx context.Context, ids []uuid.UUID, at time.Time) error
}

const mailboxTimeout = 10 * time.Second

// Postman publishes the dead letters of some consumers on the bus, each at least once.
type Postman struct {
	Mailbox   Mailbox
	Consumers []string
	Publisher message.Publisher
	Now       func() time.Time
	Log       *slog.Logger
	Poll      time.Duration // how often to look when nobody has called Wake; another process may have written
	wake      chan struct{}
}

// Init makes the postman ready for Wake and Run.
func (p *Postman) Init() *Postman {
	p.wake = make(chan struct{}, 1)
	if p.Poll == 0 {
		p.Poll = 15 * time.Second
	}
	return p
}

// Wake makes Run look now. It never blocks.
func (p *Postman) Wake() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Run publishes until ctx ends.
func (p *Postman) Run(ctx context.Context) {
	failing := false
	for ctx.Err() == nil {
		wait := p.Poll
		n, err := p.deliver(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			if !failing {
				p.Log.Error("dead letters can't be published yet, trying again", "error", err)
			}
			wait = 2 * time.Second
		case n > 0:
			continue
		}
		failing = err != nil
		select {
		case <-p.wake:
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

func (p *Postman) deliver(ctx context.Context) (int, error) {
	letters, err := p.collect(ctx)
	if err != nil || len(letters) == 0 {
		return 0, err
	}
	var done []uuid.UUID
	var failed error
	for _, l := range letters {
		err := p.Publisher.Publish(l.BusTopic, envelope(l))
		if err != nil && !fault.IsPermanent(err) {
			failed = fmt.Errorf("publish dead letter %s: %w", l.ID, err)
			break
		}
		if err != nil { // the bus will never take it; the row in the dlq table is what remains
			p.Log.Warn("the bus refuses a dead letter; it stays in the dlq table", "dlq_id", l.ID, "error", err)
		}
		done = append(done, l.ID)
	}
	if len(done) > 0 { // also when a later one failed: those before it need not be repeated
		failed = errors.Join(failed, p.mark(ctx, done))
	}
	return len(done), failed
}

// collect and mark have a deadline each: publishing, in between, takes as long as the bus does.
func (p *Postman) collect(ctx context.Context) ([]deadletter.Entry, error) {
	ctx, cancel := context.WithTimeout(ctx, mailboxTimeout)
	defer cancel()
	return p.Mailbox.Unpublished(ctx, p.Consumers, 100)
}

func (p *Postman) mark(ctx context.Context, ids []uuid.UUID) error {
	ctx, cancel := context.WithTimeout(ctx, mailboxTimeout)
	defer cancel()
	if err := p.Mailbox.MarkPublished(ctx, ids, p.Now().UTC()); err != nil {
		return fmt.Errorf("dead letters were published and will be again: %w", err)
	}
	return nil
}

// envelope is a dead letter as a record: the bytes as they came, and in headers what went wrong and where.
func envelope(l deadletter.Entry) *message.Message {
	m := message.NewMessage(l.ID.String(), l.Payload)
	if l.EventID != uuid.Nil {
		m.UUID = l.EventID.String()
	}
	m.Metadata = message.Metadata{
		"dlq_id":                l.ID.String(),
		"consumer":              l.Consumer,
		"error_message":         l.Error,
		"failed_at":             l.FailedAt.UTC().Format(time.RFC3339Nano),
		"retry_count":           strconv.Itoa(l.RetryCount),
		"source_topic":          l.Topic,
		event.MetaCorrelationID: l.CorrelationID,
	}
	if l.Partition != nil {
		m.Metadata["source_partition"] = strconv.Itoa(int(*l.Partition))
	}
	if l.Offset != nil {
		m.Metadata["source_offset"] = strconv.FormatInt(*l.Offset, 10)
	}
	if l.Key != "" {
		m.Metadata[event.MetaAggregateID] = l.Key
	}
	return m
}
