package routers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/sony/gobreaker"

	"github.com/cornjacket/platform-services/internal/fault"
)

// Outage is what a router does with a message whose handler fails because something is away.
type Outage int

const (
	// Wait tries again without end, since what is away is the platform's own; health is red meanwhile.
	Wait Outage = iota
	// DeadLetter tries again Retries times; then the message is a dead letter.
	DeadLetter
	// Skip tries again Retries times; then the message is counted and let go.
	Skip
)

// Policy is how a router deals with failures. The zero value waits without end. Whatever the policy, a message that no
// retry mends is a dead letter at once, and one whose handler panics after RETRY_MAX retries.
type Policy struct {
	Outage   Outage
	Retries  int           // for DeadLetter and Skip
	Interval time.Duration // before the first retry, doubled with each; that of the stack if zero
	Breaker  Breaker
}

// Breaker stops calling a handler that fails again and again; what waits meanwhile has not used up a retry. The zero
// value is none.
type Breaker struct {
	Failures int           // in a row, after which it opens
	Pause    time.Duration // until one message is let through to see
}

// String returns the policy as `platform routes` prints it.
func (p Policy) String() string {
	outage := "without end"
	switch p.Outage {
	case Wait:
	case DeadLetter:
		outage = fmt.Sprintf("%d times, then dead letter", p.Retries)
	case Skip:
		outage = fmt.Sprintf("%d times, then skipped", p.Retries)
	}
	text := "outage: " + outage + "; panic: RETRY_MAX"
	if p.Breaker.Failures > 0 {
		text += fmt.Sprintf("; breaker: %d failures, %s", p.Breaker.Failures, p.Breaker.Pause)
	}
	return text
}

// again reports whether a message that failed is to be tried again within the router, after so many retries.
func (p Policy) again(err error, retries, retryMax int) bool {
	var panicked middleware.RecoveredPanicError
	switch {
	case errors.As(err, &panicked):
		return retries < retryMax
	case fault.IsPermanent(err), notTried(err):
		return false
	}
	return p.Outage != Wait && retries < p.Retries
}

// letter reports whether a message that has failed is to be a dead letter.
func (p Policy) letter(err error) bool {
	return hopeless(err) || p.Outage == DeadLetter && !notTried(err)
}

// skips reports whether a message that has failed is let go.
func (p Policy) skips(err error) bool {
	return p.Outage == Skip && !hopeless(err) && !notTried(err)
}

// aside reports whether a message that has failed is given up: its source need not hand it out again.
func (p Policy) aside(err error) bool { return p.letter(err) || p.skips(err) }

// notTried reports whether a message was kept from its handler by the circuit breaker, or given up because its source or
// the platform is ending: the source still has it.
func notTried(err error) bool {
	return errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) || errors.Is(err, context.Canceled)
}

func (p Policy) retry(s Stack, logger watermill.LoggerAdapter) middleware.Retry {
	interval := s.RetryInterval
	if p.Interval > 0 {
		interval = p.Interval
	}
	return middleware.Retry{
		MaxRetries: max(s.RetryMax, p.Retries), InitialInterval: interval, MaxInterval: 30 * time.Second,
		Multiplier: 2, RandomizationFactor: 0.1, ResetContextOnRetry: true, Logger: logger,
		ShouldRetry: func(params middleware.RetryParams) bool { return p.again(params.Err, params.RetryNum, s.RetryMax) },
	}
}

func (b Breaker) middleware(name string) message.HandlerMiddleware {
	return middleware.NewCircuitBreaker(gobreaker.Settings{
		Name: name, Timeout: b.Pause,
		ReadyToTrip: func(c gobreaker.Counts) bool { return int(c.ConsecutiveFailures) >= b.Failures },
		// What the handler refuses for good says nothing of whom it calls.
		IsSuccessful: func(err error) bool { return err == nil || fault.IsPermanent(err) },
	}).Middleware
}
