package app

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/internal/pgtest"
	"github.com/cornjacket/platform-services/pubsub/kafka"
	"github.com/cornjacket/platform-services/routers"
)

// The database of the log goes back in time while bus and projections are newer: what the bus has comes back, and new
// events take effect.
func TestTheLogGoesBackInTime(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		back  func(t *testing.T, cfg config.Run, log *pgxpool.Pool)
		stays int // events that are in the log afterwards, of 5
	}{
		"its events are gone": {func(t *testing.T, _ config.Run, log *pgxpool.Pool) {
			execute(t, log, `TRUNCATE event_store, outbox`)
		}, 5},
		"its tables are empty": {func(t *testing.T, _ config.Run, log *pgxpool.Pool) {
			execute(t, log, `TRUNCATE event_store, outbox, relay_cursor, relay_counts`)
		}, 5},
		"it was restored": {func(t *testing.T, _ config.Run, log *pgxpool.Pool) {
			execute(t, log, `DELETE FROM event_store WHERE position > 2`, `UPDATE relay_cursor SET position = 2, counted = 2`,
				`UPDATE relay_counts SET events = 2`)
		}, 5},
		"it was restored to before it was published": {func(t *testing.T, _ config.Run, log *pgxpool.Pool) {
			execute(t, log, `DELETE FROM event_store WHERE position > 2`, `UPDATE relay_cursor SET position = 1, counted = 1`,
				`UPDATE relay_counts SET events = 1`)
		}, 5},
		"it was reset": {func(t *testing.T, cfg config.Run, _ *pgxpool.Pool) {
			require.NoError(t, Migrate(t.Context(), config.Migrate{
				Action: "reset", Yes: true, Services: []string{routers.Ingestion}, StartupTimeout: soon, Databases: cfg.Databases,
			}, io.Discard))
		}, 5},
		"and the bus is empty": {func(t *testing.T, cfg config.Run, log *pgxpool.Pool) {
			execute(t, log, `TRUNCATE event_store, outbox, relay_cursor, relay_counts`)
			client, err := kafka.NewClient(cfg.RedpandaBrokers, quiet)
			require.NoError(t, err)
			defer client.Close()
			deleted, err := kadm.NewClient(client).DeleteTopics(t.Context(), event.Topics()...)
			require.NoError(t, err)
			require.NoError(t, deleted.Error())
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := settings(t, pgtest.URL(t), bus(t).Addr())
			cfg.URLs = cfg.URLs.With("EVENTHANDLER_DATABASE_URL", pgtest.URL(t))
			log := pgtest.Pool(t, cfg.DatabaseOf(routers.Ingestion))
			p := start(t, cfg)
			for i := range 5 {
				require.Equal(t, http.StatusAccepted, post(t, p.addrs[routers.Ingestion], "d", i))
			}
			arrives(t, p.addrs[routers.Query], "d", 4)
			require.NoError(t, p.stop())

			c.back(t, cfg, log)
			p = start(t, cfg)
			require.Equal(t, http.StatusAccepted, post(t, p.addrs[routers.Ingestion], "d", 5))
			arrives(t, p.addrs[routers.Query], "d", 5)
			_, body := get(t, "http://"+p.addrs[routers.Query]+"/api/v1/events?limit=100")
			require.Len(t, body["items"], c.stays+1)
			for service, addr := range p.addrs {
				if service == "mqtt" {
					continue
				}
				require.EventuallyWithT(t, func(col *assert.CollectT) {
					status, body := get(t, "http://"+addr+"/health")
					require.Equal(col, http.StatusOK, status, "%s: %v", service, body)
				}, soon, every)
			}
			if c.stays < 5 { // they are nowhere but in the projections, and the ledger says so
				return
			}
			require.EventuallyWithT(t, func(col *assert.CollectT) {
				_, ledger := get(t, "http://"+p.addrs[routers.Query]+"/api/v1/ledger")
				require.Equal(col, true, ledger["balanced"], "%v", ledger)
				require.EqualValues(col, 6, ledger["sequenced"])
				require.EqualValues(col, map[string]any{routers.Eventhandler: 6.0}, ledger["applied"])
			}, soon, every)
			var log6 bytes.Buffer
			rows, err := log.Query(t.Context(), `SELECT position, payload->>'value' FROM event_store ORDER BY position`)
			require.NoError(t, err)
			for rows.Next() {
				var position int64
				var value string
				require.NoError(t, rows.Scan(&position, &value))
				fmt.Fprintf(&log6, "%d=%s ", position, value)
			}
			require.NoError(t, rows.Err())
			require.Equal(t, "1=0 2=1 3=2 4=3 5=4 6=5 ", log6.String())
		})
	}
}

