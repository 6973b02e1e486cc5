package outbox

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
)

// Errors of a [Publisher].
var (
	// ErrFull says that too many events are waiting; try again later.
	ErrFull = fmt.Errorf("queue is full: %w", fault.ErrOverloaded)
	// ErrTimeout says that events were not stored in the time that [PublisherConfig.Wait] gives them.
	ErrTimeout = fmt.Errorf("not stored in time: %w", fault.ErrUnavailable)
	// ErrClosed says that the publisher no longer takes events.
	ErrClosed = fmt.Errorf("publisher is closed: %w", fault.ErrUnavailable)
)

// Bounds of the time between attempts, which doubles.
const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 2 * time.Second
)

// batcher stores the events of many callers at once: while one batch is being stored the next one gathers, and nobody
// ever waits for a timer.
type batcher struct {
	// write stores events in one transaction, in order: all of them or none. An error marked with [fault.Permanent]
	// means that one of them can never be stored, one that is [fault.TooSlow] that they were too many; so the batch is
	// halved until a request is alone with it. Any other error is taken for an outage: the batch is tried again until it
	// succeeds, with the same event IDs, since what was answered with an error may have been stored all the same.
	write              func(ctx context.Context, events []event.Envelope) error
	maxBatch, maxQueue int // weight
	onFlush            func(events int, err error)

	ctx    context.Context // ends when it gives up
	cancel context.CancelFunc
	done   chan struct{}

	mu     sync.Mutex
	more   sync.Cond
	queue  []*request
	weight int // of what is queued or being stored
	closed bool
}

// request is the events of one caller.
type request struct {
	events []event.Envelope
	weight int
	done   chan error // takes the one answer
}

// weigh counts events as [PublisherConfig.MaxBatch] does.
func weigh(events []event.Envelope) int {
	n := len(events)
	for i := range events {
		n += len(events[i].Payload) >> 12
	}
	return n
}

// start must be called once, and close to end it.
func (b *batcher) start() {
	b.done = make(chan struct{})
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.more.L = &b.mu
	go b.run()
}

// submit queues events; the answer is ErrClosed if it is too late.
func (b *batcher) submit(events []event.Envelope) *request {
	r := &request{events: events, weight: weigh(events), done: make(chan error, 1)}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		r.done <- ErrClosed
		return r
	}
	b.queue = append(b.queue, r)
	b.weight += r.weight
	b.more.Signal()
	return r
}

// withdraw takes a request out of the queue, unless its batch has been taken.
func (b *batcher) withdraw(r *request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.Index(b.queue, r); i >= 0 {
		b.queue = slices.Delete(slices.Clone(b.queue), i, i+1) // a batch being stored shares the array
		b.weight -= r.weight
	}
}

// queued returns the weight of what has been submitted and is not stored.
func (b *batcher) queued() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.weight
}

// full reports whether a request that can wait is not to be submitted now.
func (b *batcher) full() bool { return b.queued() >= b.maxQueue }

// close stops taking events and waits until those submitted are stored, or until ctx ends; what is then left is
// answered with ErrClosed.
func (b *batcher) close(ctx context.Context) error {
	b.mu.Lock()
	b.closed = true
	b.more.Broadcast()
	b.mu.Unlock()
	defer context.AfterFunc(ctx, b.cancel)()
	<-b.done
	if b.ctx.Err() != nil {
		return ctx.Err()
	}
	b.cancel()
	return nil
}

func (b *batcher) run() {
	defer close(b.done)
	for batch := b.take(); batch != nil; batch = b.take() {
		b.flush(batch)
	}
}

// take waits for requests and returns those of the next batch; none once the batcher is closed and empty.
func (b *batcher) take() []*request {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.queue) == 0 {
		if b.closed {
			return nil
		}
		b.more.Wait()
	}
	n, weight := 0, 0
	for n < len(b.queue) && (n == 0 || weight+b.queue[n].weight <= b.maxBatch) {
		weight += b.queue[n].weight
		n++
	}
	batch := b.queue[:n:n]
	b.queue = b.queue[n:]
	return batch
}

// flush stores a batch, halving it around requests that can never succeed, and down to what can be done in the time
// there is.
func (b *batcher) flush(batch []*request) {
	events, weight := make([]event.Envelope, 0, len(batch)), 0
	for _, r := range batch {
		events, weight = append(events, r.events...), weight+r.weight
	}
	err := b.attempt(events)
	if len(batch) > 1 && (fault.IsPermanent(err) || fault.TooSlow(err)) {
		b.flush(batch[:len(batch)/2])
		b.flush(batch[len(batch)/2:])
		return
	}
	b.mu.Lock()
	b.weight -= weight
	b.mu.Unlock()
	for _, r := range batch {
		r.done <- err
	}
}

// attempt tries to store events until it succeeds, fails for good, they are too many for the time there is, or the
// batcher gives up.
func (b *batcher) attempt(events []event.Envelope) error {
	for backoff := minBackoff; ; backoff = min(2*backoff, maxBackoff) {
		// Once a batch has been given up no later one may succeed: it would overtake.
		if b.ctx.Err() != nil {
			return ErrClosed
		}
		err := b.try(events)
		if b.onFlush != nil {
			b.onFlush(len(events), err)
		}
		if err == nil || fault.IsPermanent(err) || fault.TooSlow(err) && len(events) > 1 && b.ctx.Err() == nil {
			return err
		}
		select {
		case <-b.ctx.Done():
		case <-time.After(backoff):
		}
	}
}

// try is one attempt. A panic is a bug that a batch brings out: it is taken for a permanent error, so that only the
// request which does it fails, and not the process.
func (b *batcher) try(events []event.Envelope) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fault.Permanent(fmt.Errorf("panic while storing %d events: %v\n%s", len(events), r, debug.Stack()))
		}
	}()
	return b.write(b.ctx, events)
}
