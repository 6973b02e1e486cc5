package deadletter_test

import (
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/cornjacket/platform-services/internal/pgtest"
	"github.com/cornjacket/platform-services/migrations"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, pgtest.IgnoreServer()) }

const (
	soon = 30 * time.Second
	tick = 5 * time.Millisecond
)

var (
	quiet = slog.New(slog.DiscardHandler)
	t0    = time.Date(2026, 2, 7, 10, 0, 0, 123456000, time.UTC) // when the events of these tests happened
)

// tables creates the tables of dead letters, and one for the effects of the tests' consumer.
func tables(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	db := stdlib.OpenDBFromPool(pool)
	defer func() { require.NoError(t, db.Close()) }()
	_, err := migrations.Up(t.Context(), db, "ingestion")
	require.NoError(t, err)
	_, err = pool.Exec(t.Context(), `CREATE TABLE effects (key text PRIMARY KEY, n bigint NOT NULL)`)
	require.NoError(t, err)
}

// database returns a pool on a fresh database with all tables.
func database(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool := pgtest.Pool(t, "")
	tables(t, pool)
	return pool
}

// id returns the same UUID for the same number.
func id(n int) uuid.UUID {
	return uuid.UUID{0: 1, 6: 0x70, 8: 0x80, 14: byte(n >> 8), 15: byte(n)}
}
