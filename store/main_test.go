package store_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/cornjacket/platform-services/internal/pgtest"
	"github.com/cornjacket/platform-services/migrations"
	"github.com/cornjacket/platform-services/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, pgtest.IgnoreServer()) }

const (
	soon  = 20 * time.Second
	every = 5 * time.Millisecond
)

// t0 is when the events of these tests happened.
var t0 = time.Date(2026, 2, 7, 10, 0, 0, 123456000, time.UTC)

// tables creates the tables of all services in the database of pool.
func tables(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	db := stdlib.OpenDBFromPool(pool)
	defer func() { require.NoError(t, db.Close()) }()
	for _, service := range migrations.Services() {
		_, err := migrations.Up(t.Context(), db, service)
		require.NoError(t, err)
	}
}

// database returns a pool on a fresh database with all tables.
func database(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool := pgtest.Pool(t, "")
	tables(t, pool)
	return pool
}

func key(id string) store.ProjectionKey {
	return store.ProjectionKey{Type: "sensor_state", AggregateID: id}
}

// id returns the same UUID for the same number.
func id(n int) uuid.UUID {
	return uuid.UUID{0: 1, 6: 0x70, 8: 0x80, 14: byte(n >> 8), 15: byte(n)}
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
