package doctor_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/internal/devstack"
	"github.com/cornjacket/platform-services/internal/doctor"
	"github.com/cornjacket/platform-services/internal/pgtest"
	"github.com/cornjacket/platform-services/migrations"
	"github.com/cornjacket/platform-services/routers"
)

// only returns settings with which one area is looked at; everything else is nowhere.
func only(services ...string) config.Doctor {
	const nowhere = "127.0.0.1:1"
	return config.Doctor{
		Services: services, Timeout: 10 * time.Second,
		Addresses: config.EveryAddress(nowhere), Databases: config.OneDatabase("postgres://u:s3cret@" + nowhere + "/d"),
		Broker: config.Broker{RedpandaBrokers: []string{nowhere}, MQTTURL: "mqtt://" + nowhere},
		Topics: config.Topics{TopicPartitions: 4, TopicRetention: time.Hour},
	}
}

// of returns the findings of an area.
func of(r doctor.Report, area string) (found []doctor.Finding) {
	for _, f := range r.Findings {
		if f.Area == area {
			found = append(found, f)
		}
	}
	return found
}

// finding returns that of a check, which is named by its area where others have the same name.
func finding(t *testing.T, r doctor.Report, check string) doctor.Finding {
	t.Helper()
	i := slices.IndexFunc(r.Findings, func(f doctor.Finding) bool { return f.Check == check || f.Area+" "+f.Check == check })
	require.GreaterOrEqual(t, i, 0, "%s in %+v", check, r.Findings)
	return r.Findings[i]
}

func TestADatabaseThatIsNotMigrated(t *testing.T) {
	t.Parallel()
	s := only(routers.Ingestion, routers.Eventhandler)
	s.URLs = s.URLs.With("INGESTION_DATABASE_URL", pgtest.URL(t)).With("EVENTHANDLER_DATABASE_URL", pgtest.URL(t))
	db := stdlib.OpenDBFromPool(pgtest.Pool(t, s.DatabaseOf(routers.Eventhandler)))
	defer func() { require.NoError(t, db.Close()) }()
	_, err := migrations.Up(t.Context(), db, "eventhandler")
	require.NoError(t, err)
	r := doctor.Examine(t.Context(), s)
	f := finding(t, r, "migrations of ingestion")
	require.Equal(t, doctor.Fail, f.Status)
	require.Contains(t, f.Advice, "platform migrate up")
	require.Equal(t, doctor.OK, finding(t, r, "migrations of eventhandler").Status)
	require.Equal(t, doctor.OK, finding(t, r, "ingestion oldest transaction").Status)

	var tables int
	require.NoError(t, pgtest.Pool(t, s.DatabaseOf(routers.Ingestion)).QueryRow(t.Context(),
		`SELECT count(*) FROM pg_tables WHERE schemaname = 'public'`).Scan(&tables))
	require.Zero(t, tables, "it changes nothing")
	_, err = db.Exec(`INSERT INTO goose_eventhandler (version_id, is_applied) VALUES (9000, true)`)
	require.NoError(t, err)
	require.Equal(t, doctor.Warn, finding(t, doctor.Examine(t.Context(), s), "migrations of eventhandler").Status, "of a newer binary")
}

func TestADatabaseThatIsFrozen(t *testing.T) {
	t.Parallel()
	pg := pgtest.Server(t)
	s := only(routers.Eventhandler)
	s.URLs, s.Timeout = s.URLs.With("EVENTHANDLER_DATABASE_URL", pg.URL()), time.Second
	pgtest.Freeze(t, pg)
	r := doctor.Examine(t.Context(), s)
	found := of(r, "database")
	require.Len(t, found, 1)
	require.Equal(t, doctor.Fail, found[0].Status)
	require.Contains(t, found[0].Detail, "does not answer")
	pgtest.Thaw(t, pg)
}

