package app

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/cornjacket/platform-services/api"
	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/handlers"
	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/internal/health"
	"github.com/cornjacket/platform-services/pubsub/kafka"
	"github.com/cornjacket/platform-services/pubsub/outbox"
	"github.com/cornjacket/platform-services/routers"
	"github.com/cornjacket/platform-services/store"
)

// deadLetters opens the dead letters of a service, and starts to work on their bulk replays.
func (p *platform) deadLetters(service, url string, consumers map[string]deadletter.Apply) (*deadletter.Store, error) {
	// Connections of its own, so that a bulk replay takes none from the flow. An instance that is frozen or cut off in the
	// middle of a replay loses its session, and with it what it holds.
	pool, err := p.poolWith(url, store.PoolConfig{
		Name: "deadletters", MaxConns: 4, StatementTimeout: 10 * time.Second, Settings: map[string]string{"idle_in_transaction_session_timeout": "10s"},
	})
	if err != nil {
		return nil, err
	}
	letters := deadletter.NewStore(pool, service, consumers)
	p.inBackground(stageDoors, "bulk replays of "+service, func(ctx context.Context) { letters.RunReplays(ctx, p.log.With("service", service)) })
	return letters, nil
}

// inBackground runs f until the program stops or has come to a stage of its stop.
func (p *platform) inBackground(stage int, name string, f func(ctx context.Context)) {
	ctx, cancel := context.WithCancel(p.ctx)
	done := make(chan struct{})
	p.background.Go(func() {
		defer close(done)
		f(ctx)
	})
	p.onStop(stage, name, func(context.Context) error {
		cancel()
		<-done
		return nil
	})
}

// deadLetterPublisher publishes the dead letters of some consumers. It has a client of its own: a dead letter that the bus
// does not take holds up no event.
func (p *platform) deadLetterPublisher(pool *pgxpool.Pool, consumers ...string) (*deadletter.Publisher, error) {
	bus, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: p.cfg.RedpandaBrokers, Security: p.clients.bus, Log: p.log})
	if err != nil {
		return nil, fmt.Errorf("REDPANDA_BROKERS: %w", err)
	}
	pub := deadletter.NewPublisher(deadletter.PublisherConfig{DB: pool, Consumers: consumers, Bus: bus, Log: p.log})
	topics := p.topics()
	p.inBackground(stageClients, "dead letter publisher", func(ctx context.Context) {
		select {
		case <-topics:
			pub.Run(ctx)
		case <-ctx.Done():
		}
		_ = bus.Shutdown(ctx) // what is still on its way is not waited for: it is in the table, and is published again
	})
	return pub, nil
}

func lettersConfig(letters *deadletter.Store, consumers ...string) api.DeadLettersConfig {
	return api.DeadLettersConfig{Consumers: consumers, Reader: letters, Mender: letters, Replays: letters}
}

// ingestionLetters are what ingestion and the relay could not handle.
func (p *platform) ingestionLetters() (*deadletter.Store, error) {
	into := func(read func(*deadletter.Letter) (event.Envelope, error), position func(*deadletter.Letter) int64) deadletter.Apply {
		return func(ctx context.Context, tx pgx.Tx, l *deadletter.Letter) (uuid.UUID, string, error) {
			e, err := read(l)
			if err != nil {
				return uuid.Nil, "", err
			}
			return e.ID, "", outbox.Requeue(ctx, tx, &e, position(l))
		}
	}
	return p.deadLetters(config.Ingestion, p.cfg.IngestionDatabaseURL, map[string]deadletter.Apply{
		routers.Ingestion: into(routers.ReplayIngestion, func(*deadletter.Letter) int64 { return 0 }),
		routers.Relay:     into(routers.ReplayRelay, func(l *deadletter.Letter) int64 { return l.Position }),
	})
}

// eventhandlerLetters are what the event handler could not apply.
func (p *platform) eventhandlerLetters(projections []handlers.Projection) (*deadletter.Store, error) {
	return p.deadLetters(config.Eventhandler, p.cfg.EventhandlerDatabaseURL, map[string]deadletter.Apply{
		routers.Eventhandler: applyToProjections(projections),
	})
}

// applyToProjections applies an event to its projections unless another letter of the same event has done that.
func applyToProjections(projections []handlers.Projection) deadletter.Apply {
	return func(ctx context.Context, tx pgx.Tx, l *deadletter.Letter) (uuid.UUID, string, error) {
		again, err := routers.ReplayEventhandler(l, projections)
		if err != nil {
			return uuid.Nil, "", err
		}
		id := again.Event.ID
		other, err := deadletter.ReplayedBefore(ctx, tx, routers.Eventhandler, id, l.ID)
		if err != nil {
			return uuid.Nil, "", err
		}
		if other != uuid.Nil {
			return id, fmt.Sprintf("the event was applied by the replay of dead letter %s", other), nil
		}
		return id, "", store.UpdateProjections(ctx, tx, again.Keys, again.Fold)
	}
}

// pendingCheck counts the pending dead letters in the background, for /health and /metrics. It never fails: dead letters
// are for people to look at, and do not make a service unready.
func (p *platform) pendingCheck(letters *deadletter.Store) health.Check {
	gauge := p.pendingLetters()
	var known map[string]int64
	var next time.Time
	return health.Check{Name: "dead_letters", Every: 5 * time.Second, Timeout: 10 * time.Second, Probe: func(ctx context.Context) (health.Details, error) {
		if started := time.Now(); started.After(next) {
			if pending, err := letters.Pending(ctx); err == nil { // else the check of the database tells
				known = pending
				for consumer, n := range pending {
					gauge.WithLabelValues(consumer).Set(float64(n))
				}
			}
			next = started.Add(50 * time.Since(started)) // where there are millions, counting stays a small part of the load
		}
		if known == nil {
			return nil, nil
		}
		return health.Details{"dead_letters_pending": known}, nil
	}}
}

// pendingLetters is one gauge for all services of the process.
func (p *platform) pendingLetters() *prometheus.GaugeVec {
	if p.pending == nil {
		p.pending = prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "cornjacket_dead_letters_pending",
			Help: "Dead letters that wait to be replayed or discarded. Each instance of a service tells the number of all.",
		}, []string{"consumer"})
		p.registry.MustRegister(p.pending)
	}
	return p.pending
}
