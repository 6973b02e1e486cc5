package routers

import (
	"fmt"
	"time"
)

// Policy is what a router does when something that it depends on fails. What is wrong with a message itself is not
// covered: a permanent error makes it a dead letter at once, a panic does after RETRY_MAX attempts.
type Policy struct {
	Outage Outage
	// Retries is how often a message is tried again before it becomes a dead letter, with [Retry].
	Retries int
	// Breaker, if set, stops asking an endpoint that keeps failing.
	Breaker Breaker
}

// Outage is what happens to a message while what the router depends on is away.
type Outage int

// Kinds of [Outage].
const (
	Wait  Outage = iota // the message is tried again without end, and readiness is red meanwhile
	Retry               // it becomes a dead letter after [Policy.Retries] further attempts
	Skip                // it is dropped, counted, and the next one is taken
)

// Breaker are the settings of a circuit breaker; the zero value is none.
type Breaker struct {
	Failures int           // in a row, after which it opens
	Open     time.Duration // how long it stays open before one message is tried
}

// String returns the policy as `platform routes` prints it.
func (p Policy) String() string {
	outage := "without end"
	switch p.Outage {
	case Wait:
	case Retry:
		outage = fmt.Sprintf("%d times, then dead letter", p.Retries)
	case Skip:
		outage = "skip"
	}
	text := "outage: " + outage + "; panic: RETRY_MAX"
	if p.Breaker.Failures > 0 {
		text += fmt.Sprintf("; breaker: %d failures, %s", p.Breaker.Failures, p.Breaker.Open)
	}
	return text
}
