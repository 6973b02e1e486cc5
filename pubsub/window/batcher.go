package window

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/cornjacket/platform-services/internal/fault"
)

// Errors of a [Batcher].
var (
	// ErrFull says that the queue has no room; try again later.
	ErrFull = fmt.Errorf("queue is full: %w", fault.ErrOverloaded)
	// ErrTimeout says that an item was not done in the time that [BatcherConfig.Wait] gives it.
	ErrTimeout = fmt.Errorf("not done in time: %w", fault.ErrUnavailable)
	// ErrClosed says that the batcher no longer takes items.
	ErrClosed = fmt.Errorf("batcher is closed: %w", fault.ErrUnavailable)
	// ErrAbandoned says that the item's source ended before its turn came. It was not handed in, and will be read again.
	ErrAbandoned = errors.New("message was abandoned before its turn")
)

// BatcherConfig configures a [Batcher].
type BatcherConfig[T any] struct {
	// Prepare, if set, is called once for each item before its first Flush, in order and never concurrently. An error is
	// the item's answer, and keeps it out of the batch. What is costly to do in the goroutine of each caller, whose stack
	// would have to grow for it, belongs here.
	Prepare func(item *T) error
	// Flush does the work of one batch, in order: all of it or none. An error marked with [fault.Permanent] means
	// that an item of the batch can never succeed: the batch is halved until that item is alone, and the error is that
	// item's; so does a panic. A batch that takes too long, by [fault.TooSlow], is halved too, and its halves are tried
	// in turn. Any other error is taken for an outage: the batch is tried again until it succeeds.
	Flush func(ctx context.Context, items []T) error
	// Weigh tells how much of a batch an item takes; 1 if nil.
	Weigh func(T) int
	// MaxBatch is the greatest weight of one batch. A heavier item travels alone.
	MaxBatch int
	// MaxQueue is the weight from which [Batcher.TryDo] answers ErrFull. Zero means no bound.
	MaxQueue int
	// Wait is how long [Batcher.TryDo] waits before it answers ErrTimeout. Zero means no bound.
	Wait time.Duration
	// OnFlush, if set, is told the outcome of each attempt, for health and logs.
	OnFlush func(items int, err error)
	// Pace, if set, is asked how long the next batch may gather, after one of PaceFrom items or more that took so long:
	// while items are coming in numbers, larger batches cost less. A batch that follows a smaller one never waits, nor one
	// that is full.
	Pace func(took time.Duration) time.Duration
	// MinBackoff and MaxBackoff bound the time between attempts; 50 ms and 2 s if zero.
	MinBackoff, MaxBackoff time.Duration
}

// PaceFrom is the size of a batch that says that items are coming in numbers.
const PaceFrom = 8

// Bounds of [Gather].
const (
	MinGather = 20 * time.Millisecond // a transaction costs about as much as thirty events
	MaxGather = 35 * time.Millisecond
)

// Gather returns how long the next batch may gather while items come in numbers, after one that took so long: from the
// start of the one to the start of the next three times that, within bounds. The work of a batch takes longer where
// processors are busy, and there a larger batch saves the most; where they are not, it is latency that counts.
func Gather(took time.Duration) time.Duration {
	return max(0, min(max(3*took, MinGather), MaxGather)-took)
}

// Batcher does the work of many callers at once: while one batch is being done the next one gathers, and nobody ever
// waits for a timer. Callers whose context carries a [Turn] are taken in the order of their turns.
type Batcher[T any] struct {
	cfg    BatcherConfig[T]
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}

	timers  sync.Pool // of stopped ones
	tickets sync.Pool // of answered ones

	mu     sync.Mutex
	more   sync.Cond
	queue  []*ticket[T]
	queued int // weight of what is queued
	weight int // of what is queued or being done
	closed bool
	ripe   chan struct{} // while a batch gathers: closed when it need not any longer
}

// ticket is an item and where its one answer goes. It belongs to its caller again once that has the answer.
type ticket[T any] struct {
	batcher *Batcher[T]
	item    T
	weight  int
	done    chan error
}

func (t *ticket[T]) come()    { t.batcher.push(t) }
func (t *ticket[T]) abandon() { t.done <- ErrAbandoned }

