package app

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/internal/pgtest"
	"github.com/cornjacket/platform-services/internal/simulate"
	"github.com/cornjacket/platform-services/routers"
)

func TestRunCarriesEventsFromBothDoorsToTheQueryAPI(t *testing.T) {
	t.Parallel()
	p := start(t, settings(t, pgtest.URL(t), bus(t).Addr()))
	for _, service := range routers.ServiceNames() {
		status, body := get(t, "http://"+p.addrs[service]+"/health")
		require.Equal(t, http.StatusOK, status, service)
		require.Equal(t, service, body["service"])
		require.Contains(t, body["checks"], "postgres", service)
	}
	require.Equal(t, http.StatusAccepted, post(t, p.addrs[routers.Ingestion], "device-http", 7))
	arrives(t, p.addrs[routers.Query], "device-http", 7)

	res, err := http.Post("http://"+p.addrs[routers.Ingestion]+"/api/v1/events", "application/json",
		strings.NewReader(`{"event_type":"a.b","aggregate_id":"device-http","payload":{},"event_time":"2099-01-01T00:00:00Z"}`))
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Equal(t, http.StatusUnprocessableEntity, res.StatusCode, "it would pin the projection")
	_, ready := get(t, "http://"+p.addrs[routers.Ingestion]+"/health")
	require.EqualValues(t, 0, ready["checks"].(map[string]any)["mqtt"].(map[string]any)["clock_ahead"])

	summary, err := simulate.Run(t.Context(), simulate.Config{URL: "mqtt://" + p.addrs["mqtt"], Devices: 1, Count: 10, Prefix: "mqtt-"})
	require.NoError(t, err)
	require.EqualValues(t, 10, summary.Acked)
	require.Eventually(t, func() bool {
		_, body := get(t, "http://"+p.addrs[routers.Query]+"/api/v1/projections/sensor_state/mqtt-001")
		return body["position"] == 11.0
	}, soon, every)
	_, body := get(t, "http://"+p.addrs[routers.Query]+"/api/v1/events?limit=100")
	require.Len(t, body["items"], 11)

	require.NoError(t, p.stop(), "a stop is no error")
	for service, addr := range p.addrs {
		_, err := net.DialTimeout("tcp", addr, time.Second)
		require.Error(t, err, "%s still listens", service)
	}
}

// Dead letters that are in the table get to the bus, and one that is over its limit does not hold up those behind it.
func TestDeadLettersReachTheBus(t *testing.T) {
	t.Parallel()
	brokers := bus(t).Addr()
	url := pgtest.URL(t)
	p := start(t, settings(t, url, brokers))
	pool := pgtest.Pool(t, url)
	for i, size := range []int{2 << 20, 10} { // the first is over the limit of the bus
		_, err := pool.Exec(t.Context(), `INSERT INTO dlq (consumer, event_payload, error_message, failed_at, source_topic, bus_topic)
			VALUES ('eventhandler', convert_to(repeat('x', $1), 'UTF8'), 'refused', now() - interval '1 hour' + $2 * interval '1 minute', 'x', 'sensor-events.dlq')`,
			size, i)
		require.NoError(t, err)
	}
	require.NoError(t, p.stop())
	start(t, settings(t, url, brokers)) // it looks at once
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers), kgo.ConsumeTopics("sensor-events.dlq"))
	require.NoError(t, err)
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	fetches := client.PollFetches(ctx)
	require.NoError(t, fetches.Err())
	require.Equal(t, strings.Repeat("x", 10), string(fetches.Records()[0].Value))
	require.Eventually(t, func() bool {
		var n int
		return pool.QueryRow(t.Context(), `SELECT count(*) FROM dlq WHERE published_at IS NULL`).Scan(&n) == nil && n == 0
	}, soon, every, "what the bus never takes is not tried for ever")
}

// The services as processes of their own, sharing one database and one bus, started in the worst order.
func TestServicesCanBeProcessesOfTheirOwn(t *testing.T) {
	t.Parallel()
	cfg := settings(t, pgtest.URL(t), bus(t).Addr())
	parts := make(map[string]*running)
	for _, service := range []string{routers.Query, routers.Eventhandler, routers.Relay, routers.Ingestion} {
		own := cfg
		own.Services = []string{service}
		parts[service] = begin(t, func(ctx context.Context, ready func(map[string]string)) error {
			return runThen(ctx, own, quiet, ready)
		})
	}
	addrs := make(map[string]string)
	for service, p := range parts {
		select {
		case p.addrs = <-p.ready:
			addrs[service] = p.addrs[service]
		case <-time.After(soon):
			require.FailNow(t, "not ready", service)
		}
	}
	for i := range 5 {
		require.Equal(t, http.StatusAccepted, post(t, addrs[routers.Ingestion], fmt.Sprint("device-", i), i))
	}
	for i := range 5 {
		arrives(t, addrs[routers.Query], fmt.Sprint("device-", i), i)
	}
	// Without the relay events are taken and wait; without the event handler too.
	require.NoError(t, parts[routers.Relay].stop())
	require.NoError(t, parts[routers.Eventhandler].stop())
	require.Equal(t, http.StatusAccepted, post(t, addrs[routers.Ingestion], "device-0", 100))
	for _, service := range []string{routers.Relay, routers.Eventhandler} {
		own := cfg
		own.Services = []string{service}
		start(t, own)
	}
	arrives(t, addrs[routers.Query], "device-0", 100)
}

