package app

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cornjacket/platform-services/api"
	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/handlers"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/internal/health"
	"github.com/cornjacket/platform-services/ledger"
	"github.com/cornjacket/platform-services/pubsub/kafka"
	"github.com/cornjacket/platform-services/pubsub/outbox"
	"github.com/cornjacket/platform-services/routers"
	"github.com/cornjacket/platform-services/store"
)

// buildEventhandler starts what applies events to the projections.
func buildEventhandler(ctx context.Context, s *service) error {
	pool, err := s.poolWith(s.cfg.DatabaseOf(routers.Eventhandler), store.PoolConfig{
		Name: routers.Eventhandler, MaxConns: 4, Settings: store.ProjectionSettings(),
	})
	if err != nil {
		return err
	}
	missing, err := store.EnsureVersions(ctx, pool, routers.Eventhandler, projectionTypes())
	if err != nil {
		return err
	}
	consumer := routers.Projector(nil)
	c, err := newConsuming(s, pool, consumer.Name)
	if err != nil {
		return err
	}
	if err := s.parts.start(ctx, "what it needs", c.letters, c.slot); err != nil { // the first has begun already
		return err
	}
	router, err := routers.NewConsumer(consumer, c.config(s, "projections"))
	if err != nil {
		return err
	}
	desk, err := s.deadLetters(routers.Eventhandler, map[string]deadletter.Apply{
		routers.Eventhandler: routers.ReplayConsumer(func() routers.Consumer[routers.Application] { return routers.Projector(nil) }),
	})
	if err != nil {
		return err
	}
	mount := func(mux *http.ServeMux) {
		api.NewDeadLetters(mux, s.log, api.Info{
			Title: "Cornjacket event handler", Description: "Dead letters of the event handler.", Version: Version,
		}, desk.config())
	}
	// A group that consumes topics that don't exist yet only finds them at the next refresh of metadata.
	return s.parts.start(ctx, routers.Eventhandler, desk.replays, s.routing(router, s.topics.created()), apiOn{s.port(routers.Eventhandler), mount},
		&loop{run: func(ctx context.Context) { s.buildMissing(ctx, pool, c, missing) }},
		s.checks(routers.Eventhandler, append(c.checks(s, router), desk.check, postgresCheck(pool))...))
}

func projectionTypes() []string {
	var types []string
	for _, p := range handlers.Projections() {
		types = append(types, p.Type)
	}
	return types
}

// buildMissing builds projections that are new in the code from the log, one after the other, and takes them into use.
func (p *platform) buildMissing(ctx context.Context, pool *pgxpool.Pool, c *consuming, types []string) {
	for _, projectionType := range types {
		projection, alone, err := routers.RebuildOf(projectionType)
		if err != nil {
			p.log.Error("projection can't be built", "projection_type", projectionType, "error", err)
			continue
		}
		r := &routers.Rebuild{Pool: pool, Log: c.log, Spread: c.spread, Projection: projection, Alone: alone, Logger: p.log}
		p.log.Info("projection is new, building it from the event log", "projection_type", projectionType)
		for began := time.Now(); ctx.Err() == nil; {
			if _, err = r.Build(ctx); err == nil {
				_, err = r.Switch(ctx)
			}
			if err == nil {
				p.log.Info("projection is built", "projection_type", projectionType, "seconds", time.Since(began).Round(time.Millisecond).Seconds())
				break
			}
			if ctx.Err() == nil {
				p.log.Error("projection can't be built yet, trying again", "projection_type", projectionType, "error", err)
			}
			select {
			case <-time.After(5 * time.Second):
			case <-ctx.Done():
			}
		}
	}
}

// consuming is what each consumer of the bus has around it.
type consuming struct {
	name      string
	pool      *pgxpool.Pool
	slot      *slot
	letters   *letterPublishing
	positions *store.Positions
	log       *store.Log
	spread    routers.Spread
	sub       *kafka.Subscriber
	flushes   *flushLog
	kept      *watchedLetters
}

// newConsuming returns what a consumer has around it that keeps what it does in the database of pool.
func newConsuming(s *service, pool *pgxpool.Pool, name string) (*consuming, error) {
	events, err := s.pool(s.cfg.DatabaseOf(routers.Ingestion), "catch-up", 2, time.Minute)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", routers.ServiceOf(routers.Ingestion).Database.Variable, err)
	}
	letters, err := s.letterPublisher(pool, name)
	if err != nil {
		return nil, err
	}
	return &consuming{
		name: name, pool: pool, slot: s.slot(pool, name), letters: letters,
		positions: store.NewPositions(pool, name), log: store.NewLog(events), spread: outbox.Partitions{Pool: events}.Spread,
	}, nil
}

