package routers

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/pubsub/batch"
	"github.com/cornjacket/platform-services/store"
)

// Consumer is what one consumer of the bus does with the events of its topics. Each event has its effect exactly once,
// whatever is delivered again, crashes, or goes to another member of the group: the effect, how far the consumer is, what
// the ledger counts and the dead letters of a batch are one transaction.
type Consumer[T any] struct {
	Name   string   // also of its dead letters and of its group
	Topics []string // all of whose events it reads
	Policy Policy
	// Read returns what an event means to the consumer, or [ErrNotConcerned]. It is pure; any other error is permanent.
	Read func(e *event.Envelope) (T, error)
	// Apply makes the effect of items within tx, in order: all or none. An error marked as permanent, or a panic, says that
	// an item can never be applied; it becomes a dead letter, alone. [store.ErrConflict] has the batch tried again at once.
	Apply func(ctx context.Context, tx pgx.Tx, items []T) error
	// Begin, if set, is called before the first batch after partitions were taken, by this member or again: what Apply
	// remembers of its tables may not be true any more.
	Begin func(ctx context.Context, q store.Querier) error
	// Replay, if set, is called before Apply with the item of a dead letter that is replayed, after newer ones may have been
	// applied. It returns what is left to apply, or a permanent error if its order matters.
	Replay func(ctx context.Context, tx pgx.Tx, l *deadletter.Letter, item T) (T, error)
	// Done, if set, is told after each call of Apply whether its transaction was committed, and how long it took. It returns
	// how long the next batch should gather at least.
	Done func(committed bool, took time.Duration) time.Duration
}

// ErrNotConcerned is what Read returns for an event without a meaning to its consumer. It counts as handled.
var ErrNotConcerned = errors.New("the event does not concern the consumer")

// ConsumerConfig configures the router of a [Consumer].
type ConsumerConfig struct {
	Stack
	Subscriber message.Subscriber // batches of records of the consumer's topics
	Pool       *pgxpool.Pool      // the database that Apply writes to
	Positions  *store.Positions   // of the consumer, in that database
	Added      func()             // told of dead letters; may be nil
	Now        func() time.Time
	// OnFlush, if set, is told the outcome of each attempt at a transaction.
	OnFlush func(events int, err error)
	// OnLetters, if set, is told the outcome of each attempt to store dead letters.
	OnLetters func(err error)
}

// NewConsumer returns the router of a consumer.
func NewConsumer[T any](c Consumer[T], cfg ConsumerConfig) (*Router, error) {
	e := &engine[T]{Consumer: c, cfg: cfg, keep: keep}
	e.letters = &letters{consumer: c.Name, complete: completeBus, now: cfg.Now, log: cfg.Log, added: cfg.Added}
	return newRouter(c.Name, cfg.Stack, c.Policy, strings.Join(c.Topics, ","), cfg.Subscriber, e.handle, e.refuse)
}

// completeBus adds to a dead letter the topic that it is published on.
func completeBus(r *batch.Record, l *deadletter.Entry) { l.BusTopic = event.DeadLetterTopic(r.Topic) }

// keep stores the dead letters of a batch in its transaction.
func keep(ctx context.Context, tx pgx.Tx, letters ...deadletter.Entry) error {
	return deadletter.Add(ctx, tx, letters...)
}

// engine runs a consumer. It handles one batch at a time.
type engine[T any] struct {
	Consumer[T]
	cfg     ConsumerConfig
	letters *letters
	keep    func(ctx context.Context, tx pgx.Tx, letters ...deadletter.Entry) error
}

// plan is what a batch comes to.
type plan[T any] struct {
	items   []T
	moves   map[store.Partition]*store.Move
	letters []deadletter.Entry
	handled int // events that are new
}

// handle handles a batch in one transaction.
func (e *engine[T]) handle(ctx context.Context, b *batch.Batch) error {
	pause, err := e.process(ctx, b.Records(), nil)
	b.Pause = max(b.Pause, pause)
	return err
}

// refuse makes a record that can't be handled a dead letter, in the transaction that moves past it.
func (e *engine[T]) refuse(ctx context.Context, r *batch.Record, attempts int, reason string) error {
	_, err := e.process(ctx, []batch.Record{*r}, &refusal{attempts, reason})
	return err
}

// refusal says that a record is not to be applied, and why.
type refusal struct {
	attempts int
	reason   string
}

// conflicts is how often something is tried at once because of them: two members have the same rows only around a rebalance.
const conflicts = 5

// process handles records; refused, if not nil, is why the one record is to be a dead letter.
func (e *engine[T]) process(ctx context.Context, records []batch.Record, refused *refusal) (pause time.Duration, err error) {
	for attempt := 1; ; attempt++ {
		pause, err = e.attempt(ctx, records, refused)
		if !errors.Is(err, store.ErrConflict) || attempt == conflicts {
			return pause, err
		}
	}
}