func TestEachServiceCanHaveADatabaseOfItsOwn(t *testing.T) {
	t.Parallel()
	cfg := settings(t, "", bus(t).Addr())
	for _, d := range routers.Databases() {
		cfg.URLs = cfg.URLs.With(d.Variable, pgtest.URL(t))
	}
	p := start(t, cfg)
	require.Equal(t, http.StatusAccepted, post(t, p.addrs[routers.Ingestion], "device-1", 5))
	arrives(t, p.addrs[routers.Query], "device-1", 5)
	_, body := get(t, "http://"+p.addrs[routers.Query]+"/api/v1/events")
	require.Len(t, body["items"], 1)
	_, body = get(t, "http://"+p.addrs[routers.Query]+"/health")
	require.Contains(t, body["checks"], "postgres")
	require.Contains(t, body["checks"], "postgres_events", "both databases that it reads are watched")
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		_, ledger := get(t, "http://"+p.addrs[routers.Query]+"/api/v1/ledger")
		require.Equal(c, true, ledger["balanced"], "%v", ledger)
		require.Equal(c, map[string]any{routers.Eventhandler: 1.0}, ledger["applied"])
	}, soon, every)
	_, body = get(t, "http://"+p.addrs[routers.Eventhandler]+"/health")
	require.Contains(t, body["checks"], "fetch")
}

// Event handlers of one log with databases of their own have groups of their own, and each applies all events.
func TestEventHandlersWithGroupsOfTheirOwn(t *testing.T) {
	t.Parallel()
	cfg := settings(t, pgtest.URL(t), bus(t).Addr())
	p := start(t, cfg)
	cfg.URLs = cfg.URLs.With("EVENTHANDLER_DATABASE_URL", pgtest.URL(t))
	cfg.URLs = cfg.URLs.With("QUERY_DATABASE_URL", cfg.DatabaseOf(routers.Eventhandler))
	cfg.Services, cfg.ConsumerGroupSuffix = []string{routers.Eventhandler, routers.Query}, "-green"
	green := start(t, cfg)
	for i := range 20 { // in all partitions
		require.Equal(t, http.StatusAccepted, post(t, p.addrs[routers.Ingestion], fmt.Sprint("device-", i), i))
	}
	for i := range 20 {
		arrives(t, p.addrs[routers.Query], fmt.Sprint("device-", i), i)
		arrives(t, green.addrs[routers.Query], fmt.Sprint("device-", i), i)
	}
}

func TestRunEndsWithAnErrorThatSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	here := pgtest.URL(t)
	nowhere := unused(t)
	with := func(url, old, new string) string {
		require.Contains(t, url, old)
		return strings.Replace(url, old, new, 1)
	}
	port := taken(t)
	for name, tc := range map[string]struct {
		change func(*config.Run)
		wants  []string
	}{
		"port taken": {
			func(c *config.Run) { c.Listen = c.Listen.With("QUERY_ADDR", port) },
			[]string{"query", port, "address already in use"},
		},
		"MQTT port taken": {
			func(c *config.Run) { c.MQTTURL = "mqtt://" + port },
			[]string{"MQTT", port, "address already in use"},
		},
		"no database server": {
			func(c *config.Run) {
				c.URLs = c.URLs.With("INGESTION_DATABASE_URL", "postgres://me:s3cret@"+nowhere+"/mine")
				c.StartupTimeout = 500 * time.Millisecond
			},
			[]string{"ingestion", "INGESTION_DATABASE_URL", "postgres://me@" + nowhere + "/mine", "500ms", "connection refused"},
		},
		"no database server of the event handler": {
			func(c *config.Run) {
				c.URLs = c.URLs.With("EVENTHANDLER_DATABASE_URL", "postgres://me:s3cret@"+nowhere+"/mine")
				c.StartupTimeout = 500 * time.Millisecond
			},
			[]string{"eventhandler", "EVENTHANDLER_DATABASE_URL", nowhere},
		},
		"wrong password": { // at once: the default StartupTimeout is longer than this test waits
			func(c *config.Run) {
				c.URLs = c.URLs.With("EVENTHANDLER_DATABASE_URL", with(here, ":cornjacket@", ":s3cret@"))
			},
			[]string{"eventhandler", "EVENTHANDLER_DATABASE_URL", "password authentication failed"},
		},
		"no such database": {
			func(c *config.Run) { c.URLs = c.URLs.With("INGESTION_DATABASE_URL", with(here, "?", "_not?")) },
			[]string{"ingestion", "INGESTION_DATABASE_URL", "does not exist"},
		},
		"query without tables": {
			func(c *config.Run) {
				c.Services = []string{routers.Query}
				c.StartupTimeout = 500 * time.Millisecond
			},
			[]string{"query", "QUERY_DATABASE_URL", "projections"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := pgtest.URL(t)
			cfg := settings(t, url, nowhere)
			tc.change(&cfg)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			err := Run(ctx, cfg, quiet)
			require.Error(t, err)
			require.NoError(t, ctx.Err(), "it did not end by itself")
			for _, want := range tc.wants {
				require.ErrorContains(t, err, want)
			}
			require.NotContains(t, err.Error(), "s3cret")
			require.NotContains(t, err.Error(), "\n", "one line")
		})
	}
}

