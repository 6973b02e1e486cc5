package app

import (
	"context"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/kafka"
	"github.com/cornjacket/platform-services/routers"
	"github.com/cornjacket/platform-services/store"
)

// apiAccounts tells the query API where events are.
type apiAccounts struct {
	ledger   *store.Ledger
	journeys *store.Journeys
}

func (p *platform) accounts(events, projections *pgxpool.Pool) apiAccounts {
	consumers := []store.Consumer{projector(projections)}
	return apiAccounts{
		ledger:   store.NewLedger(events, consumers, p.now),
		journeys: store.NewJourneys(events, consumers, kafka.NewFinder(kafka.FinderConfig{Brokers: p.cfg.RedpandaBrokers, Security: p.clients.bus, Log: p.log})),
	}
}

// projector is the event handler as a consumer of events.
func projector(pool *pgxpool.Pool) store.Consumer {
	c := store.Consumer{Name: routers.Eventhandler, Pool: pool}
	for _, p := range routers.Projections() {
		if !slices.Contains(c.Topics, p.Topic) {
			c.Topics = append(c.Topics, p.Topic)
		}
	}
	c.Projections = func(eventType string) (types []string) {
		for _, p := range routers.Projections() {
			if p.Applies(eventType) {
				types = append(types, p.Type)
			}
		}
		return types
	}
	return c
}

func (a apiAccounts) Ledger(ctx context.Context) (event.Ledger, error) {
	v, err := a.ledger.Read(ctx)
	return v, translate(err)
}

func (a apiAccounts) Journey(ctx context.Context, id uuid.UUID) (event.Journey, error) {
	v, err := a.journeys.Read(ctx, id)
	return v, translate(err)
}
