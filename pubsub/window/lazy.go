package window

import (
	"context"
	"sync"
)

// lazyContext is what [context.WithCancel] returns, made when somebody first asks for its channel. On the hot path
// nobody does, and entering each message into its parent's list of children, and taking it out again, costs more than
// all else that its context does.
type lazyContext struct {
	context.Context // the parent

	mu     sync.Mutex
	ended  bool
	live   context.Context
	cancel context.CancelFunc
}

// WithCancel is [context.WithCancel] for contexts that are seldom waited for.
func WithCancel(parent context.Context) (context.Context, context.CancelFunc) {
	c := &lazyContext{Context: parent}
	return c, c.end
}

// Done returns a channel that is closed when the context or its parent has ended.
func (c *lazyContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.live == nil {
		c.live, c.cancel = context.WithCancel(c.Context)
		if c.ended {
			c.cancel()
		}
	}
	return c.live.Done()
}

// Err returns why the context has ended, nil if it has not.
func (c *lazyContext) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.live != nil:
		return c.live.Err()
	case c.ended:
		return context.Canceled
	}
	return c.Context.Err()
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
