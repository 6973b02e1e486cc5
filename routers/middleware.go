package routers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/metrics"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/window"
)

// Stack configures the middleware that every router has.
type Stack struct {
	// RetryMax is how often a handler that panicked is tried again before its message becomes a dead letter.
	RetryMax int
	// RetryInterval is the time before the first retry; it doubles with each.
	RetryInterval time.Duration
	// Timeout is the deadline that the context of one attempt has.
	Timeout time.Duration
	// CloseTimeout is how long a closing router waits for what is in flight.
	CloseTimeout time.Duration
	// Metrics counts with Watermill's own metrics; nil counts nothing.
	Metrics *metrics.PrometheusMetricsBuilder
	Log     *slog.Logger
}

// DeadLetterStore keeps what a consumer could not handle. Add is called concurrently; its error means that the letter
// is not stored yet, and it is called again.
type DeadLetterStore interface {
	Add(ctx context.Context, l event.DeadLetter) error
}

// newRouter returns a router with the one middleware stack, outermost first: correlation, metrics, poison queue, retry,
// timeout, recoverer.
func newRouter(name string, s Stack, letters *poison) (*message.Router, error) {
	logger := watermillLogger(s.Log)
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: s.CloseTimeout}, logger)
	if err != nil {
		return nil, fmt.Errorf("create router %s: %w", name, err)
	}
	poisonQueue, err := middleware.PoisonQueueWithFilter(letters, "dlq", hopeless)
	if err != nil {
		return nil, fmt.Errorf("create poison queue of %s: %w", name, err)
	}
	router.AddMiddleware(correlate, middleware.CorrelationID)
	if s.Metrics != nil {
		s.Metrics.AddPrometheusRouterMetrics(router)
	}
	router.AddMiddleware(
		poisonQueue,
		middleware.Retry{
			MaxRetries:          s.RetryMax,
			InitialInterval:     s.RetryInterval,
			MaxInterval:         30 * time.Second,
			Multiplier:          2,
			RandomizationFactor: 0.1,
			ResetContextOnRetry: true,
			ShouldRetry: func(p middleware.RetryParams) bool {
				return !event.IsPermanent(p.Err) && !ending(p.Err)
			},
			Logger: logger,
		}.Middleware,
		middleware.Timeout(s.Timeout),
		attempt,
		middleware.Recoverer,
	)
	return router, nil
}

// hopeless tells which messages become dead letters: those that no retry mends, and those whose handler has panicked
// each time. What failed because something of ours is away is handed out again instead, until it succeeds.
func hopeless(err error) bool {
	var panicked middleware.RecoveredPanicError
	return event.IsPermanent(err) || errors.As(err, &panicked)
}

// ending tells that a message was given up because its source or the platform is ending. Trying again is pointless, and
// it is no dead letter: the source still has it.
func ending(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, window.ErrAbandoned) || errors.Is(err, window.ErrClosed)
}

// journeyKey finds what a message's way through the stack has left in its context.
type journeyKey struct{}

type journey struct{ attempts atomic.Int32 }

// correlate makes sure that a message has a correlation ID: its sender's, or else its own.
func correlate(h message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		if middleware.MessageCorrelationID(msg) == "" {
			middleware.SetCorrelationID(msg.UUID, msg)
		}
		msg.SetContext(context.WithValue(msg.Context(), journeyKey{}, &journey{}))
		return h(msg)
	}
}

// attempt counts how often the handler was tried.
func attempt(h message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		if j, ok := msg.Context().Value(journeyKey{}).(*journey); ok {
			j.attempts.Add(1)
		}
		return h(msg)
	}
}

// watermillLogger passes Watermill's log on; the comings and goings of routers are of use only when debugging.
func watermillLogger(log *slog.Logger) watermill.LoggerAdapter {
	return watermill.NewSlogLoggerWithLevelMapping(log, map[slog.Level]slog.Level{slog.LevelInfo: slog.LevelDebug})
}

// run runs a router until ctx ends. A router whose handlers have all died ends without an error of its own; that is
// one for us.
func run(ctx context.Context, name string, router *message.Router) error {
	if err := router.Run(context.WithoutCancel(ctx)); err != nil {
		return fmt.Errorf("router %s: %w", name, err)
	}
	if ctx.Err() == nil {
		return fmt.Errorf("router %s: all its handlers have stopped", name)
	}
	return nil
}
