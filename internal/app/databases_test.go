package app

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/internal/pgtest"
	"github.com/cornjacket/platform-services/routers"
)

// Queries that read a table nobody writes any more would answer from the past for ever.
func TestQueryRefusesATableThatIsNotItsOwners(t *testing.T) {
	t.Parallel()
	old, now := pgtest.URL(t), pgtest.URL(t)
	migrate(t, old)
	cfg := settings(t, old, bus(t).Addr())
	cfg.URLs = cfg.URLs.With("EVENTHANDLER_DATABASE_URL", now)
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	err := Run(ctx, cfg, quiet)
	require.ErrorContains(t, err, "QUERY_DATABASE_URL: table projections is in ")
	require.NotContains(t, err.Error(), "\n", "one line")

	cfg.URLs = cfg.URLs.With("QUERY_DATABASE_URL", now+"&application_name=another") // the same, by another name
	p := start(t, cfg)
	require.Equal(t, 202, post(t, p.addrs[routers.Ingestion], "d", 7))
	arrives(t, p.addrs[routers.Query], "d", 7)
}

func TestHealthShowsNoStatements(t *testing.T) {
	t.Parallel()
	wrap := func(code, message string) error {
		return fmt.Errorf("postgres: read the newest position: %w", &pgconn.PgError{Code: code, Message: message})
	}
	require.NoError(t, shown(nil))
	require.EqualError(t, shown(errors.New("not connected yet")), "not connected yet")
	require.EqualError(t, shown(wrap("42P01", `relation "event_store" does not exist`)), "postgres refuses what it is asked (code 42P01); the log has more")
	require.EqualError(t, shown(wrap("", `?`)), "postgres refuses what it is asked (code ); the log has more")
	require.EqualError(t, shown(wrap("28P01", `password authentication failed for user "x"`)), `postgres: password authentication failed for user "x"`)
	require.EqualError(t, shown(wrap("53100", `could not extend file: No space left on device`)), "postgres: could not extend file: No space left on device")
}
