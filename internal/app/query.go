package app

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cornjacket/platform-services/api"
	"github.com/cornjacket/platform-services/internal/health"
	"github.com/cornjacket/platform-services/ledger"
	"github.com/cornjacket/platform-services/pubsub/kafka"
	"github.com/cornjacket/platform-services/pubsub/outbox"
	"github.com/cornjacket/platform-services/routers"
	"github.com/cornjacket/platform-services/store"
)

// buildQuery starts what answers questions, once the tables that it reads are there.
func buildQuery(ctx context.Context, s *service) error {
	projections, err := s.owner(ctx, "projections", s.cfg.DatabaseOf(routers.Eventhandler))
	if err != nil {
		return err
	}
	events, err := s.owner(ctx, "event_store", s.cfg.DatabaseOf(routers.Ingestion))
	if err != nil {
		return err
	}
	reader := store.NewReader(projections, events)
	books, err := s.ledger(ctx, events)
	if err != nil {
		return err
	}
	mount := func(mux *http.ServeMux) {
		a := api.MountQuery(mux, api.QueryConfig{Reader: reader, Log: s.log, Version: Version})
		api.MountLedger(a, books)
	}
	checks := []health.Check{postgresCheck(projections)}
	if events != projections {
		log := postgresCheck(events)
		log.Name = "postgres_events"
		checks = append(checks, log)
	}
	return s.parts.start(ctx, routers.Query, apiOn{s.port(routers.Query), mount}, s.checks(routers.Query, checks...))
}

const queryConns, queryTimeout = 8, 10 * time.Second

// owner returns a pool on the database that has a table: QUERY_DATABASE_URL, which may be a replica, or else that of
// the service that owns the table. It waits for the table, which another process may be about to create.
func (p *platform) owner(ctx context.Context, table, ownerURL string) (*pgxpool.Pool, error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.StartupTimeout)
	defer cancel()
	for {
		var last error
		for _, url := range []string{p.cfg.DatabaseOf(routers.Query), ownerURL} {
			pool, err := p.pool(url, "query", queryConns, queryTimeout)
			if err != nil {
				return nil, fmt.Errorf("QUERY_DATABASE_URL: %w", err)
			}
			found, err := store.Tables(ctx, pool, table)
			if found {
				return pool, p.notAbandoned(ctx, table, pool, ownerURL)
			}
			last = err
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return nil, ctx.Err()
			}
			if last == nil {
				last = errors.New("no such table")
			}
			return nil, fmt.Errorf("query: table %s is neither in the database of QUERY_DATABASE_URL nor in that of its owner: %w", table, last)
		}
	}
}

// notAbandoned refuses a table of which the owner has another one, in a database of its own: unless the one at hand is a
// replica, nobody writes it any more. An owner's database that can't be asked decides nothing.
func (p *platform) notAbandoned(ctx context.Context, table string, pool *pgxpool.Pool, ownerURL string) error {
	owners, err := p.pool(ownerURL, "query", queryConns, queryTimeout)
	if err != nil || owners == pool {
		return err
	}
	const identity = `SELECT pg_is_in_recovery(), (SELECT system_identifier::text FROM pg_control_system()) || ' ' ||
		(SELECT oid::text FROM pg_database WHERE datname = current_database()) || ' ' || coalesce(to_regclass($1)::oid::text, '')`
	var replica, ignored bool
	var mine, theirs string
	if err := pool.QueryRow(ctx, identity, table).Scan(&replica, &mine); err != nil || replica {
		return nil //nolint:nilerr // the health check of the database tells
	}
	found, err := store.Tables(ctx, owners, table)
	if err != nil || !found {
		return nil //nolint:nilerr // as above
	}
	if err := owners.QueryRow(ctx, identity, table).Scan(&ignored, &theirs); err != nil || mine == theirs {
		return nil //nolint:nilerr // as above
	}
	return fmt.Errorf("QUERY_DATABASE_URL: table %s is in %s, and another one in %s, that of its owner, which alone is written; "+
		"name that one, or a replica of it", table, target(pool), target(owners))
}

// ledger returns the ledger of the event log and all consumers.
func (s *service) ledger(ctx context.Context, events *pgxpool.Pool) (*ledger.Reader, error) {
	consumers := make([]ledger.Consumer, 0, len(accounts))
	for _, account := range accounts {
		c, err := account(ctx, s)
		if err != nil {
			return nil, err
		}
		consumers = append(consumers, c)
	}
	return ledger.NewReader(ledger.Config{
		Events:    events,
		Consumers: consumers,
		Bus:       kafka.NewFinder(kafka.FinderConfig{Brokers: s.cfg.RedpandaBrokers, Security: s.bus, Partitions: outbox.Partitions{Pool: events}.Spread, Log: s.log}),
		Now:       s.now,
		Log:       s.log,
	}), nil
}
