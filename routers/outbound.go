package routers

import (
	"context"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/cornjacket/platform-services/pubsub/batch"
)

// OutboundConfig configures a router that calls the outside world.
type OutboundConfig struct {
	Stack
	Name       string
	Policy     Policy
	Topic      string
	Subscriber message.Subscriber // any of Watermill's: one message at a time is right where an endpoint sets the pace
	Letters    DeadLetterStore
	Added      func() // told of dead letters; may be nil
	Now        func() time.Time
}

// NewOutbound returns a router whose handler gets one record at a time. What fails is dealt with as its policy says; a
// permanent error makes the record a dead letter at once.
func NewOutbound(cfg OutboundConfig, handle func(ctx context.Context, r *batch.Record) error) (*Router, error) {
	kept := &letters{consumer: cfg.Name, store: cfg.Letters, complete: completeBus, now: cfg.Now, log: cfg.Log, added: cfg.Added}
	return newRouterOf(cfg.Name, cfg.Stack, cfg.Policy, cfg.Topic, cfg.Subscriber, 1, func(ctx context.Context, b *batch.Batch) error {
		return handle(ctx, &b.Records()[0])
	}, kept.refuse)
}
