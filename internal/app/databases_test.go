package app

import (
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
)

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