func execute(t *testing.T, pool *pgxpool.Pool, statements ...string) {
	t.Helper()
	for _, sql := range statements {
		_, err := pool.Exec(t.Context(), sql)
		require.NoError(t, err, sql)
	}
}

// A relay that can't look at the bus gives no positions, says so, and goes on by itself.
func TestARelayLooksAtTheBusBeforeItSequences(t *testing.T) {
	t.Parallel()
	url, addr, dir := pgtest.URL(t), unused(t), t.TempDir()
	cfg := settings(t, url, addr)
	cfg.Services = []string{routers.Ingestion, routers.Relay}
	ingestion, relay := unused(t), unused(t)
	cfg.Listen = cfg.Listen.With("INGESTION_ADDR", ingestion).With("RELAY_HEALTH_ADDR", relay)
	begin(t, func(ctx context.Context, ready func(map[string]string)) error { return runThen(ctx, cfg, quiet, ready) })
	require.Eventually(t, func() bool {
		failing, _ := failing(t, relay)
		return assert.ObjectsAreEqual([]any{"bus", "relay"}, failing)
	}, soon, every)
	require.Equal(t, http.StatusAccepted, post(t, ingestion, "d", 1))
	var sequenced int
	log := pgtest.Pool(t, url)
	require.NoError(t, log.QueryRow(t.Context(), `SELECT count(*) FROM event_store`).Scan(&sequenced))
	require.Zero(t, sequenced)
	busIn(t, dir, addr)
	require.Eventually(t, func() bool {
		_, ready := failing(t, relay)
		err := log.QueryRow(t.Context(), `SELECT count(*) FROM event_store`).Scan(&sequenced)
		return err == nil && sequenced == 1 && ready
	}, soon, every)
}

// What the bus has lost is published again, and the ledger stays as it was.
func TestRepublish(t *testing.T) {
	t.Parallel()
	cfg := settings(t, pgtest.URL(t), bus(t).Addr())
	p := start(t, cfg)
	for i := range 5 {
		require.Equal(t, http.StatusAccepted, post(t, p.addrs[routers.Ingestion], "d", i))
	}
	arrives(t, p.addrs[routers.Query], "d", 4)
	balanced := func(events int) {
		require.EventuallyWithT(t, func(col *assert.CollectT) {
			_, ledger := get(t, "http://"+p.addrs[routers.Query]+"/api/v1/ledger")
			require.Equal(col, true, ledger["balanced"], "%v", ledger)
			require.EqualValues(col, events, ledger["published"])
			require.EqualValues(col, map[string]any{routers.Eventhandler: float64(events)}, ledger["applied"])
		}, soon, every)
	}
	balanced(5)
	var said bytes.Buffer
	again := config.Republish{From: 3, StartupTimeout: soon, Databases: cfg.Databases}
	require.NoError(t, Republish(t.Context(), again, &said))
	require.Equal(t, "3 events, from position 3 on, are published again now; consumers skip what they have\n", said.String())
	history := kafka.History{Brokers: cfg.RedpandaBrokers, Topics: event.Topics(), Log: quiet}
	require.EventuallyWithT(t, func(col *assert.CollectT) {
		var positions []int64
		require.NoError(col, history.Since(t.Context(), time.Time{}, func(events []event.Envelope) error {
			for _, e := range events {
				positions = append(positions, e.Metadata.Position)
			}
			return nil
		}))
		require.Equal(col, []int64{1, 2, 3, 4, 5, 3, 4, 5}, positions)
	}, soon, every)
	require.Equal(t, http.StatusAccepted, post(t, p.addrs[routers.Ingestion], "d", 5))
	arrives(t, p.addrs[routers.Query], "d", 5)
	balanced(6)
	again.From = 7
	require.ErrorContains(t, Republish(t.Context(), again, &said), "position 7 is not in the log yet")
}
