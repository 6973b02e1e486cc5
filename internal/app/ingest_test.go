package app

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/api"
	"github.com/cornjacket/platform-services/internal/pgtest"
	"github.com/cornjacket/platform-services/migrations"
	"github.com/cornjacket/platform-services/pubsub/outbox"
)

// A request does not wait longer than INGEST_TIMEOUT for a database that hangs.
func TestStorageThatHangsIsUnavailable(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, "")
	db := stdlib.OpenDBFromPool(pool)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	_, err := migrations.Up(t.Context(), db, "ingestion")
	require.NoError(t, err)
	hold, err := pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = hold.Exec(t.Context(), `LOCK TABLE outbox IN EXCLUSIVE MODE`)
	require.NoError(t, err)
	in := outbox.NewPublisher(pool, outbox.PublisherConfig{Wait: 20 * time.Millisecond})
	t.Cleanup(func() {
		require.NoError(t, hold.Rollback(context.Background()))
		require.NoError(t, in.Close())
	})
	server := httptest.NewServer(api.NewIngestion(api.IngestionConfig{Ingester: in}))
	t.Cleanup(server.Close)
	res, err := http.Post(server.URL+"/api/v1/events", "application/json",
		strings.NewReader(`{"event_type":"sensor.reading","aggregate_id":"d","payload":{"value":1,"unit":"c"}}`))
	require.NoError(t, err)
	body, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Equal(t, http.StatusServiceUnavailable, res.StatusCode, "%s", body)
	require.NotEmpty(t, res.Header.Get("Retry-After"))
}
