package e2e

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Records on the bus that nobody can read, in every partition, at a time when not even a dead letter can be stored: no
// other aggregate waits for them, health says what is wrong, and in the end each is one dead letter.
func TestFaultsOfPoison(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	i := r.instance(t)
	l := startTraffic(t, r)
	r.moves(t, time.Now())
	const aggregates = 20 + 15 + 3*5
	require.Eventually(t, func() bool { return len(r.positions(t)) == aggregates }, wait, tick, "every aggregate has a state")

	// A dead letter that can't be stored holds up what is behind it, since both are one transaction: it is neither lost nor
	// passed over.
	r.execute(t, raising("dlq", "WHEN (NEW.consumer = 'eventhandler')")...)
	poison := r.poison(t, 8)
	put := time.Now()
	var slowest time.Duration
	red := r.reddens(t, i, "poison", put, map[string]string{"eventhandler": "dlq"}, &slowest)["eventhandler"]
	var letters int
	require.NoError(t, r.db.QueryRow(t.Context(), `SELECT count(*) FROM dlq WHERE consumer = 'eventhandler'`).Scan(&letters))
	require.Zero(t, letters, "the poison is still being tried")

	r.execute(t, mended("dlq"))
	healed := time.Now()
	i.ready(t)
	r.note(t, "poison: red in %s, green %s after the database took dead letters again; slowest /health %s",
		short(red), short(time.Since(healed)), slowest.Round(time.Millisecond))
	require.Less(t, red, redIn)
	l.finish(t)
	r.proven(t, l, poison...)
	i.p.stop(t)
	r.report(t)
}

// positions reads how far each aggregate's readings have been applied.
func (r *rig) positions(t *testing.T) map[string]int64 {
	t.Helper()
	type row struct {
		AggregateID string
		Position    int64
	}
	list, err := rows[row](t.Context(), r.db, `SELECT aggregate_id, position FROM projections WHERE projection_type = 'sensor_state'`)
	require.NoError(t, err)
	found := map[string]int64{}
	for _, p := range list {
		found[p.AggregateID] = p.Position
	}
	return found
}

// poison puts records that can't be read on each partition of sensor-events, and returns their event IDs.
func (r *rig) poison(t *testing.T, partitions int32) (ids []string) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(r.busNet.addr), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	require.NoError(t, err)
	t.Cleanup(client.Close)
	for partition := range partitions {
		for _, value := range []func(id string) string{
			func(string) string { return "\x00\xff{not an event" },
			func(id string) string {
				return `{"event_id":"` + id + `","event_type":"sensor.reading","aggregate_id":"poison","pay`
			},
			func(id string) string { return reading(id, "poison", "2026-02-07T10:00:00Z", 1) }, // has no position
		} {
			id := newID()
			record := &kgo.Record{
				Topic: "sensor-events", Partition: partition, Key: []byte("poison"), Value: []byte(value(id)),
				Headers: []kgo.RecordHeader{{Key: "event_id", Value: []byte(id)}},
			}
			require.NoError(t, client.ProduceSync(t.Context(), record).FirstErr())
			ids = append(ids, id)
		}
	}
	return ids
}

// A database that others have locked, or that has no space left, is the platform's trouble and not the client's: the
// APIs answer 503 and say when to come again, never 500.
func TestFaultsAreNoBugsToClients(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	i := r.instance(t)
	aggregate := unique("locked")
	i.p.send(t, reading(newID(), aggregate, "2026-02-07T10:00:00Z", 1))
	i.p.projected(t, "sensor_state", aggregate, 1)
	r.execute(t, `ALTER ROLE cornjacket SET lock_timeout = '200ms'`)
	r.postgresNet.cut()
	i.ready(t)
	holder, err := r.db.Begin(t.Context())
	require.NoError(t, err)
	_, err = holder.Exec(t.Context(), `LOCK TABLE projections, event_store, outbox IN ACCESS EXCLUSIVE MODE`)
	require.NoError(t, err)
	for _, path := range []string{"/api/v1/projections/sensor_state/" + aggregate, "/api/v1/projections/sensor_state", "/api/v1/events", "/api/v1/events/" + newID()} {
		a, err := request(t.Context(), http.MethodGet, i.p.query+path, nil)
		require.NoError(t, err)
		require.Equal(t, http.StatusServiceUnavailable, a.status, "%s: %s", path, a.body)
		require.NotEmpty(t, a.header.Get("Retry-After"), path)
		require.NotContains(t, string(a.body), "SELECT")
	}
	a := i.p.post(t, eventsPath, typeJSON, reading(newID(), aggregate, "2026-02-07T10:00:00Z", 2))
	require.Equal(t, http.StatusServiceUnavailable, a.status, "%s", a.body)
	require.NotEmpty(t, a.header.Get("Retry-After"))
	require.NoError(t, holder.Rollback(t.Context()))
	i.ready(t)
	i.p.arrives(t)
	i.p.stop(t)
}
