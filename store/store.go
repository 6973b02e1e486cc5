// Package store keeps what the platform knows in PostgreSQL: the projections, and what the query API reads. The outbox
// and the writing of the event log belong to pubsub/outbox, dead letters to package deadletter.
package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cornjacket/platform-services/internal/fault"
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

// Tables reports whether a database has all of the tables.
func Tables(ctx context.Context, pool *pgxpool.Pool, names ...string) (bool, error) {
	var n int
	err := pool.QueryRow(ctx, `SELECT count(*) FROM unnest($1::text[]) AS t (name) WHERE to_regclass(name) IS NOT NULL`, names).Scan(&n)
	if err != nil {
		return false, errors.Join(fault.ErrUnavailable, fmt.Errorf("look for tables: %w", err))
	}
	return n == len(names), nil
}