func TestTopicsThatAreNotAsTheyShouldBe(t *testing.T) {
	t.Parallel()
	bus, err := devstack.StartKafka(devstack.KafkaConfig{Addr: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	defer bus.Close()
	s := only(routers.Eventhandler)
	s.RedpandaBrokers = []string{bus.Addr()}
	client, err := kgo.NewClient(kgo.SeedBrokers(bus.Addr()))
	require.NoError(t, err)
	defer client.Close()
	create := func(topic string, partitions int32, retention string) {
		_, err := kadm.NewClient(client).CreateTopic(t.Context(), partitions, -1, map[string]*string{"retention.ms": &retention}, topic)
		require.NoError(t, err)
	}
	all := routers.Topics()
	create(all[0], 4, "3600000")
	create(all[1], 3, "3600000")
	create(all[2], 4, "60000")
	create(all[3], 4, "-1")
	r := doctor.Examine(t.Context(), s)
	for i, want := range []struct{ status, detail string }{
		{doctor.OK, "kept 1h0m0s"}, {doctor.Warn, "TOPIC_PARTITIONS is 4"}, {doctor.Warn, "kept 1m0s"}, {doctor.OK, "kept for good"},
		{doctor.Fail, "does not exist"},
	} {
		f := finding(t, r, "topic "+all[i])
		require.Equal(t, want.status, f.Status, "%+v", f)
		require.Contains(t, f.Detail, want.detail)
		require.True(t, want.status == doctor.OK || f.Advice != "", "%+v says what to do", f)
	}
	group := finding(t, r, "group eventhandler")
	require.Equal(t, doctor.Warn, group.Status)
	require.Contains(t, group.Detail, "nobody")
}

// service answers as one of the platform's does.
func service(t *testing.T, health, ledger string) string {
	t.Helper()
	mux := http.NewServeMux()
	answer := func(body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if strings.Contains(body, "unavailable") {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			_, _ = w.Write([]byte(body))
		}
	}
	mux.HandleFunc("GET /health", answer(health))
	mux.HandleFunc("GET /api/v1/ledger", answer(ledger))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func TestWhatServicesSay(t *testing.T) {
	t.Parallel()
	const well = `{"status":"ok","service":"query","checks":{}}`
	for name, tc := range map[string]struct{ health, ledger, check, status, detail string }{
		"well":             {well, `{"balanced":true,"accepted":7}`, "balance", doctor.OK, "7 accepted"},
		"not ready":        {`{"status":"unavailable","service":"query","failing":["postgres"],"checks":{"postgres":{"error":"gone"}}}`, ``, "health query", doctor.Fail, "postgres: gone"},
		"another service":  {`{"status":"ok","service":"relay","checks":{}}`, ``, "health query", doctor.Fail, "is relay"},
		"something else":   {`<html>`, ``, "health query", doctor.Fail, "no health answer"},
		"on the way":       {well, `{"missing":[{"stage":"relay","events":3,"detail":"x"}]}`, "balance", doctor.Warn, "3 at relay"},
		"too many":         {well, `{"missing":[{"stage":"relay","events":3},{"stage":"eventhandler","events":-1}]}`, "balance", doctor.Fail, "-1 at eventhandler"},
		"no ledger":        {well, `unavailable`, "balance", doctor.Fail, "503"},
		"letters wait":     {well, `{"balanced":true,"dead_lettered":{"relay":{"pending":2},"ingestion":{"replayed":1}}}`, "dead letters", doctor.Warn, "2 of relay"},
		"letters are done": {well, `{"balanced":true,"dead_lettered":{"ingestion":{"replayed":1}}}`, "dead letters", doctor.OK, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := only(routers.Query)
			s.Listen = s.Listen.With("QUERY_ADDR", service(t, tc.health, tc.ledger))
			f := finding(t, doctor.Examine(t.Context(), s), tc.check)
			require.Equal(t, tc.status, f.Status, "%+v", f)
			require.Contains(t, f.Detail, tc.detail)
		})
	}
}

func TestRunPrintsWhatToDoAndNoSecret(t *testing.T) {
	t.Parallel()
	s := only(routers.ServiceNames()...)
	s.Timeout = 2 * time.Second
	for _, s.JSON = range []bool{false, true} {
		var out strings.Builder
		err := doctor.Run(context.Background(), s, &out)
		require.ErrorContains(t, err, "checks failed")
		require.Contains(t, out.String(), "start PostgreSQL")
		require.Contains(t, out.String(), "ingestion and relay have the same address")
		require.NotContains(t, out.String(), "s3cret")
	}
}

func TestDoctorTellsOfClocksThatAreNotBelieved(t *testing.T) {
	t.Parallel()
	s := only(routers.Ingestion)
	s.Listen = s.Listen.With("INGESTION_ADDR", service(t, `{"status":"ok","service":"ingestion","checks":{"mqtt":{"clock_ahead":3,"clock_unset":4}}}`, ``))
	f := finding(t, doctor.Examine(t.Context(), s), "device clocks")
	require.Equal(t, doctor.Warn, f.Status)
	require.Contains(t, f.Detail, "3 events were too far ahead and 4 too old")
	s.Listen = s.Listen.With("INGESTION_ADDR", service(t, `{"status":"ok","service":"ingestion","checks":{"mqtt":{"clock_ahead":0}}}`, ``))
	require.Equal(t, doctor.OK, finding(t, doctor.Examine(t.Context(), s), "device clocks").Status)
}
