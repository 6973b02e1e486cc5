package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/internal/health"
	"github.com/cornjacket/platform-services/migrations"
	"github.com/cornjacket/platform-services/store"
)

// pool returns the pool of one use of a database; each use has connections of its own, so that one that is slow takes
// none from another.
func (p *platform) pool(url, use string, conns int, statementTimeout time.Duration) (*pgxpool.Pool, error) {
	return p.poolWith(url, store.PoolConfig{Name: use, MaxConns: conns, StatementTimeout: statementTimeout})
}

func (p *platform) poolWith(url string, cfg store.PoolConfig) (*pgxpool.Pool, error) {
	key := cfg.Name + " " + url
	if pool, ok := p.pools[key]; ok {
		return pool, nil
	}
	cfg.URL = url
	pool, err := store.Open(p.ctx, cfg)
	if err != nil {
		return nil, err
	}
	p.pools[key] = pool
	return pool, nil
}

func (p *platform) ingestionPool() (*pgxpool.Pool, error) {
	return p.pool(p.cfg.IngestionDatabaseURL, "ingestion", 4, 0)
}

func (p *platform) eventhandlerPool() (*pgxpool.Pool, error) {
	return p.poolWith(p.cfg.EventhandlerDatabaseURL, store.PoolConfig{Name: "eventhandler", MaxConns: 4, Settings: store.ProjectionSettings()})
}

// prepareDatabases waits until the databases answer and brings their tables up to date.
func (p *platform) prepareDatabases(ctx context.Context) error {
	if p.runs(config.Ingestion) || p.runs(config.Relay) {
		pool, err := p.ingestionPool()
		if err != nil {
			return fmt.Errorf("INGESTION_DATABASE_URL: %w", err)
		}
		if err := migrateUp(ctx, pool, "ingestion", "INGESTION_DATABASE_URL", p.cfg.StartupTimeout); err != nil {
			return err
		}
	}
	if p.runs(config.Eventhandler) {
		pool, err := p.eventhandlerPool()
		if err != nil {
			return fmt.Errorf("EVENTHANDLER_DATABASE_URL: %w", err)
		}
		if err := migrateUp(ctx, pool, "eventhandler", "EVENTHANDLER_DATABASE_URL", p.cfg.StartupTimeout); err != nil {
			return err
		}
	}
	return nil
}

func migrateUp(ctx context.Context, pool *pgxpool.Pool, service, variable string, timeout time.Duration) error {
	if err := await(ctx, pool, variable, timeout); err != nil {
		return fmt.Errorf("%s: %w", service, err)
	}
	db := stdlib.OpenDBFromPool(pool)
	defer db.Close() //nolint:errcheck // it only wraps the pool
	if _, err := migrations.Up(ctx, db, service); err != nil {
		return err
	}
	return nil
}

// await waits until a database answers. What waiting can't mend, such as a wrong password, is an error at once.
func await(ctx context.Context, pool *pgxpool.Pool, variable string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		pingCtx, cancelPing := context.WithTimeout(ctx, 5*time.Second)
		err := pool.Ping(pingCtx)
		cancelPing()
		if err == nil {
			return nil
		}
		var pg *pgconn.PgError
		if errors.As(err, &pg) && (pg.Code[:2] == "28" || pg.Code[:2] == "3D") { // credentials, no such database
			return fmt.Errorf("database of %s (%s) refuses us: %s", variable, target(pool), pg.Message)
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return fmt.Errorf("database of %s (%s) does not answer for %s: %w", variable, target(pool), timeout, rootCause(err))
		}
	}
}

// target names a database without its password.
func target(pool *pgxpool.Pool) string {
	c := pool.Config().ConnConfig
	return (&url.URL{Scheme: "postgres", User: url.User(c.User), Host: fmt.Sprintf("%s:%d", c.Host, c.Port), Path: c.Database}).String()
}

// postgresCheck is a round trip to a database.
func postgresCheck(pool *pgxpool.Pool) health.Check {
	return health.Check{Name: "postgres", Probe: func(ctx context.Context) (health.Details, error) {
		if err := pool.Ping(ctx); err != nil {
			return nil, plain(ctx, "postgres", err)
		}
		return nil, nil
	}}
}

// plain makes the error of a round trip one that operators can read.
func plain(ctx context.Context, what string, err error) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("%s does not answer", what)
	}
	return fmt.Errorf("%s: %w", what, rootCause(err))
}

// Migrate applies, lists or undoes the migrations of services.
func Migrate(ctx context.Context, cfg config.Migrate, out io.Writer) error {
	for _, service := range migrations.Services() {
		if err := migrateService(ctx, cfg, service, out); err != nil {
			return err
		}
	}
	return nil
}

func migrateService(ctx context.Context, cfg config.Migrate, service string, out io.Writer) error {
	address, variable := cfg.IngestionDatabaseURL, "INGESTION_DATABASE_URL"
	wanted := []string{config.Ingestion, config.Relay}
	if service == config.Eventhandler {
		address, variable = cfg.EventhandlerDatabaseURL, "EVENTHANDLER_DATABASE_URL"
		wanted = []string{config.Eventhandler}
	}
	if !containsAny(cfg.Services, wanted) {
		return nil
	}
	pool, err := store.Open(ctx, store.PoolConfig{URL: address, Name: "migrate"})
	if err != nil {
		return fmt.Errorf("%s: %w", variable, err)
	}
	defer pool.Close()
	if err := await(ctx, pool, variable, cfg.StartupTimeout); err != nil {
		return fmt.Errorf("%s: %w", service, err)
	}
	db := stdlib.OpenDBFromPool(pool)
	defer db.Close() //nolint:errcheck // it only wraps the pool
	switch cfg.Action {
	case "status":
		list, err := migrations.List(ctx, db, service)
		if err != nil {
			return err
		}
		for _, m := range list {
			state := "pending"
			if m.Applied {
				state = "applied"
			}
			if _, err := fmt.Fprintf(out, "%-14s %-36s %s\n", service, m.Name, state); err != nil {
				return fmt.Errorf("print status: %w", err)
			}
		}
		return nil
	case "reset":
		undone, err := migrations.Reset(ctx, db, service)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(out, "%-14s %d undone\n", service, undone); err != nil {
			return fmt.Errorf("print result: %w", err)
		}
	}
	done, err := migrations.Up(ctx, db, service)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(out, "%-14s %d applied\n", service, done); err != nil {
		return fmt.Errorf("print result: %w", err)
	}
	return nil
}

func containsAny(list, wanted []string) bool {
	for _, l := range list {
		for _, w := range wanted {
			if l == w {
				return true
			}
		}
	}
	return false
}
