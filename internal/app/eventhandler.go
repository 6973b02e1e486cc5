package app

import (
	"context"
	"fmt"
	"net/http"

	"github.com/cornjacket/platform-services/api"
	"github.com/cornjacket/platform-services/pubsub/kafka"
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
	slot := s.slot(pool, routers.Eventhandler)
	letters := store.NewDeadLetters(pool)
	man, publisher := s.postman(letters, routers.DeadLetterConsumers(routers.Eventhandler)...)
	if err := s.parts.start(ctx, "what it needs", slot, publisher); err != nil {
		return err
	}
	sub := kafka.NewSubscriber(kafka.SubscriberConfig{
		Brokers: s.cfg.RedpandaBrokers, Group: routers.RouteOf(routers.Eventhandler).Group, Window: s.cfg.Window, Log: s.log,
		InstanceID: fmt.Sprintf("%s-%d", routers.Eventhandler, slot.number), Security: s.bus,
	})
	watched := &watchedLetters{DeadLetterStore: letters, now: s.now}
	flushes := &flushLog{what: "projections", log: s.log, now: s.now}
	router, err := routers.NewEventhandler(routers.EventhandlerConfig{
		Stack: s.stack(), Subscriber: sub, Store: store.NewProjections(pool), Letters: watched, Added: man.Wake,
		Now: s.now, MaxBatch: 8 * s.cfg.BatchSize, OnFlush: flushes.note,
	})
	if err != nil {
		return err
	}
	desk, err := s.eventhandlerDesk(nil)
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
		s.checks(routers.Eventhandler, desk.check, postgresCheck(pool), busCheck(sub.Ping), routerCheck(router, sub.Oldest, s.cfg.HandlerTimeout, s.now),
			flushes.check(func() bool { return !sub.Oldest().IsZero() }), watched.check(),
			consumerLag(routers.Eventhandler, sub, s.lag, s.cfg.HandlerTimeout, s.now)))
}
