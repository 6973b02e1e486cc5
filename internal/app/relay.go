package app

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/health"
	"github.com/cornjacket/platform-services/pubsub/kafka"
	"github.com/cornjacket/platform-services/pubsub/outbox"
	"github.com/cornjacket/platform-services/routers"
	"github.com/cornjacket/platform-services/store"
)

// buildRelay starts what carries events from the outbox to the bus, and the dead letters of its database with them.
func buildRelay(ctx context.Context, s *service) error {
	pool, err := s.ingestionPool()
	if err != nil {
		return err
	}
	pub, err := kafka.NewPublisher(kafka.PublisherConfig{
		Brokers: s.cfg.RedpandaBrokers, Security: s.bus, Topics: s.topicConfig(), Partitions: outbox.Partitions{Pool: pool}.Remember, Log: s.log,
	})
	if err != nil {
		return fmt.Errorf("REDPANDA_BROKERS: %w", err)
	}
	letters, err := s.letterPublisher(pool, routers.DeadLetterConsumers(routers.Ingestion)...)
	if err != nil {
		return err
	}
	if err := s.parts.start(ctx, "clients of the bus", onStop(pub.Shutdown), letters); err != nil {
		return err
	}
	handled, err := s.handled()
	if err != nil {
		return err
	}
	cfg := outbox.SubscriberConfig{
		Window: s.cfg.Window, MaxBatch: s.cfg.BatchSize, Log: s.log, Handled: handled,
		Bus: &kafka.History{Brokers: s.cfg.RedpandaBrokers, Security: s.bus, Topics: event.Topics(), Log: s.log},
	}
	if s.outbox.in != nil {
		cfg.Ignore = s.outbox.in.ID()
	}
	sub := outbox.NewSubscriber(pool, cfg)
	s.wake.relay, s.wake.letter = sub, letters.letters
	watched := &watchedLetters{DeadLetterStore: deadletter.Writer{DB: pool}, now: s.now}
	router, err := routers.NewRelay(routers.RelayConfig{
		Stack: s.stack(), Subscriber: sub, Bus: pub, Letters: watched, Added: s.wake.letters, Now: s.now,
	})
	if err != nil {
		return err
	}
	return s.parts.start(ctx, routers.Relay, s.routing(router, nil),
		s.checks(routers.Relay, relayCheck(sub, s.now), busCheck(publishing(pub, s.now)), routerCheck(router, sub.Oldest, s.cfg.HandlerTimeout, s.now), watched.check(),
			relayLag(sub, s.lag, s.cfg.HandlerTimeout, s.now)))
}

// handled returns a function that asks the databases of consumers for the newest position that any of them has handled.
// One that can't be asked now, or has no tables, does not count.
func (s *service) handled() (func(context.Context) int64, error) {
	pools := make(map[string]*pgxpool.Pool)
	for _, r := range routers.Routes() {
		if r.Group == "" {
			continue
		}
		pool, err := s.pool(s.cfg.DatabaseOf(r.Service), "positions", 1, 2*time.Second)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", routers.ServiceOf(r.Service).Database.Variable, err)
		}
		pools[r.Name] = pool
	}
	return func(ctx context.Context) (newest int64) {
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		for consumer, pool := range pools {
			position, err := store.NewestHandled(ctx, pool, consumer)
			if err != nil {
				s.log.Warn("a consumer can't be asked how far it is; it is not compared with the log", "consumer", consumer, "error", err)
			}
			newest = max(newest, position)
		}
		return newest
	}, nil
}

// publishing returns a ping of the bus that fails too while attempts to publish do, or get no answer.
func publishing(pub *kafka.Publisher, now func() time.Time) func(context.Context) error {
	const patience, silent = time.Second, 4 * time.Second
	return func(ctx context.Context) error {
		since, err := pub.Failing()
		age := now().Sub(since)
		switch {
		case err != nil && age > patience:
			return fmt.Errorf("publishing fails for %s: %w", age.Round(time.Second), err)
		case err == nil && !since.IsZero() && age > silent:
			return fmt.Errorf("publishing has no answer for %s", age.Round(time.Second))
		}
		return pub.Ping(ctx)
	}
}

// relayCheck reads the relay's own round trips: it makes one a second, so that it needs no ping beside.
func relayCheck(sub *outbox.Subscriber, now func() time.Time) health.Check {
	const silent = 3 * time.Second
	return health.Check{Name: "postgres", Every: time.Second, Probe: func(context.Context) (health.Details, error) {
		s := sub.State()
		d := health.Details{"leading": s.Leading}
		if s.Restored > 0 {
			d["restored_events"] = s.Restored
		}
		if s.Leading {
			d["position"], d["published"] = s.Sequenced, sub.Published()
		}
		switch {
		case s.Err != nil:
			return d, fmt.Errorf("postgres: %w", rootCause(s.Err))
		case s.LastRound.IsZero():
			return d, errors.New("not connected yet")
		case now().Sub(s.LastRound) > silent:
			return d, fmt.Errorf("postgres does not answer for %s", now().Sub(s.LastRound).Round(100*time.Millisecond))
		}
		return d, nil
	}}
}

// relayLag reports how far the active relay is behind, and fails when it does not move.
func relayLag(sub *outbox.Subscriber, gauges *lagGauges, timeout time.Duration, now func() time.Time) health.Check {
	s := &stall{patience: timeout + stallMargin, now: now}
	return health.Check{Name: "relay", Every: time.Second, Probe: func(ctx context.Context) (health.Details, error) {
		if err := sub.State().Waiting; err != nil {
			return health.Details{"leading": true}, fmt.Errorf("sequences nothing yet: %w", err)
		}
		if !sub.State().Leading {
			gauges.set(routers.Relay, false, 0, 0)
			s.since = time.Time{}
			if idle := sub.State().Idle; idle > 0 {
				return health.Details{"leading": false}, fmt.Errorf("another instance leads and does nothing for %s", idle.Round(time.Second))
			}
			return health.Details{"leading": false}, nil
		}
		lag, err := sub.Lag(ctx)
		if err != nil { // the check of the database says so
			gauges.set(routers.Relay, false, 0, 0)
			s.since = time.Time{}
			return health.Details{"leading": true, "lag": "unknown"}, nil
		}
		events, seconds := lag.Outbox+lag.Log, age(lag.Oldest, now())
		gauges.set(routers.Relay, true, events, seconds)
		d := health.Details{"leading": true, "lag_events": events, "lag_seconds": seconds, "outbox_events": lag.Outbox}
		if lag.AtLeast {
			d["lag_is_at_least"] = true
		}
		_, err = s.look(events, sub.Published())
		return d, err
	}}
}