// config returns the settings of the consumer's router; what is what it writes, for health. The slot has been taken.
func (c *consuming) config(s *service, what string) routers.ConsumerConfig {
	c.sub = kafka.NewSubscriber(kafka.SubscriberConfig{
		Brokers: s.cfg.RedpandaBrokers, Group: routers.RouteOf(c.name).Group + s.cfg.ConsumerGroupSuffix, MaxBatch: 8 * s.cfg.BatchSize, Logger: s.log,
		InstanceID: fmt.Sprintf("%s%s-%d", c.name, s.cfg.ConsumerGroupSuffix, c.slot.number), Security: s.bus,
		Positions: routers.BusPositions{Positions: c.positions}, EventLog: routers.BusLog{Log: c.log}, Partitions: c.spread,
	})
	c.flushes, c.kept = &flushLog{what: what, log: s.log, now: s.now}, &watchedLetters{now: s.now}
	return routers.ConsumerConfig{
		Stack: s.stack(), Subscriber: c.sub, Pool: c.pool, Positions: c.positions, Added: c.letters.letters.Wake, Now: s.now, OnFlush: c.flushes.note, OnLetters: c.kept.note,
	}
}

// checks are the checks of health that each consumer has.
func (c *consuming) checks(s *service, router *routers.Router) []health.Check {
	return []health.Check{
		busCheck(c.sub.Ping), routerCheck(router, c.sub.Oldest, s.cfg.HandlerTimeout, s.now),
		c.flushes.check(func() bool { return !c.sub.Oldest().IsZero() }),
		c.kept.check(), fetchCheck(c.sub, s.now), consumerLag(c.name, c.sub, s.lag, s.cfg.HandlerTimeout, s.now),
	}
}

// fetching is how a subscriber gets on.
type fetching interface {
	Trouble() (since time.Time, err error)
	Missed() (partitions int, records int64)
}

// fetchCheck fails while nothing can be fetched, and while the consumer reads from the log what the bus has dropped.
func fetchCheck(sub fetching, now func() time.Time) health.Check {
	const patience = 2 * time.Second
	return health.Check{Name: "fetch", Every: 500 * time.Millisecond, Probe: func(context.Context) (health.Details, error) {
		if since, err := sub.Trouble(); err != nil && now().Sub(since) > patience {
			return nil, fmt.Errorf("nothing can be fetched: %w", rootCause(err))
		}
		if partitions, records := sub.Missed(); records > 0 {
			return health.Details{"partitions": partitions, "dropped_records": records},
				fmt.Errorf("the bus has dropped %d records before they were applied; they are being applied from the event log", records)
		} else if partitions > 0 {
			return health.Details{"partitions": partitions}, errors.New("catching up with the event log")
		}
		return nil, nil
	}}
}

// eventhandlerAccount returns the event handler as the ledger sees it.
func eventhandlerAccount(ctx context.Context, s *service) (ledger.Consumer, error) {
	pool, err := s.owner(ctx, "projections", s.cfg.DatabaseOf(routers.Eventhandler))
	if err != nil {
		return ledger.Consumer{}, err
	}
	projections, reader := handlers.Projections(), store.NewReader(pool, nil)
	return ledger.Consumer{
		Name: routers.Eventhandler, Topics: handlers.Topics(projections), Pool: pool, Partition: kafka.PartitionOf,
		Skips: func(eventType string) string {
			if slices.ContainsFunc(projections, func(p handlers.Projection) bool { return p.Applies(eventType) }) {
				return ""
			}
			return "events of this type have no projection"
		},
		Changed: func(ctx context.Context, eventType, aggregateID string) (position int64, at time.Time, err error) {
			for _, p := range projections {
				if !p.Applies(eventType) {
					continue
				}
				row, err := reader.Projection(ctx, p.Type, aggregateID)
				if err != nil && !errors.Is(err, fault.ErrNotFound) {
					return 0, time.Time{}, err
				}
				if row.UpdatedAt.After(at) {
					position, at = row.Position, row.UpdatedAt
				}
			}
			return position, at, nil
		},
	}, nil
}
