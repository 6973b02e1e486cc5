package routers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/pubsub/batch"
)

// Stack configures the middleware that every router has.
type Stack struct {
	// RetryMax is how often a handler that panicked is tried again before its record becomes a dead letter.
	RetryMax int
	// RetryInterval is the time before the first retry; it doubles with each.
	RetryInterval time.Duration
	// Timeout is the deadline that the context of one attempt has.
	Timeout time.Duration
	// CloseTimeout is how long a closing router waits for what is in flight.
	CloseTimeout time.Duration
	// Metrics counts under the names of Watermill's own metrics; nil counts nothing.
	Metrics *Metrics
	Log     *slog.Logger
}

// handler handles the records of a batch, in order: all of them or none. An error that is permanent, a panic, or one
// that says that there was too little time makes the router try fewer at once, until the record that is the cause is
// alone. Any other error is one of the whole batch.
type handler func(ctx context.Context, b *batch.Batch) error

// refuser takes a record that can't be handled out of the flow, and keeps it. Its error says that it is not kept yet.
type refuser func(ctx context.Context, r *batch.Record, attempts int, reason string) error

// Router is one running arrow of the flow.
type Router struct {
	name   string
	router *message.Router

	mu              sync.Mutex
	started, closed bool
}

// newRouter returns a router with the one middleware stack, outermost first: correlation, metrics, poison queue,
// isolation with retry, circuit breaker, timeout, recoverer.
func newRouter(name string, s Stack, policy Policy, topic string, sub message.Subscriber, handle handler, refuse refuser) (*Router, error) {
	return newRouterOf(name, s, policy, topic, sub, 0, handle, refuse)
}

// newRouterOf is newRouter whose handler is given so many records at most; zero means whole batches.
func newRouterOf(name string, s Stack, policy Policy, topic string, sub message.Subscriber, most int, handle handler, refuse refuser) (*Router, error) {
	logger := watermillLogger(s.Log)
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: s.CloseTimeout}, returned{logger})
	if err != nil {
		return nil, fmt.Errorf("create router %s: %w", name, err)
	}
	router.AddMiddleware(correlate, middleware.CorrelationID)
	if s.Metrics != nil {
		router.AddMiddleware(s.Metrics.middleware(name, sub))
	}
	for _, aside := range []struct {
		refuse refuser
		which  func(error) bool
	}{{skip(s.Metrics, name), policy.skips}, {refuse, policy.letter}} {
		queue, err := middleware.PoisonQueueWithFilter(poison{refuse: aside.refuse, timeout: s.Timeout}, "dlq", aside.which)
		if err != nil {
			return nil, fmt.Errorf("create poison queue of %s: %w", name, err)
		}
		router.AddMiddleware(queue)
	}
	router.AddMiddleware(isolate(most, policy.aside, policy.retry(s, logger).Middleware))
	if policy.Breaker.Failures > 0 {
		router.AddMiddleware(policy.Breaker.middleware(name))
	}
	router.AddMiddleware(middleware.Timeout(s.Timeout), middleware.Recoverer)
	router.AddConsumerHandler(name, topic, sub, func(m *message.Message) error {
		return handle(m.Context(), batch.From(m))
	})
	return &Router{name: name, router: router}, nil
}

// correlate gives a batch the correlation ID of its first record: its sender's, or else its own.
func correlate(h message.HandlerFunc) message.HandlerFunc {
	return func(m *message.Message) ([]*message.Message, error) {
		if middleware.MessageCorrelationID(m) == "" {
			id := m.UUID
			if rest := batch.From(m).Rest(); len(rest) > 0 {
				id = correlationOf(&rest[0])
			}
			middleware.SetCorrelationID(id, m)
		}
		return h(m)
	}
}

// isolate handles a batch, and finds the record for which it fails in a way that has it set aside: it tries fewer records
// at once, marks those that succeed as done, and retries one that is alone. An error is that of the first record that is
// left, or of an outage. Most, unless zero, is how many records are handled together at most.
func isolate(most int, aside func(error) bool, retry message.HandlerMiddleware) message.HandlerMiddleware {
	return func(h message.HandlerFunc) message.HandlerFunc {
		alone := retry(func(m *message.Message) ([]*message.Message, error) {
			batch.From(m).Attempts++
			return h(m)
		})
		return func(m *message.Message) ([]*message.Message, error) {
			b := batch.From(m)
			ctx := m.Context()
			for len(b.Rest()) > 0 {
				m.SetContext(ctx) // the one before has a deadline of its own
				if most > 0 && len(b.Records()) > most {
					b.Narrow(most)
				}
				n, try := len(b.Records()), h
				if n == 1 {
					try = alone
				}
				_, err := try(m)
				switch {
				case err == nil:
					b.Done(n)
				case n > 1 && (aside(err) || fault.TooSlow(err)):
					b.Narrow(n / 2)
				default:
					return nil, err
				}
			}
			return nil, nil
		}
	}
}

// hopeless reports whether an error is one that no outage explains: a permanent one, or a panic.
func hopeless(err error) bool {
	var panicked middleware.RecoveredPanicError
	return fault.IsPermanent(err) || errors.As(err, &panicked)
}

// Run runs the router until Close is called. That the router ends by itself while ctx lasts is an error: one whose
// handlers have all died ends without an error of its own.
func (r *Router) Run(ctx context.Context) error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.started = true
	r.mu.Unlock()
	err := r.router.Run(context.WithoutCancel(ctx))
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return nil // Close says what went wrong
	case err != nil:
		return fmt.Errorf("router %s: %w", r.name, err)
	case ctx.Err() == nil:
		return fmt.Errorf("router %s: all its handlers have stopped", r.name)
	}
	return nil
}

// Running reports whether the router has started and not closed.
func (r *Router) Running() bool { return r.router.IsRunning() && !r.router.IsClosed() }

// Close stops taking messages and waits for those in flight, up to the stack's CloseTimeout.
func (r *Router) Close(context.Context) error {
	r.mu.Lock()
	r.closed = true
	started := r.started
	r.mu.Unlock()
	if !started { // it would wait for its handlers to end, which have never begun
		return nil
	}
	if err := r.router.Close(); err != nil {
		return fmt.Errorf("close router %s: %w", r.name, err)
	}
	return nil
}

// watermillLogger passes Watermill's log on; the comings and goings of routers are of use only when debugging.
func watermillLogger(log *slog.Logger) watermill.LoggerAdapter {
	return watermill.NewSlogLoggerWithLevelMapping(log, map[slog.Level]slog.Level{slog.LevelInfo: slog.LevelDebug})
}

// returned logs what handlers return only when debugging: health and whoever writes say once what fails, and until when,
// while the same batch is handed out again and again.
type returned struct{ watermill.LoggerAdapter }

// Error implements [watermill.LoggerAdapter].
func (r returned) Error(msg string, err error, fields watermill.LogFields) {
	if msg == "Handler returned error" {
		r.Debug(msg, fields.Add(watermill.LogFields{"error": err}))
		return
	}
	r.LoggerAdapter.Error(msg, err, fields)
}

// With implements [watermill.LoggerAdapter].
func (r returned) With(fields watermill.LogFields) watermill.LoggerAdapter {
	return returned{r.LoggerAdapter.With(fields)}
}
