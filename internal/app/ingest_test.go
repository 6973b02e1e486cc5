package app

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/api"
	"github.com/cornjacket/platform-services/internal/pgtest"
	"github.com/cornjacket/platform-services/internal/simulate"
	"github.com/cornjacket/platform-services/migrations"
	"github.com/cornjacket/platform-services/pubsub/outbox"
	"github.com/cornjacket/platform-services/routers"
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

// A full outbox is no place for more: HTTP is answered 429, MQTT is not acknowledged, health says why, and it ends when a
// relay takes from it.
func TestAFullOutboxTakesNoMore(t *testing.T) {
	t.Parallel()
	cfg := settings(t, pgtest.URL(t), bus(t).Addr())
	cfg.OutboxMax = 3
	relay := cfg
	cfg.Services, relay.Services = []string{routers.Ingestion}, []string{routers.Relay}
	p := start(t, cfg)
	require.Eventually(t, func() bool { return post(t, p.addrs[routers.Ingestion], "d", 1) == http.StatusTooManyRequests }, soon, every)
	require.Eventually(t, func() bool {
		names, _ := failing(t, p.addrs[routers.Ingestion])
		return slices.Contains(names, any("queue"))
	}, soon, every)
	log := pgtest.Pool(t, cfg.DatabaseOf(routers.Ingestion))
	var before, after int
	require.NoError(t, log.QueryRow(t.Context(), `SELECT count(*) FROM outbox`).Scan(&before))
	summary := make(chan uint64, 1)
	go func() {
		s, _ := simulate.Run(context.Background(), simulate.Config{URL: "mqtt://" + p.addrs["mqtt"], Devices: 1, Count: 1, Prefix: "mqtt-"})
		summary <- s.Acked
	}()
	select {
	case n := <-summary:
		require.Zero(t, n, "nothing is acknowledged")
	case <-time.After(2 * time.Second):
	}
	require.NoError(t, log.QueryRow(t.Context(), `SELECT count(*) FROM outbox`).Scan(&after))
	require.Equal(t, before, after)
	start(t, relay)
	require.Eventually(t, func() bool { return post(t, p.addrs[routers.Ingestion], "d", 2) == http.StatusAccepted }, soon, every)
	require.EqualValues(t, 1, <-summary)
	require.Eventually(t, func() bool {
		_, ready := failing(t, p.addrs[routers.Ingestion])
		return ready
	}, soon, every)
}
