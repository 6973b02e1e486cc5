package routers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
)

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