func (b *Batcher[T]) ticket(item T) *ticket[T] {
	t, ok := b.tickets.Get().(*ticket[T])
	if !ok {
		t = &ticket[T]{batcher: b, done: make(chan error, 1)}
	}
	t.item, t.weight = item, b.cfg.Weigh(item)
	return t
}

// reuse takes a ticket back whose answer has been read.
func (b *Batcher[T]) reuse(t *ticket[T]) {
	var none T
	t.item = none
	b.tickets.Put(t)
}

// NewBatcher starts a batcher. Close must be called to stop it.
func NewBatcher[T any](cfg BatcherConfig[T]) *Batcher[T] {
	if cfg.Weigh == nil {
		cfg.Weigh = func(T) int { return 1 }
	}
	if cfg.MinBackoff == 0 {
		cfg.MinBackoff = 50 * time.Millisecond
	}
	if cfg.MaxBackoff == 0 {
		cfg.MaxBackoff = 2 * time.Second
	}
	b := &Batcher[T]{cfg: cfg, done: make(chan struct{})}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.more.L = &b.mu
	go b.run()
	return b
}

// Do hands an item in and waits until the batch that carries it is done. It returns nil, the item's permanent error,
// ErrClosed or ErrAbandoned; it does not return earlier when ctx ends, since the item is then still on its way.
func (b *Batcher[T]) Do(ctx context.Context, item T) error {
	t := b.ticket(item)
	TurnFrom(ctx).do(t)
	err := <-t.done
	b.reuse(t)
	return err
}

// TryDo is Do for callers that would rather be refused than wait: it returns ErrFull when the queue is full, ErrTimeout
// after [BatcherConfig.Wait], and the cause of ctx when that ends first. An item still queued is then withdrawn; one
// whose batch is being done may yet succeed.
func (b *Batcher[T]) TryDo(ctx context.Context, item T) error {
	if b.cfg.MaxQueue > 0 && b.Queued() >= b.cfg.MaxQueue {
		return ErrFull
	}
	t := b.ticket(item)
	TurnFrom(ctx).do(t)
	var late <-chan time.Time
	if b.cfg.Wait > 0 {
		timer := b.timer()
		defer b.timers.Put(timer)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case err := <-t.done:
		b.reuse(t)
		return err
	case <-late:
		b.withdraw(t)
		return ErrTimeout
	case <-ctx.Done():
		b.withdraw(t)
		return context.Cause(ctx)
	}
}

// timer returns one that runs: a context with a deadline costs several times as much.
func (b *Batcher[T]) timer() *time.Timer {
	if timer, ok := b.timers.Get().(*time.Timer); ok {
		timer.Reset(b.cfg.Wait)
		return timer
	}
	return time.NewTimer(b.cfg.Wait)
}

// withdraw takes a ticket out of the queue, unless its batch has been taken.
func (b *Batcher[T]) withdraw(t *ticket[T]) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.Index(b.queue, t); i >= 0 {
		b.queue = slices.Delete(slices.Clone(b.queue), i, i+1) // a batch being done shares the array
		b.queued -= t.weight
		b.weight -= t.weight
	}
}

// Queued returns the weight of what has been handed in and is not done.
func (b *Batcher[T]) Queued() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.weight
}

func (b *Batcher[T]) push(t *ticket[T]) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		t.done <- ErrClosed
		return
	}
	b.queue = append(b.queue, t)
	b.queued += t.weight
	b.weight += t.weight
	if b.queued >= b.cfg.MaxBatch {
		b.ripen()
	}
	b.more.Signal()
}

// Close stops taking items and waits until those handed in are done, or until ctx ends; what is then left gets
// ErrClosed.
func (b *Batcher[T]) Close(ctx context.Context) error {
	b.mu.Lock()
	b.closed = true
	b.ripen()
	b.more.Broadcast()
	b.mu.Unlock()
	select {
	case <-b.done:
		b.cancel()
		return nil
	case <-ctx.Done():
		b.cancel()
		<-b.done
		return ctx.Err()
	}
}

