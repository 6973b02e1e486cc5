package app

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/internal/health"
	"github.com/cornjacket/platform-services/migrations"
	"github.com/cornjacket/platform-services/routers"
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
	pool, err := store.Open(context.Background(), cfg)
	if err != nil {
		return nil, err
	}
	p.pools[key] = pool
	return pool, nil
}

// closePools closes all connections; that waits for those in use, which a frozen server may hold.
func (p *platform) closePools(context.Context) error {
	for _, pool := range p.pools {
		pool.Close()
	}
	return nil
}

// prepareDatabases waits until the databases answer and brings their tables up to date.
func (p *platform) prepareDatabases(ctx context.Context) error {
	return eachDatabase(ctx, p.cfg.Services, p.cfg.Databases, p.cfg.StartupTimeout, func(db *sql.DB, folder string) error {
		_, err := migrations.Up(ctx, db, folder)
		return err
	})
}

// eachDatabase waits for each database in which services have tables, and calls do with each folder of its migrations.
func eachDatabase(ctx context.Context, services []string, urls config.Databases, timeout time.Duration, do func(db *sql.DB, folder string) error) error {
	for _, d := range routers.Databases() {
		users := routers.UsersOf(d)
		if len(d.Migrations) == 0 || !slices.ContainsFunc(users, func(s string) bool { return slices.Contains(services, s) }) {
			continue
		}
		if err := inDatabase(ctx, urls.URLs.Get(d.Variable), d, timeout, do); err != nil {
			return fmt.Errorf("%s: %w", users[0], err)
		}
	}
	return nil
}

func inDatabase(ctx context.Context, url string, d routers.Database, timeout time.Duration, do func(db *sql.DB, folder string) error) error {
	pool, err := store.Open(ctx, store.PoolConfig{URL: url, Name: "migrate"})
	if err != nil {
		return fmt.Errorf("%s: %w", d.Variable, err)
	}
	defer pool.Close()
	if err := await(ctx, pool, d.Variable, timeout); err != nil {
		return err
	}
	db := stdlib.OpenDBFromPool(pool)
	defer db.Close() //nolint:errcheck // it only wraps the pool
	for _, folder := range d.Migrations {
		if err := do(db, folder); err != nil {
			return err
		}
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

func rootCause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// shownCheck is a check whose errors are fit for GET /health, which everyone may ask: what PostgreSQL says of statements
// names tables and columns, and belongs in the log.
func shownCheck(c health.Check) health.Check {
	probe := c.Probe
	c.Probe = func(ctx context.Context) (health.Details, error) {
		details, err := probe(ctx)
		return details, shown(err)
	}
	return c
}

func shown(err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return err
	}
	switch pg.Code[:min(2, len(pg.Code))] {
	case "08", "28", "3D", "53", "55", "57", "58": // connection, credentials, database, resources, locks, operators, system
		return fmt.Errorf("postgres: %s", pg.Message)
	default:
		return fmt.Errorf("postgres refuses what it is asked (code %s); the log has more", pg.Code)
	}
}

// Migrate applies, lists or undoes the migrations of services.
func Migrate(ctx context.Context, cfg config.Migrate, out io.Writer) error {
	return eachDatabase(ctx, cfg.Services, cfg.Databases, cfg.StartupTimeout, func(db *sql.DB, folder string) error {
		switch cfg.Action {
		case "status":
			return printStatus(ctx, db, folder, out)
		case "reset":
			undone, err := migrations.Reset(ctx, db, folder)
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintf(out, "%-14s %d undone\n", folder, undone); err != nil {
				return fmt.Errorf("print result: %w", err)
			}
		}
		done, err := migrations.Up(ctx, db, folder)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(out, "%-14s %d applied\n", folder, done); err != nil {
			return fmt.Errorf("print result: %w", err)
		}
		return nil
	})
}

func printStatus(ctx context.Context, db *sql.DB, folder string, out io.Writer) error {
	list, err := migrations.List(ctx, db, folder)
	if err != nil {
		return err
	}
	for _, m := range list {
		state := "pending"
		if m.Applied {
			state = "applied"
		}
		if _, err := fmt.Fprintf(out, "%-14s %-30s %s\n", folder, m.Name, state); err != nil {
			return fmt.Errorf("print status: %w", err)
		}
	}
	return nil
}
