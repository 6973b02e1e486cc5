package app

import (
	"slices"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cornjacket/platform-services/ledger"
	"github.com/cornjacket/platform-services/pubsub/kafka"
	"github.com/cornjacket/platform-services/routers"
)

// apiAccounts tells the query API where events are.
type apiAccounts struct {
	*ledger.Reader
	*ledger.Journeys
}

func (p *platform) accounts(events, projections *pgxpool.Pool) apiAccounts {
	consumers := []ledger.Consumer{projector(projections)}
	return apiAccounts{
		ledger.NewReader(events, consumers, p.now),
		ledger.NewJourneys(events, consumers, kafka.NewFinder(kafka.FinderConfig{Brokers: p.cfg.RedpandaBrokers, Security: p.clients.bus, Log: p.log})),
	}
}

// projector is the event handler as a consumer of events.
func projector(pool *pgxpool.Pool) ledger.Consumer {
	c := ledger.Consumer{Name: routers.Eventhandler, Pool: pool}
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