func (b *Batcher[T]) run() {
	defer close(b.done)
	for {
		batch := b.take()
		if batch == nil {
			return
		}
		began, size := time.Now(), len(batch)
		if batch = b.prepare(batch); len(batch) > 0 {
			b.flush(batch)
		}
		if size >= PaceFrom && b.cfg.Pace != nil {
			b.gather(b.cfg.Pace(time.Since(began)))
		}
	}
}

// gather lets the next batch grow, until it is full or the batcher is closing.
func (b *Batcher[T]) gather(d time.Duration) {
	if d <= 0 {
		return
	}
	ripe := make(chan struct{})
	b.mu.Lock()
	b.ripe = ripe
	if b.closed || b.queued >= b.cfg.MaxBatch {
		b.ripen()
	}
	b.mu.Unlock()
	select {
	case <-ripe:
	case <-time.After(d):
	}
	b.mu.Lock()
	b.ripe = nil
	b.mu.Unlock()
}

// ripen ends the gathering of a batch, if one is gathering. The lock is held.
func (b *Batcher[T]) ripen() {
	if b.ripe != nil {
		close(b.ripe)
		b.ripe = nil
	}
}

// prepare makes a batch ready for Flush, and answers those that can't be.
func (b *Batcher[T]) prepare(batch []*ticket[T]) []*ticket[T] {
	if b.cfg.Prepare == nil {
		return batch
	}
	ready := batch[:0]
	for _, t := range batch {
		if err := b.prepareOne(t); err != nil {
			b.answer([]*ticket[T]{t}, err)
		} else {
			ready = append(ready, t)
		}
	}
	return ready
}

func (b *Batcher[T]) prepareOne(t *ticket[T]) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fault.Permanent(fmt.Errorf("panic: %v\n%s", r, debug.Stack()))
		}
	}()
	return b.cfg.Prepare(&t.item)
}

func (b *Batcher[T]) take() []*ticket[T] {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.queue) == 0 {
		if b.closed {
			return nil
		}
		b.more.Wait()
	}
	n, weight := 0, 0
	for n < len(b.queue) && (n == 0 || weight+b.queue[n].weight <= b.cfg.MaxBatch) {
		weight += b.queue[n].weight
		n++
	}
	batch := b.queue[:n:n]
	b.queue = b.queue[n:]
	b.queued -= weight
	if len(b.queue) == 0 {
		b.queue = nil
	}
	return batch
}

// flush does a batch, halving it around items that can never succeed, and down to what can be done in the time there is.
func (b *Batcher[T]) flush(batch []*ticket[T]) {
	items := make([]T, len(batch))
	for i, t := range batch {
		items[i] = t.item
	}
	err := b.attempt(items)
	if len(batch) > 1 && (fault.IsPermanent(err) || fault.TooSlow(err)) {
		b.flush(batch[:len(batch)/2])
		b.flush(batch[len(batch)/2:])
		return
	}
	b.answer(batch, err)
}

func (b *Batcher[T]) answer(batch []*ticket[T], err error) {
	weight := 0
	for _, t := range batch {
		weight += t.weight
	}
	b.mu.Lock()
	b.weight -= weight
	b.mu.Unlock()
	for _, t := range batch {
		t.done <- err
	}
}

// attempt tries a batch until it succeeds, fails for good, is too large for the time it has, or the batcher is closed.
func (b *Batcher[T]) attempt(items []T) error {
	backoff := b.cfg.MinBackoff
	for {
		// Once a batch has been given up no later one may succeed: it would overtake.
		if b.ctx.Err() != nil {
			return ErrClosed
		}
		err := b.try(items)
		if b.cfg.OnFlush != nil {
			b.cfg.OnFlush(len(items), err)
		}
		if err == nil || fault.IsPermanent(err) || fault.TooSlow(err) && len(items) > 1 {
			return err
		}
		select {
		case <-b.ctx.Done():
			return ErrClosed
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, b.cfg.MaxBackoff)
	}
}

// try is one attempt. A panic is a bug that a batch brings out: it is taken for a permanent error, so that only the
// item which does it fails, and not the process.
func (b *Batcher[T]) try(items []T) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fault.Permanent(fmt.Errorf("panic in a batch of %d: %v\n%s", len(items), r, debug.Stack()))
		}
	}()
	return b.cfg.Flush(b.ctx, items)
}