func (e *engine[T]) attempt(ctx context.Context, records []batch.Record, refused *refusal) (pause time.Duration, err error) {
	if err := e.cfg.Positions.Settle(ctx); err != nil {
		return 0, err
	}
	if e.Begin != nil && e.cfg.Positions.Fresh() {
		if err := e.Begin(ctx, e.cfg.Pool); err != nil {
			return 0, err
		}
		e.cfg.Positions.Begun()
	}
	p, err := e.plan(records, refused)
	if err != nil || len(p.moves) == 0 && len(p.letters) == 0 {
		return 0, err
	}
	began := time.Now()
	err = e.commit(ctx, p)
	if e.Done != nil {
		pause = e.Done(err == nil, time.Since(began))
	}
	if e.cfg.OnFlush != nil && !errors.Is(err, store.ErrConflict) {
		e.cfg.OnFlush(p.handled, err)
	}
	if err == nil {
		e.letters.report(p.letters)
	}
	return pause, err
}

// commit writes what a batch comes to, all or nothing.
func (e *engine[T]) commit(ctx context.Context, p *plan[T]) error {
	committed := false
	defer func() { e.cfg.Positions.Done(committed) }() // also after a panic
	err := pgx.BeginFunc(ctx, e.cfg.Pool, func(tx pgx.Tx) error { return e.write(ctx, tx, p) })
	committed = err == nil
	if err != nil {
		return fmt.Errorf("%s: %w", e.Name, err)
	}
	return nil
}

// write writes what a batch comes to within tx.
func (e *engine[T]) write(ctx context.Context, tx pgx.Tx, p *plan[T]) error {
	moves := make([]store.Move, 0, len(p.moves))
	for _, m := range p.moves {
		moves = append(moves, *m)
	}
	if err := e.cfg.Positions.Advance(ctx, tx, moves); err != nil {
		return err
	}
	if len(p.items) > 0 {
		if err := e.Apply(ctx, tx, p.items); err != nil {
			return fault.Refused(err)
		}
	}
	if len(p.letters) > 0 {
		err := e.keep(ctx, tx, p.letters...)
		if e.cfg.OnLetters != nil {
			e.cfg.OnLetters(err)
		}
		return err
	}
	return nil
}

// plan reads records. An event whose position is not above that of its partition has been handled before: the relay
// publishes again, after a crash, with the same positions and in the same order.
func (e *engine[T]) plan(records []batch.Record, refused *refusal) (*plan[T], error) {
	p := &plan[T]{moves: make(map[store.Partition]*store.Move)}
	for i := range records {
		r := &records[i]
		part := store.Partition{Topic: r.Topic, Partition: r.Partition}
		m := p.moves[part]
		if m == nil {
			position, err := e.cfg.Positions.Position(part)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", e.Name, err)
			}
			m = &store.Move{Partition: part, Position: position, Offset: -1}
			p.moves[part] = m
		}
		if r.Offset >= 0 {
			m.Offset = r.Offset + 1
		}
		e.take(p, m, r, refused)
	}
	return p, nil
}

// take adds a record to the plan.
func (e *engine[T]) take(p *plan[T], m *store.Move, r *batch.Record, refused *refusal) {
	logged, err := logged(r)
	if err != nil { // it did not come through the log
		l := e.letters.entry(r, 1, err.Error())
		l.Position = 0
		p.letters = append(p.letters, l)
		return
	}
	if logged.Metadata.Position <= m.Position {
		return
	}
	m.Position = logged.Metadata.Position
	m.Events++
	p.handled++
	if refused != nil {
		m.Dead++
		p.letters = append(p.letters, e.letters.entry(r, refused.attempts, refused.reason))
		return
	}
	item, err := e.Read(logged)
	switch {
	case err == nil:
		p.items = append(p.items, item)
	case errors.Is(err, ErrNotConcerned):
		m.Skipped++
	default:
		m.Dead++
		p.letters = append(p.letters, e.letters.entry(r, 1, err.Error()))
	}
}

var errNotLogged = fault.Permanent(errors.New("metadata.position: is missing, the event did not come through the log"))

// recovered turns a panic of f into a permanent error that has its stack.
func recovered(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fault.Permanent(fmt.Errorf("the handler panicked: %v\n%s", r, debug.Stack()))
		}
	}()
	return f()
}

// logged returns the event of a record, with its position in the log. The error is permanent.
func logged(r *batch.Record) (*event.Envelope, error) {
	if r.Event != nil {
		return r.Event, nil
	}
	e, err := event.Unmarshal(r.Value)
	if err != nil {
		return nil, fmt.Errorf("read event: %w", err)
	}
	if e.Metadata.Position <= 0 {
		return nil, errNotLogged
	}
	return &e, nil
}
