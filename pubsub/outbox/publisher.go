package outbox

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/pubsub/window"
)

// PublisherConfig configures a [Publisher].
type PublisherConfig struct {
	// MaxBatch is the most events of one transaction; 1,000 if zero. A large event counts as several, one more for each
	// 4 KiB of its payload, so that a transaction stays one that ends in time. A longer batch of one caller is not divided.
	MaxBatch int
	// MaxQueue is the number of waiting events, counted likewise, from which [Publisher.Ingest] answers
	// [window.ErrFull]; 20,000 if zero.
	MaxQueue int
	// Wait is how long [Publisher.Ingest] waits before it answers [window.ErrTimeout]; for ever if zero.
	Wait time.Duration
	// Timeout bounds one attempt at a transaction; 10 s if zero.
	Timeout time.Duration
	// OnFlush, if set, is told the outcome of each attempt.
	OnFlush func(events int, err error)
	// OnCommit, if set, is called after each transaction; a relay in the same process is woken by it.
	OnCommit func()
	// Quiet, if set, tells that the active relay is woken by OnCommit; the database then need not notify anyone.
	Quiet func() bool
	// Logger is Watermill's; nil logs nothing.
	Logger watermill.LoggerAdapter
}

// Publisher makes events durable in the outbox. Concurrent calls share a transaction: each waits for the commit that
// carries its events, never for a timer. Events are stored in the order of the calls, and of the turns of their
// messages. It implements [message.Publisher].
type Publisher struct {
	id      string
	giveUp  context.CancelFunc // ends the attempt that is being made
	batcher *window.Batcher[submission]
	rows    *wsql.Publisher
}

// NewPublisher returns a publisher that writes to db. It must be closed; db stays the caller's.
func NewPublisher(db *sql.DB, cfg PublisherConfig) (*Publisher, error) {
	cfg.MaxBatch = max(cfg.MaxBatch, 0)
	if cfg.MaxBatch == 0 {
		cfg.MaxBatch = 1000
	}
	if cfg.MaxQueue == 0 {
		cfg.MaxQueue = 20_000
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second
	}
	ctx, giveUp := context.WithCancel(context.Background())
	p := &Publisher{id: uuid.NewString(), giveUp: giveUp}
	executor := timedExecutor{DB: db, ctx: ctx, timeout: cfg.Timeout}
	rows, err := wsql.NewPublisher(executor, wsql.PublisherConfig{SchemaAdapter: schema{notify: p.notification(cfg.Quiet)}}, nopIfNil(cfg.Logger))
	if err != nil {
		giveUp()
		return nil, fmt.Errorf("create SQL publisher: %w", err)
	}
	p.rows = rows
	p.batcher = window.NewBatcher(window.BatcherConfig[submission]{
		MaxBatch: cfg.MaxBatch,
		MaxQueue: cfg.MaxQueue,
		Wait:     cfg.Wait,
		Weigh:    weigh,
		OnFlush:  cfg.OnFlush,
		Prepare:  (*submission).read,
		Flush: func(_ context.Context, calls []submission) error {
			if err := p.flush(calls); err != nil {
				return err
			}
			if cfg.OnCommit != nil {
				cfg.OnCommit()
			}
			return nil
		},
	})
	return p, nil
}

// notification is what each transaction notifies with.
func (p *Publisher) notification(quiet func() bool) func() string {
	return func() string {
		if quiet != nil && quiet() {
			return ""
		}
		return p.id
	}
}

// ID identifies the publisher in notifications.
func (p *Publisher) ID() string { return p.id }

// weigh counts events as PublisherConfig.MaxBatch does.
func weigh(s submission) int {
	if s.parse != nil {
		return 1 // its source bounds the bytes
	}
	n := len(s.events)
	for i := range s.events {
		n += len(s.events[i].Payload) >> 12
	}
	return n
}

// Queued returns how many events wait for their transaction, counted as PublisherConfig.MaxBatch does.
func (p *Publisher) Queued() int { return p.batcher.Queued() }

// Ingest stores events in one transaction, in order. It returns nil once they are durable, [window.ErrFull] when too
// many are waiting, [window.ErrTimeout] when it took too long, an [fault.Permanent] error when the database can't hold
// one of them (then none is stored), the cause of ctx when that ends first, or [window.ErrClosed].
func (p *Publisher) Ingest(ctx context.Context, events []event.Envelope) error {
	if len(events) == 0 {
		return nil
	}
	err := p.batcher.TryDo(ctx, submission{events: events})
	switch {
	case err == nil:
		return nil
	case fault.IsPermanent(err):
		return &event.Error{Kind: event.Invalid, Field: "payload", Rule: "cannot be stored by the database"}
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", window.ErrTimeout, err)
	}
	return err
}

// Store is Ingest for one event that waits as long as it takes, in the turn that ctx carries.
func (p *Publisher) Store(ctx context.Context, e event.Envelope) error {
	return p.batcher.Do(ctx, submission{events: []event.Envelope{e}})
}

// StoreFunc is Store for the event that parse returns; its error is StoreFunc's. It is called once, when the event's
// turn has come, by the goroutine that writes.
func (p *Publisher) StoreFunc(ctx context.Context, parse func() (event.Envelope, error)) error {
	return p.batcher.Do(ctx, submission{parse: parse})
}

// submission is what one call stores.
type submission struct {
	events []event.Envelope
	parse  func() (event.Envelope, error) // gives the one event; nil if events are given
}

func (s *submission) read() error {
	if s.parse == nil {
		return nil
	}
	e, err := s.parse()
	if err != nil {
		return err
	}
	s.events = []event.Envelope{e}
	return nil
}

// Publish stores messages whose payloads are envelopes, in one transaction. The topic is not used: there is one outbox.
func (p *Publisher) Publish(_ string, msgs ...*message.Message) error {
	if len(msgs) == 0 {
		return nil
	}
	events := make([]event.Envelope, len(msgs))
	for i, m := range msgs {
		e, err := event.Unmarshal(m.Payload)
		if err != nil {
			return fmt.Errorf("read event of message %s: %w", m.UUID, err)
		}
		events[i] = e
	}
	return p.batcher.Do(msgs[0].Context(), submission{events: events})
}

// Close stops taking events and waits until those taken are durable.
func (p *Publisher) Close() error { return p.Shutdown(context.Background()) }

// Shutdown is Close that gives up when ctx ends.
func (p *Publisher) Shutdown(ctx context.Context) error {
	defer p.giveUp()
	defer context.AfterFunc(ctx, p.giveUp)()
	if err := p.batcher.Close(ctx); err != nil {
		return fmt.Errorf("close outbox publisher: %w", err)
	}
	return p.rows.Close()
}

func (p *Publisher) flush(calls []submission) error {
	var msgs message.Messages
	for _, call := range calls {
		for i := range call.events {
			m, err := row(&call.events[i])
			if err != nil {
				return fault.Permanent(err)
			}
			msgs = append(msgs, m)
		}
	}
	if err := p.rows.Publish(Topic, msgs...); err != nil {
		if fault.Unstorable(err) {
			return fault.Permanent(err)
		}
		return err
	}
	return nil
}

// timedExecutor bounds each statement: Watermill's publisher passes neither a deadline nor a context of its own, and a
// frozen server would hold it for ever.
type timedExecutor struct {
	*sql.DB
	ctx     context.Context // ends when the publisher gives up
	timeout time.Duration
}

func (t timedExecutor) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	defer context.AfterFunc(t.ctx, cancel)()
	return t.DB.ExecContext(ctx, query, args...)
}
