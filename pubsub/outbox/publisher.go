package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
)

// PublisherConfig configures a [Publisher].
type PublisherConfig struct {
	// MaxBatch is the most events of one transaction; 1,000 if zero. A large event counts as several, one more for each
	// 4 KiB of its payload, so that a transaction stays one that ends in time. The events of one caller are not divided.
	MaxBatch int
	// MaxQueue is the number of waiting events, counted likewise, from which [Publisher.Ingest] answers [ErrFull];
	// 20,000 if zero.
	MaxQueue int
	// MaxOutbox is the number of rows of the outbox from which [Publisher.Ingest] answers [ErrCrowded], and
	// [Publisher.Store] waits; no limit if zero.
	MaxOutbox int64
	// Wait is how long [Publisher.Ingest] waits before it answers [ErrTimeout]; for ever if zero.
	Wait time.Duration
	// Timeout bounds one attempt at a transaction; 10 s if zero.
	Timeout time.Duration
	// OnFlush, if set, is told the outcome of each attempt.
	OnFlush func(events int, err error)
	// OnCommit, if set, is called after each transaction; a relay in the same process is woken by it.
	OnCommit func()
	// Quiet, if set, tells that the active relay is woken by OnCommit; the database then need not notify anyone.
	Quiet func() bool
}

// Publisher makes events durable in the outbox. Concurrent calls share a transaction: each waits for the commit that
// carries its events, never for a timer. Events are stored in the order of the calls. It implements [message.Publisher].
type Publisher struct {
	id      string
	pool    *pgxpool.Pool
	cfg     PublisherConfig
	batcher batcher
	crowd   crowd
}

// NewPublisher returns a publisher that writes to a database, whose pool stays the caller's. It must be closed.
func NewPublisher(pool *pgxpool.Pool, cfg PublisherConfig) *Publisher {
	if cfg.MaxBatch <= 0 {
		cfg.MaxBatch = 1000
	}
	if cfg.MaxQueue == 0 {
		cfg.MaxQueue = 20_000
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second
	}
	p := &Publisher{id: uuid.NewString(), pool: pool, cfg: cfg}
	p.batcher = batcher{write: p.write, maxBatch: cfg.MaxBatch, maxQueue: cfg.MaxQueue, onFlush: cfg.OnFlush}
	p.batcher.start()
	return p
}

// ID identifies the publisher in notifications.
func (p *Publisher) ID() string { return p.id }

// Queued returns how many events wait for their transaction, counted as PublisherConfig.MaxBatch does.
func (p *Publisher) Queued() int { return p.batcher.queued() }

// Ingest stores events in one transaction, in order, for callers that would rather be refused than wait. It returns nil
// once they are durable, [ErrFull] when too many are waiting, [ErrCrowded] when the outbox is full, [ErrTimeout] when it
// took too long, an [fault.Permanent] error when the database can't hold one of them (then none is stored), the cause of
// ctx when that ends first, or [ErrClosed]. What is still queued is then withdrawn; events whose transaction has begun may
// yet be stored.
func (p *Publisher) Ingest(ctx context.Context, events []event.Envelope) error {
	if len(events) == 0 {
		return nil
	}
	if p.batcher.full() {
		return ErrFull
	}
	if p.crowded(ctx) {
		return ErrCrowded
	}
	r := p.batcher.submit(events)
	var late <-chan time.Time
	if p.cfg.Wait > 0 {
		late = time.After(p.cfg.Wait)
	}
	select {
	case err := <-r.done:
		switch {
		case fault.IsPermanent(err):
			return &event.Error{Kind: event.Invalid, Field: "payload", Rule: "cannot be stored by the database"}
		case fault.TooSlow(err):
			return fmt.Errorf("%w: %w", ErrTimeout, err)
		}
		return err
	case <-late:
		p.batcher.withdraw(r)
		return ErrTimeout
	case <-ctx.Done():
		p.batcher.withdraw(r)
		return fmt.Errorf("%w: %w", ErrTimeout, context.Cause(ctx))
	}
}

// Store stores events in one transaction, in order, however long that takes, also when ctx ends: they are on their way.
// Its error is a [fault.Permanent] one when the database can't hold one of them, one that is [fault.TooSlow] when they
// are too many for one transaction, or [ErrClosed]. While the outbox is full it waits, and gives up when ctx ends.
func (p *Publisher) Store(ctx context.Context, events []event.Envelope) error {
	if len(events) == 0 {
		return nil
	}
	if err := p.room(ctx); err != nil {
		return err
	}
	return <-p.batcher.submit(events).done
}

// Publish stores messages whose payloads are envelopes, in one transaction. The topic is not used: there is one outbox.
func (p *Publisher) Publish(_ string, msgs ...*message.Message) error {
	events := make([]event.Envelope, len(msgs))
	for i, m := range msgs {
		e, err := event.Unmarshal(m.Payload)
		if err != nil {
			return fmt.Errorf("read event of message %s: %w", m.UUID, err)
		}
		events[i] = e
	}
	return p.Store(context.Background(), events)
}

// Close stops taking events and waits until those taken are durable.
func (p *Publisher) Close() error { return p.Shutdown(context.Background()) }

// Shutdown is Close that gives up when ctx ends.
func (p *Publisher) Shutdown(ctx context.Context) error {
	if err := p.batcher.close(ctx); err != nil {
		return fmt.Errorf("close outbox publisher: %w", err)
	}
	return nil
}

// write makes one attempt at a transaction.
func (p *Publisher) write(ctx context.Context, events []event.Envelope) error {
	notify := p.id
	if p.cfg.Quiet != nil && p.cfg.Quiet() {
		notify = ""
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Timeout)
	defer cancel()
	if err := insert(ctx, p.pool, notify, events); err != nil {
		return fault.Refused(err)
	}
	if p.cfg.OnCommit != nil {
		p.cfg.OnCommit()
	}
	return nil
}