// A stop while the platform waits for what it needs is a clean one too, and a fast one.
func TestAStopWhileStartingIsClean(t *testing.T) {
	t.Parallel()
	nowhere := unused(t)
	silent := taken(t) // takes connections and says nothing
	for name, tc := range map[string]struct {
		change  func(*config.Run)
		waiting string // what the event handler is seen to wait for
	}{
		"no database": {func(c *config.Run) {
			c.URLs = c.URLs.With("INGESTION_DATABASE_URL", "postgres://me:x@"+nowhere+"/mine")
		}, "starting"},
		"mute database": {func(c *config.Run) { c.URLs = c.URLs.With("INGESTION_DATABASE_URL", "postgres://me:x@"+silent+"/mine") }, "starting"},
		"no bus":        {func(*config.Run) {}, "router"},
		"mute bus":      {func(c *config.Run) { c.RedpandaBrokers = []string{silent} }, "router"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := settings(t, pgtest.URL(t), nowhere)
			cfg.Listen = cfg.Listen.With("EVENTHANDLER_HEALTH_ADDR", unused(t))
			tc.change(&cfg)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			go func() { ended <- Run(ctx, cfg, quiet) }()
			require.Eventually(t, func() bool { // it answers from the start, and says the truth
				names, _ := failing(t, cfg.Of(routers.Eventhandler))
				return slices.Contains(names, any(tc.waiting))
			}, soon, every)
			started := time.Now()
			cancel()
			select {
			case err := <-ended:
				require.NoError(t, err)
			case <-time.After(soon):
				require.FailNow(t, "it does not end")
			}
			require.Less(t, time.Since(started), 4*time.Second, "there is nothing to wait for")
		})
	}
}

// Within 5 s of any change; a second more is for a slow machine that runs other tests.
const told = 6 * time.Second

func TestHealthTellsTheTruth(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("waits for each dependency to go and come back")
	}
	pg, dir := pgtest.Server(t), t.TempDir()
	broker := busIn(t, dir, free)
	p := start(t, settings(t, pg.URL(), broker.Addr()))
	all := func(ready bool) func() bool {
		return func() bool {
			for _, service := range routers.ServiceNames() {
				if _, ok := failing(t, p.addrs[service]); ok != ready {
					return false
				}
			}
			return true
		}
	}
	pgtest.Freeze(t, pg)
	require.Eventually(t, all(false), told, every, "frozen")
	for _, service := range routers.ServiceNames() {
		names, _ := failing(t, p.addrs[service])
		require.Contains(t, names, "postgres", service)
	}
	pgtest.Thaw(t, pg)
	require.Eventually(t, all(true), soon, every, "thawed")

	broker.Close()
	for _, service := range []string{routers.Relay, routers.Eventhandler} {
		require.Eventually(t, func() bool { _, ok := failing(t, p.addrs[service]); return !ok }, told, every, service)
		names, _ := failing(t, p.addrs[service])
		require.Contains(t, names, "bus", service)
	}
	_, ok := failing(t, p.addrs[routers.Query])
	require.True(t, ok, "query does not need the bus")
	require.Equal(t, http.StatusAccepted, post(t, p.addrs[routers.Ingestion], "device-1", 1), "nor does ingestion")
	busIn(t, dir, broker.Addr())
	require.Eventually(t, all(true), soon, every, "the bus is back")
	arrives(t, p.addrs[routers.Query], "device-1", 1)
}
