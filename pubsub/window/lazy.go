package window

import (
	"context"
	"sync"
	"time"
)

// lazyContext is what [context.WithCancel] or [context.WithDeadline] returns, made when somebody first waits for it. On the
// hot path nobody does, and a timer for each message, or entering it into its parent's list of children and taking it out
// again, costs more than all else that its contexts do.
type lazyContext struct {
	context.Context           // the parent
	deadline        time.Time // none if zero

	mu     sync.Mutex
	ended  bool
	live   context.Context
	cancel context.CancelFunc
}

// WithDeadline is [context.WithDeadline] for contexts that are seldom waited for.
func WithDeadline(parent context.Context, deadline time.Time) (context.Context, context.CancelFunc) {
	c := &lazyContext{Context: parent, deadline: deadline}
	return c, c.end
}

// Deadline returns the earlier of the context's own deadline and its parent's.
func (c *lazyContext) Deadline() (time.Time, bool) {
	parents, ok := c.Context.Deadline()
	if c.deadline.IsZero() || ok && parents.Before(c.deadline) {
		return parents, ok
	}
	return c.deadline, true
}

// Done returns a channel that is closed when the context or its parent has ended.
func (c *lazyContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.start().Done()
}

// Err returns why the context has ended, nil if it has not.
func (c *lazyContext) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.live != nil || !c.deadline.IsZero(): // only the timer knows
		return c.start().Err()
	case c.ended:
		return context.Canceled
	}
	return c.Context.Err()
}

// start makes the context. The lock is held.
func (c *lazyContext) start() context.Context {
	if c.live != nil {
		return c.live
	}
	if c.deadline.IsZero() {
		c.live, c.cancel = context.WithCancel(c.Context)
	} else {
		c.live, c.cancel = context.WithDeadline(c.Context, c.deadline)
	}
	if c.ended {
		c.cancel()
	}
	return c.live
}

// Value looks in what Done has made, if it has: so contexts derived from this one find whom to be children of.
func (c *lazyContext) Value(key any) any {
	c.mu.Lock()
	from := c.live
	c.mu.Unlock()
	if from == nil {
		from = c.Context
	}
	return from.Value(key)
}

// end ends the context. It may be called again.
func (c *lazyContext) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	if c.cancel != nil {
		c.cancel()
	}
}
