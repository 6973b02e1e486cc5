package routers

import (
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/outbox"
)

// RelayConfig configures the router from the outbox to the bus.
type RelayConfig struct {
	Stack
	Subscriber message.Subscriber // sequenced events in the order of their positions
	Publisher  message.Publisher  // the bus; not closed by the router
	Letters    DeadLetterStore
	Added      func() // told of each dead letter; may be nil
	Now        func() time.Time
}

// NewRelay returns the router that publishes each event on the topic of its type.
func NewRelay(cfg RelayConfig) (*Router, error) {
	letters := newPoison(Relay, cfg.Letters, cfg.Now, cfg.Log, cfg.Added)
	router, err := newRouter(Relay, cfg.Stack, cfg.Subscriber, letters)
	if err != nil {
		return nil, err
	}
	router.AddConsumerHandler(Relay, outbox.Topic, cfg.Subscriber, func(msg *message.Message) error {
		return cfg.Publisher.Publish(event.Topic(msg.Metadata.Get(event.MetaEventType)), msg)
	})
	return &Router{name: Relay, router: router, letters: letters}, nil
}
