// Package window is what the subscribers of the hot path share. A windowed subscriber hands out messages without
// waiting for earlier ones to be acknowledged, keeps those with the same key in order, and acknowledges to its source
// only the unbroken prefix of what has been acknowledged to it.
package window

import (
	"context"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"golang.org/x/sync/semaphore"
)

// Source says where a message was read.
type Source struct {
	Topic     string
	Partition int32 // -1 where the source has none
	Offset    int64 // -1 where the source has none
	Key       string
}

type sourceKey struct{}

// SourceFrom returns where the message that ctx belongs to was read.
func SourceFrom(ctx context.Context) (Source, bool) {
	s, ok := ctx.Value(sourceKey{}).(*Source)
	if !ok {
		return Source{}, false
	}
	return *s, true
}

// WithSource returns a context that says where its message was read.
func WithSource(ctx context.Context, s Source) context.Context {
	return &messageContext{lazyContext: lazyContext{Context: ctx}, source: s, turn: TurnFrom(ctx)}
}

// messageContext carries what a lane says of a message: one context in place of one for each value.
type messageContext struct {
	lazyContext
	source Source
	turn   *Turn
}

func (c *messageContext) Value(key any) any {
	switch key.(type) {
	case sourceKey:
		return &c.source
	case turnKey:
		return c.turn
	}
	return c.lazyContext.Value(key)
}

// LaneConfig configures a [Lane].
type LaneConfig[T any] struct {
	// Size is the most messages that may be unacknowledged at once.
	Size int
	// MaxBytes is the most bytes of payload that may be unacknowledged at once; a bigger message travels alone. 16 MiB
	// if zero.
	MaxBytes int
	// Advance is called in order with the mark of the newest message of the acknowledged prefix; marks in between may
	// be left out. It must not block for long.
	Advance func(mark T)
	// NackDelay is how long a message that was refused waits before it is handed out again; 100 ms if zero.
	NackDelay time.Duration
}

// Lane is one ordered source: an MQTT session, an outbox, a partition.
type Lane[T any] struct {
	cfg   LaneConfig[T]
	turns *Turns
	out   chan<- *message.Message

	entries chan *entry[T] // its capacity is the window
	room    *semaphore.Weighted
	mu      sync.Mutex
	oldest  time.Time // when the head was handed out; zero when nothing is in flight
	done    chan struct{}
}

type entry[T any] struct {
	msg  *message.Message
	ctx  *messageContext // as handed out; middleware may have replaced it in msg
	mark T
	turn *Turn
	size int64
	at   time.Time
}

// NewLane starts a lane that hands messages to out. Messages still in flight when ctx ends are abandoned: they are
// neither waited for nor acknowledged to the source, and those whose turn has not come get ErrAbandoned from a
// [Batcher]. Close ends the lane in good order.
func NewLane[T any](ctx context.Context, out chan<- *message.Message, cfg LaneConfig[T]) *Lane[T] {
	if cfg.NackDelay == 0 {
		cfg.NackDelay = 100 * time.Millisecond
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = 16 << 20
	}
	l := &Lane[T]{
		cfg:     cfg,
		room:    semaphore.NewWeighted(int64(cfg.MaxBytes)),
		turns:   NewTurns(),
		out:     out,
		entries: make(chan *entry[T], max(cfg.Size-1, 0)), // the collector holds one more
		done:    make(chan struct{}),
	}
	go l.collect(ctx)
	return l
}

// Send hands out a message in the order of the source. It waits while the window is full and until the message has
// been received, or returns false because ctx or the lane has ended. The message's context is derived from msgCtx, ends once the
// message has been acknowledged, and carries the turn of its key and its source. Send must not be called concurrently, nor
// after Close.
func (l *Lane[T]) Send(ctx, msgCtx context.Context, msg *message.Message, mark T, src Source) bool {
	e := &entry[T]{msg: msg, mark: mark, size: int64(min(len(msg.Payload), l.cfg.MaxBytes))}
	if !l.acquire(ctx, e.size) {
		return false
	}
	e.turn, e.at = l.turns.Take(src.Key), time.Now()
	e.ctx = &messageContext{lazyContext: lazyContext{Context: msgCtx}, source: src, turn: e.turn}
	msg.SetContext(e.ctx)
	select {
	case l.entries <- e:
	case <-ctx.Done():
		e.turn.Pass()
		return false
	case <-l.done: // the lane was abandoned
		e.turn.Pass()
		return false
	}
	select {
	case l.out <- msg:
		return true
	case <-ctx.Done():
		msg.Nack() // nobody has it: the collector hands it out again, unless the lane's context has ended too
		return false
	case <-l.done:
		return false
	}
}

// acquire waits for room for a payload, unless ctx or the lane ends first.
func (l *Lane[T]) acquire(ctx context.Context, size int64) bool {
	if l.room.TryAcquire(size) {
		return true
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-l.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	return l.room.Acquire(ctx, size) == nil
}

// Close says that nothing more will be sent. Done is closed once what is in flight has been acknowledged.
func (l *Lane[T]) Close() { close(l.entries) }

// Done is closed when the lane has ended.
func (l *Lane[T]) Done() <-chan struct{} { return l.done }

// Oldest returns when the oldest message in flight was handed out, zero if none is.
func (l *Lane[T]) Oldest() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.oldest
}

// collect waits for the acknowledgements in order, so that what has been acknowledged is always a prefix.
func (l *Lane[T]) collect(ctx context.Context) {
	defer close(l.done)
	defer l.turns.abandon()
	defer l.setOldest(time.Time{})
	for {
		l.setOldest(time.Time{})
		var e *entry[T]
		var ok bool
		select {
		case e, ok = <-l.entries:
		case <-ctx.Done():
			return
		}
		if !ok {
			return
		}
		l.setOldest(e.at)
		if !l.await(ctx, e) {
			return
		}
		e.turn.Pass()
		e.ctx.end()
		l.cfg.Advance(e.mark)
		l.room.Release(e.size)
	}
}

func (l *Lane[T]) setOldest(t time.Time) {
	l.mu.Lock()
	l.oldest = t
	l.mu.Unlock()
}

// await waits until the message is acknowledged, handing it out again each time it is refused.
func (l *Lane[T]) await(ctx context.Context, e *entry[T]) bool {
	for {
		select {
		case <-e.msg.Acked():
			return true
		case <-ctx.Done():
			return false
		case <-e.msg.Nacked():
		}
		select {
		case <-time.After(l.cfg.NackDelay):
		case <-ctx.Done():
			return false
		}
		again := e.msg.Copy()
		again.SetContext(e.ctx)
		e.msg = again
		select {
		case l.out <- again:
		case <-ctx.Done():
			return false
		}
	}
}
