package routers

import (
	"context"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/cornjacket/platform-services/event"
)

// EventStore makes one event durable. StoreFunc returns once it is, as long as that takes, or with the error of parse, which
// is called once, maybe in another goroutine, or with one marked with [fault.Permanent] if the event can't be stored. It
// is called concurrently; ctx carries the turn of the event's message.
type EventStore interface {
	StoreFunc(ctx context.Context, parse func() (event.Envelope, error)) error
}

// IngestionConfig configures the router from MQTT to the outbox.
type IngestionConfig struct {
	Stack
	Subscriber message.Subscriber // MQTT messages; acknowledged once the event is durable
	Store      EventStore
	Letters    DeadLetterStore
	Added      func() // told of each dead letter; may be nil
	Now        func() time.Time
	NewID      func() uuid.UUID
}

// NewIngestion returns the router that validates what devices publish and stores it.
func NewIngestion(cfg IngestionConfig) (*Router, error) {
	letters := newPoison(Ingestion, cfg.Letters, cfg.Now, cfg.Log, cfg.Added)
	router, err := newRouter(Ingestion, cfg.Stack, cfg.Subscriber, letters)
	if err != nil {
		return nil, err
	}
	router.AddConsumerHandler(Ingestion, "mqtt", cfg.Subscriber, func(msg *message.Message) error {
		return cfg.Store.StoreFunc(msg.Context(), func() (event.Envelope, error) {
			return event.ParseMQTT(msg.Metadata.Get(event.MetaMQTTTopic), msg.Payload, event.Properties{
				EventID:       msg.Metadata.Get(event.MetaEventID),
				EventTime:     msg.Metadata.Get(event.MetaEventTime),
				CorrelationID: msg.Metadata.Get(event.MetaCorrelationID),
				Traceparent:   msg.Metadata.Get(event.MetaTraceparent),
			}, event.Origin{Source: "mqtt", Now: cfg.Now(), NewID: cfg.NewID})
		})
	})
	return &Router{name: Ingestion, router: router, letters: letters}, nil
}

// Router is one running arrow of the flow.
type Router struct {
	name    string
	router  *message.Router
	letters *poison
	drain   func(ctx context.Context) error // what is left when the router has closed; may be nil

	mu              sync.Mutex
	started, closed bool
}

// Run runs the router until Close is called. That the router ends by itself while ctx lasts is an error.
func (r *Router) Run(ctx context.Context) error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.started = true
	r.mu.Unlock()
	err := run(ctx, r.name, r.router)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil // Close says what went wrong
	}
	return err
}

// Running tells whether the router has started and not closed.
func (r *Router) Running() bool { return r.router.IsRunning() && !r.router.IsClosed() }

// Close stops taking messages and waits for those in flight, up to the stack's CloseTimeout.
func (r *Router) Close(ctx context.Context) error {
	r.mu.Lock()
	r.closed = true
	started := r.started
	r.mu.Unlock()
	var err error
	if started { // one that has not would wait for its handlers to end, which have never begun
		err = r.router.Close()
	}
	if r.drain != nil {
		if drainErr := r.drain(ctx); err == nil {
			err = drainErr
		}
	}
	_ = r.letters.Close() // never fails
	return err
}
