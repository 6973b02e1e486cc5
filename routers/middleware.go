package routers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/internal/fault"
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
	// Metrics counts under the names of Watermill's own metrics; nil counts nothing.
	Metrics *Metrics
	Log     *slog.Logger
}

// DeadLetterStore keeps what a consumer could not handle. Add is called concurrently; its error means that the letter
// is not stored yet, and it is called again.
type DeadLetterStore interface {
	Add(ctx context.Context, l deadletter.Entry) error
}

// newRouter returns a router with the one middleware stack, outermost first: correlation, metrics, poison queue, retry,
// timeout, recoverer.
func newRouter(name string, s Stack, subscriber message.Subscriber, letters *poison) (*message.Router, error) {
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
		router.AddMiddleware(s.Metrics.middleware(name, subscriber))
	}
	router.AddMiddleware(poisonQueue, retry(s, logger), timeout(s.Timeout), middleware.Recoverer)
	return router, nil
}

// hopeless tells which messages become dead letters: those that no retry mends, and those whose handler has panicked
// each time. What failed because something of ours is away is handed out again instead, until it succeeds.
func hopeless(err error) bool {
	var panicked middleware.RecoveredPanicError
	return fault.IsPermanent(err) || errors.As(err, &panicked)
}

// ending tells that a message was given up because its source or the platform is ending. Trying again is pointless, and
// it is no dead letter: the source still has it.
func ending(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, window.ErrAbandoned) || errors.Is(err, window.ErrClosed)
}

// correlate makes sure that a message has a correlation ID: its sender's, or else its own.
func correlate(h message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		if middleware.MessageCorrelationID(msg) == "" {
			middleware.SetCorrelationID(msg.UUID, msg)
		}
		return h(msg)
	}
}

// attemptsKey finds how often a message was tried, in the context of one that was tried more than once.
type attemptsKey struct{}

func attempts(ctx context.Context) int {
	if n, ok := ctx.Value(attemptsKey{}).(*atomic.Int32); ok {
		return int(n.Load())
	}
	return 1
}

// retry is Watermill's Retry, entered only by messages whose first attempt failed: it makes a timer and a backoff for
// each message that passes, which almost none needs.
func retry(s Stack, logger watermill.LoggerAdapter) message.HandlerMiddleware {
	again := func(err error) bool { return !fault.IsPermanent(err) && !ending(err) }
	more := middleware.Retry{
		MaxRetries:          s.RetryMax - 1,
		InitialInterval:     2 * s.RetryInterval,
		MaxInterval:         30 * time.Second,
		Multiplier:          2,
		RandomizationFactor: 0.1,
		ResetContextOnRetry: true,
		ShouldRetry:         func(p middleware.RetryParams) bool { return again(p.Err) },
		Logger:              logger,
	}
	return func(h message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			ctx := msg.Context()
			produced, err := h(msg)
			if err == nil || s.RetryMax == 0 || !again(err) {
				return produced, err
			}
			logger.Error("Error occurred, retrying", err, watermill.LogFields{"max_retries": s.RetryMax, "wait_time": s.RetryInterval})
			select {
			case <-time.After(s.RetryInterval):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			tried := new(atomic.Int32)
			tried.Store(1)
			msg.SetContext(context.WithValue(ctx, attemptsKey{}, tried))
			return more.Middleware(func(msg *message.Message) ([]*message.Message, error) {
				tried.Add(1)
				return h(msg)
			})(msg)
		}
	}
}

// timeout gives each attempt a deadline, like Watermill's Timeout.
func timeout(d time.Duration) message.HandlerMiddleware {
	return func(h message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			ctx, stop := window.WithDeadline(msg.Context(), time.Now().Add(d))
			defer stop()
			msg.SetContext(ctx)
			return h(msg)
		}
	}
}

// watermillLogger passes Watermill's log on; the comings and goings of routers are of use only when debugging.
func watermillLogger(log *slog.Logger) watermill.LoggerAdapter {
	return quietLogger{watermill.NewSlogLoggerWithLevelMapping(log, map[slog.Level]slog.Level{slog.LevelInfo: slog.LevelDebug})}
}

// quietLogger drops traces, of which Watermill writes two a message, before their fields are put together.
type quietLogger struct{ watermill.LoggerAdapter }

func (quietLogger) Trace(string, watermill.LogFields) {}

func (q quietLogger) With(fields watermill.LogFields) watermill.LoggerAdapter {
	return quietLogger{q.LoggerAdapter.With(fields)}
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
