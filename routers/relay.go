package routers

import (
	"context"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/batch"
)

// Bus publishes records on their topics. PublishAll returns once each of them is acknowledged, in the order of their
// keys, or refused for good: those are returned. The error says that some are not acknowledged yet, and that all have to
// be published again.
type Bus interface {
	PublishAll(ctx context.Context, records []batch.Record) (refused []batch.Refusal, err error)
}

// RelayConfig configures the router from the outbox to the bus.
type RelayConfig struct {
	Stack
	Subscriber message.Subscriber // batches of sequenced events in the order of their positions, which are their offsets
	Bus        Bus
	Letters    DeadLetterStore
	Added      func() // told of dead letters; may be nil
	Now        func() time.Time
}

// NewRelay returns the router that publishes each event on the topic of its type.
func NewRelay(cfg RelayConfig) (*Router, error) {
	kept := &letters{consumer: Relay, store: cfg.Letters, complete: completeRelay, now: cfg.Now, log: cfg.Log, added: cfg.Added}
	return newRouter(Relay, cfg.Stack, Policy{}, "outbox", cfg.Subscriber, func(ctx context.Context, b *batch.Batch) error {
		records := b.Records()
		outgoing := make([]batch.Record, len(records))
		for i, r := range records {
			r.Topic, r.Partition = event.Topic(r.Header(event.MetaEventType)), -1
			outgoing[i] = r
		}
		refused, err := cfg.Bus.PublishAll(ctx, outgoing)
		if err != nil {
			return err
		}
		entries := make([]deadletter.Entry, len(refused))
		for i, r := range refused {
			entries[i] = kept.entry(&records[r.Index], 1, r.Err.Error())
		}
		return kept.add(ctx, entries...)
	}, kept.refuse)
}

// completeRelay adds to a dead letter the position of its event, by which it is known, and the topic it belongs to.
func completeRelay(r *batch.Record, l *deadletter.Entry) {
	if l.Position == 0 && l.Offset != nil {
		l.Position = *l.Offset
	}
	l.BusTopic = event.DeadLetterTopic(event.Topic(r.Header(event.MetaEventType)))
}
