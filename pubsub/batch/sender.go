package batch

import (
	"cmp"
	"context"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Bounds of the pause before records that were refused are handed out again.
const (
	minPause = 50 * time.Millisecond
	maxPause = 2 * time.Second
)

// Sender hands the batches of one source to its router, one at a time. Send must not be called concurrently.
type Sender struct {
	// CloseTimeout is how long a batch in flight is waited for once the context of Send has ended; 10 s if zero.
	CloseTimeout time.Duration
	// MaxPause bounds the pause before records that were refused are handed out again, which begins with 50 ms and doubles
	// with each refusal; 2 s if zero.
	MaxPause time.Duration
	// Again, if set, is asked before records that were refused are handed out again; it returns those that still are the
	// source's to hand out, in their order.
	Again func(rest []Record) []Record

	out   chan *message.Message
	since atomic.Int64 // Unix nanoseconds; zero while nothing is in flight
}

// NewSender returns a sender to a channel, which the caller closes after the last Send.
func NewSender(closeTimeout time.Duration) *Sender {
	if closeTimeout == 0 {
		closeTimeout = 10 * time.Second
	}
	return &Sender{CloseTimeout: closeTimeout, out: make(chan *message.Message)}
}

// Out returns the channel that batches are sent to.
func (s *Sender) Out() chan *message.Message { return s.out }

// Oldest returns since when the batch in flight has been handed out, again or not; zero if none is.
func (s *Sender) Oldest() time.Time {
	if n := s.since.Load(); n != 0 {
		return time.Unix(0, n)
	}
	return time.Time{}
}

// Outcome is what has become of a batch.
type Outcome struct {
	// Done is how many of the first records are handled: all, unless the context ended first.
	Done int
	// Gather is how long the next batch should gather before it is sent.
	Gather time.Duration
}

// Send hands records out until all of them are done. What the router refuses is handed out again after a pause, without
// end. When ctx ends nothing is handed out any more, and what is in flight is waited for up to CloseTimeout.
func (s *Sender) Send(ctx context.Context, records []Record) Outcome {
	began := time.Now()
	s.since.Store(began.UnixNano())
	defer s.since.Store(0)
	// Messages outlive ctx: what is in flight when it ends can still be acknowledged.
	msgCtx, abandon := context.WithCancel(context.WithoutCancel(ctx))
	defer abandon()
	rest, pause, backoff := records, time.Duration(0), s.firstPause()
	for len(rest) > 0 {
		b, acked := s.once(ctx, msgCtx, rest)
		if b == nil {
			break
		}
		if acked && b.done == 0 { // by a handler that knows no batches
			b.Done(len(b.records))
		}
		if b.done > 0 {
			backoff = s.firstPause()
		}
		rest, pause = b.Rest(), max(pause, b.Pause)
		if acked || len(rest) == 0 {
			continue
		}
		select {
		case <-time.After(backoff):
		case <-ctx.Done():
			return Outcome{Done: len(records) - len(rest)}
		}
		backoff = min(2*backoff, cmp.Or(s.MaxPause, maxPause))
		if s.Again != nil {
			rest = s.Again(rest)
		}
	}
	return Outcome{Done: len(records) - len(rest), Gather: Gather(len(records), time.Since(began), pause)}
}

func (s *Sender) firstPause() time.Duration { return min(minPause, cmp.Or(s.MaxPause, maxPause)) }

// once hands out a batch and waits for the answer; nil says that ctx ended before there was one.
func (s *Sender) once(ctx, msgCtx context.Context, records []Record) (b *Batch, acked bool) {
	m := New(msgCtx, records)
	b = From(m) // the context of the message may be another one when it is answered
	select {
	case s.out <- m:
	case <-ctx.Done():
		return nil, false
	}
	ended := ctx.Done()
	var late <-chan time.Time
	for {
		select {
		case <-m.Acked():
			return b, true
		case <-m.Nacked():
			return b, false
		case <-ended:
			ended, late = nil, time.After(s.CloseTimeout)
		case <-late:
			return nil, false
		}
	}
}

// While records come in numbers larger batches cost less, so the next one gathers for a moment.
const (
	gatherFrom = 8                     // records of a batch that say so
	minGather  = 20 * time.Millisecond // a transaction costs about as much as thirty events
	maxGather  = 35 * time.Millisecond
)

// Gather returns how long the next batch may gather after one of n records that took so long: from the start of the one
// to the start of the next three times that, within bounds. Where the processors are busy the work of a batch takes
// longer, and a larger batch saves the most; where they are not it is latency that counts.
func Gather(n int, took, pause time.Duration) time.Duration {
	if n < gatherFrom {
		return 0
	}
	return max(0, pause, min(max(3*took, minGather), maxGather)-took)
}

// Sleep waits, and reports whether ctx lasted.
func Sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}
