// Package store keeps what the platform knows in PostgreSQL: the projections, what the query API reads, and the dead
// letters. The outbox and the writing of the event log belong to pubsub/outbox.
package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cornjacket/platform-services/event"
)

// Errors of this package.
var (
	// ErrNotFound says that there is no such row.
	ErrNotFound = errors.New("not found")
	// ErrUnavailable says that the database can't be reached or does not answer; trying again later may help.
	ErrUnavailable = errors.New("database is unavailable")
)

// PoolConfig configures a connection pool.
type PoolConfig struct {
	URL string
	// Name is shown in pg_stat_activity.
	Name string
	// MaxConns is the most connections; 4 if zero.
	MaxConns int
	// StatementTimeout is the server's limit for one statement; none if zero.
	StatementTimeout time.Duration
	// Settings are further server settings of each connection.
	Settings map[string]string
}

// Open returns a pool. It does not connect yet; the error is a malformed URL.
func Open(ctx context.Context, cfg PoolConfig) (*pgxpool.Pool, error) {
	c, err := pgxpool.ParseConfig(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("read database URL: %w", err) // pgx redacts the password
	}
	c.MaxConns = int32(max(cfg.MaxConns, 0))
	if c.MaxConns == 0 {
		c.MaxConns = 4
	}
	c.MinIdleConns = 0
	c.MaxConnIdleTime = 5 * time.Minute
	c.HealthCheckPeriod = time.Minute
	c.ConnConfig.ConnectTimeout = 5 * time.Second
	// A server that vanished without a word is noticed by the kernel, not only by timeouts.
	dialer := &net.Dialer{Timeout: 5 * time.Second, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3}}
	c.ConnConfig.DialFunc = dialer.DialContext
	params := c.ConnConfig.RuntimeParams
	params["application_name"] = "cornjacket-" + cfg.Name
	params["timezone"] = "UTC"
	params["jit"] = "off" // compiling a statement costs more than any of ours
	maps.Copy(params, cfg.Settings)
	if cfg.StatementTimeout > 0 {
		params["statement_timeout"] = fmt.Sprint(cfg.StatementTimeout.Milliseconds())
	}
	pool, err := pgxpool.NewWithConfig(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("open database pool %s: %w", cfg.Name, err)
	}
	return pool, nil
}

// classify marks the errors that no retry mends.
func classify(err error) error {
	if event.Unstorable(err) {
		return event.Permanent(err)
	}
	return err
}

// unmatchable tells that the database refused an argument of a query as one that no column can hold, such as a NUL in a
// text or a time beyond its range. Nothing that is stored can match it.
func unmatchable(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	switch pg.Code {
	case "22021", "22P05", "22008": // character_not_in_repertoire, untranslatable_character, datetime_field_overflow
		return true
	}
	return false
}

// unavailable turns an error of the connection, an outage or a timeout into one that wraps [ErrUnavailable].
func unavailable(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && !event.Outage(err) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}
