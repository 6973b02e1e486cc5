package app

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cornjacket/platform-services/handlers"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/ledger"
	"github.com/cornjacket/platform-services/pubsub/kafka"
	"github.com/cornjacket/platform-services/routers"
	"github.com/cornjacket/platform-services/store"
)

// accounts tells the query API where events are.
func (p *platform) accounts(events, projections *pgxpool.Pool) *ledger.Reader {
	return ledger.NewReader(ledger.Config{
		Events:    events,
		Consumers: []ledger.Consumer{projector(projections, store.NewReader(projections, events))},
		Bus:       kafka.NewFinder(kafka.FinderConfig{Brokers: p.cfg.RedpandaBrokers, Security: p.clients.bus, Log: p.log}),
		Now:       p.now,
		Log:       p.log,
	})
}

// projector is the event handler as a consumer of events.
func projector(pool *pgxpool.Pool, reader *store.Reader) ledger.Consumer {
	projections := handlers.Projections()
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
	}
}
