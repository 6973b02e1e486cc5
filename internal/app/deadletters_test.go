package app

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/internal/pgtest"
	"github.com/cornjacket/platform-services/routers"
)

// ask sends a request to the dead letters of a service.
func ask(t require.TestingT, method, addr, path, body string) (int, map[string]any) {
	req, err := http.NewRequest(method, "http://"+addr+"/api/v1/dlq"+path, strings.NewReader(body))
	require.NoError(t, err)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := client.Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	var answer map[string]any
	require.NoError(t, json.Unmarshal(data, &answer), "%s", data)
	return resp.StatusCode, answer
}

func migrate(t *testing.T, url string) {
	t.Helper()
	require.NoError(t, Migrate(t.Context(), config.Migrate{
		Action: "up", Services: routers.ServiceNames(), Databases: config.OneDatabase(url), StartupTimeout: soon,
	}, io.Discard))
}

// missed makes dead letters of events that were never applied, as the event handler does, and returns their IDs.
func missed(t *testing.T, pool *pgxpool.Pool, aggregate string, n int) []string {
	t.Helper()
	letters := deadletter.Writer{DB: pool}
	for i := range n {
		e := event.Envelope{
			ID: uuid.New(), Type: "sensor.reading", AggregateID: aggregate, Time: t0(i), IngestedAt: t0(i),
			Payload: fmt.Appendf(nil, `{"value":%d,"unit":"celsius"}`, i), Metadata: event.Metadata{Source: "http", SchemaVersion: 1, Position: int64(i + 1)},
		}
		data, err := e.Marshal()
		require.NoError(t, err)
		partition, offset := int32(0), int64(i)
		require.NoError(t, letters.Add(t.Context(), deadletter.Entry{
			Consumer: "eventhandler", EventID: e.ID, EventType: e.Type, Position: e.Metadata.Position, Payload: data, Error: "refused",
			FailedAt: t0(i), Topic: "sensor-events", Partition: &partition, Offset: &offset, Key: aggregate, BusTopic: "sensor-events.dlq",
		}))
	}
	rows, err := pool.Query(t.Context(), `SELECT dlq_id::text FROM dlq WHERE message_key = $1`, aggregate)
	require.NoError(t, err)
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return ids
}

// Who decided about a letter is kept with it, in a bulk replay too.
func TestWhoDecidedIsKept(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	pool := pgtest.Pool(t, url)
	migrate(t, url)
	cfg := settings(t, url, bus(t).Addr())
	cfg.APIAuth, cfg.APITokens = config.AuthOn, []config.APIToken{apiToken("ann", "operate"), apiToken("bob", "operate")}
	p := start(t, cfg)
	as := func(token, method, path string) map[string]any {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+p.addrs[routers.Eventhandler]+"/api/v1/dlq"+path, nil)
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := client.Do(req)
		require.NoError(t, err)
		defer func() { _ = resp.Body.Close() }()
		require.Less(t, resp.StatusCode, 300)
		var answer map[string]any
		require.NoError(t, json.NewDecoder(resp.Body).Decode(&answer))
		return answer
	}
	ids := missed(t, pool, "d", 4)
	require.NotContains(t, as("ann", "GET", "/"+ids[0]), "decided_by")
	require.Equal(t, "ann", as("ann", "POST", "/"+ids[0]+"/replay")["decided_by"])
	require.Equal(t, "bob", as("bob", "POST", "/"+ids[1]+"/discard")["decided_by"])
	require.Equal(t, "bob", as("bob", "POST", "/replay")["asked_by"])
	require.Eventually(t, func() bool {
		return as("ann", "GET", "/"+ids[2])["decided_by"] == "bob" && as("ann", "GET", "/"+ids[3])["status"] == "replayed"
	}, soon, every)
	require.Equal(t, "ann", as("bob", "GET", "/"+ids[0])["decided_by"])
}

// A refused message that the quota has no room for is acknowledged, counted, and seen in health and metrics.
func TestRefusedMessagesBeyondTheQuotaAreSeen(t *testing.T) {
	t.Parallel()
	cfg := settings(t, pgtest.URL(t), bus(t).Addr())
	mqttAddr := unused(t)
	cfg.MQTTURL, cfg.DLQMaxBytes = "mqtt://"+mqttAddr, 1
	p := start(t, cfg)
	conn, err := net.Dial("tcp", mqttAddr)
	require.NoError(t, err)
	device := paho.NewClient(paho.ClientConfig{Conn: conn})
	_, err = device.Connect(t.Context(), &paho.Connect{ClientID: "d", CleanStart: true, KeepAlive: 30})
	require.NoError(t, err)
	quota := func(c require.TestingT) map[string]any {
		status, body := get(t, "http://"+p.addrs[routers.Ingestion]+"/health")
		require.Equal(c, 200, status)
		check, _ := body["checks"].(map[string]any)["dead_letters_quota"].(map[string]any)
		return check
	}
	require.EventuallyWithT(t, func(c *assert.CollectT) { require.Contains(c, quota(c), "max_bytes") }, soon, every)
	_, err = device.Publish(t.Context(), &paho.Publish{Topic: "devices/d/events/sensor.reading", QoS: 1, Payload: []byte("nonsense")})
	require.NoError(t, err, "it is acknowledged")
	require.EventuallyWithT(t, func(c *assert.CollectT) { require.EqualValues(c, 1, quota(c)["not_kept"]) }, soon, every)
	require.NoError(t, device.Disconnect(&paho.Disconnect{}))
	resp, err := client.Get("http://" + p.addrs[routers.Ingestion] + "/metrics")
	require.NoError(t, err)
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Contains(t, string(text), "cornjacket_dead_letters_not_kept_total 1\n")
}

// Two instances on one database are clicked at the same time, each letter several times, while events of the same
// aggregate flow.
func TestReplaysOfTwoInstancesHaveOneEffect(t *testing.T) {
	t.Parallel()
	const letters, clicks, readings = 20, 6, 50
	url := pgtest.URL(t)
	pool := pgtest.Pool(t, url)
	migrate(t, url)
	ids := missed(t, pool, "device-1", letters)
	_, err := pool.Exec(t.Context(), `UPDATE relay_cursor SET position = $1`, letters) // the log goes on after them
	require.NoError(t, err)
	cfg := settings(t, url, bus(t).Addr())
	a := start(t, cfg)
	b := start(t, cfg)
	var mu sync.Mutex
	var clicking sync.WaitGroup
	statuses := map[int]int{}
	for i, id := range ids {
		for c := range clicks {
			addr := []*running{a, b}[(i+c)%2].addrs["eventhandler"]
			clicking.Go(func() {
				status, _ := ask(t, http.MethodPost, addr, "/"+id+"/replay", "")
				mu.Lock()
				defer mu.Unlock()
				statuses[status]++
			})
		}
	}
	for i := range readings {
		require.Equal(t, http.StatusAccepted, post(t, a.addrs["ingestion"], "device-1", 1000+i))
	}
	clicking.Wait()
	require.Equal(t, map[int]int{http.StatusOK: letters, http.StatusConflict: letters * (clicks - 1)}, statuses)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		_, body := get(t, "http://"+a.addrs["query"]+"/api/v1/projections/sensor_state/device-1")
		require.InDelta(c, letters+readings, body["event_count"], 0, "%v", body)
	}, soon, every)
	_, body := get(t, "http://"+a.addrs["query"]+"/api/v1/projections/sensor_state/device-1")
	require.InDelta(t, 1000+readings-1, body["state"].(map[string]any)["value"], 0, "the newest wins")
}

// What is pending is told by /health and /metrics, per consumer, and a bulk replay brings it to nothing.
func TestPendingDeadLettersAreTold(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("counts are read every five seconds")
	}
	url := pgtest.URL(t)
	pool := pgtest.Pool(t, url)
	r := start(t, settings(t, url, bus(t).Addr()))
	missed(t, pool, "device-2", 3)
	told := func(want int) {
		t.Helper()
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			status, health := get(t, "http://"+r.addrs["eventhandler"]+"/health")
			require.Equal(c, http.StatusOK, status, "dead letters do not make a service unready")
			check := health["checks"].(map[string]any)["dead_letters"].(map[string]any)
			require.Equal(c, map[string]any{"eventhandler": float64(want)}, check["dead_letters_pending"])
			resp, err := client.Get("http://" + r.addrs["eventhandler"] + "/metrics")
			require.NoError(c, err)
			defer func() { _ = resp.Body.Close() }()
			metrics, err := io.ReadAll(resp.Body)
			require.NoError(c, err)
			require.Contains(c, string(metrics), fmt.Sprintf("cornjacket_dead_letters_pending{consumer=\"eventhandler\"} %d\n", want))
			require.Contains(c, string(metrics), "cornjacket_dead_letters_pending{consumer=\"relay\"} 0\n")
		}, soon, every)
	}
	told(3)
	status, job := ask(t, http.MethodPost, r.addrs["eventhandler"], "/replay", "")
	require.Equal(t, http.StatusAccepted, status, "%v", job)
	require.InDelta(t, 3, job["total"], 0)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		_, now := ask(c, http.MethodGet, r.addrs["eventhandler"], "/replays/"+job["replay_id"].(string), "")
		require.Equal(c, "done", now["status"])
		require.InDelta(c, 3, now["replayed"], 0)
	}, soon, every)
	told(0)
	status, body := get(t, "http://"+r.addrs["eventhandler"]+"/openapi.json")
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body["paths"], "/api/v1/dlq/{id}/replay")
	status, _ = ask(t, http.MethodGet, r.addrs["ingestion"], "?consumer=relay", "")
	require.Equal(t, http.StatusOK, status)
}

// An event that is in the log and that the bus would not take is published, and applied although newer ones have been.
func TestALetterOfTheRelayIsPublishedAndApplied(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	pool := pgtest.Pool(t, url)
	migrate(t, url)
	e := event.Envelope{
		ID: uuid.New(), Type: "sensor.reading", AggregateID: "device-5", Time: t0(1), IngestedAt: t0(1), Payload: []byte(`{"value":1,"unit":"celsius"}`),
		Metadata: event.Metadata{Source: "http", CorrelationID: "c", SchemaVersion: 1, Position: 1},
	}
	data, err := e.Marshal()
	require.NoError(t, err)
	_, err = pool.Exec(t.Context(), `INSERT INTO event_store (event_id, event_type, aggregate_id, event_time, ingested_at, payload, metadata, position)
		VALUES ($1, $2, $3, $4, $4, $5, '{"source":"http","schema_version":1}', 1)`, e.ID, e.Type, e.AggregateID, e.Time, string(e.Payload))
	require.NoError(t, err)
	_, err = pool.Exec(t.Context(), `UPDATE relay_cursor SET position = 1`)
	require.NoError(t, err)
	position := int64(1)
	require.NoError(t, deadletter.Writer{DB: pool}.Add(t.Context(), deadletter.Entry{
		Consumer: "relay", EventID: e.ID, EventType: e.Type, Position: 1, Payload: data, Error: "message too large", FailedAt: t0(2), Topic: "outbox",
		Offset: &position, BusTopic: "sensor-events.dlq",
	}))
	r := start(t, settings(t, url, bus(t).Addr()))
	require.Equal(t, http.StatusAccepted, post(t, r.addrs["ingestion"], "device-5", 7))
	arrives(t, r.addrs["query"], "device-5", 7)
	_, list := ask(t, http.MethodGet, r.addrs["ingestion"], "?consumer=relay", "")
	id := list["items"].([]any)[0].(map[string]any)["dlq_id"].(string)
	status, answer := ask(t, http.MethodPost, r.addrs["ingestion"], "/"+id+"/replay", "")
	require.Equal(t, http.StatusOK, status, "%v", answer)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		_, body := get(t, "http://"+r.addrs["query"]+"/api/v1/projections/sensor_state/device-5")
		require.InDelta(c, 2, body["event_count"], 0, "%v", body)
		require.InDelta(c, 7, body["state"].(map[string]any)["value"], 0, "the newest event_time")
	}, soon, every)
	_, stored := get(t, "http://"+r.addrs["query"]+"/api/v1/events/"+e.ID.String())
	require.InDelta(t, 3, stored["metadata"].(map[string]any)["position"], 0)
}

func t0(seconds int) time.Time {
	return time.Date(2026, 2, 7, 10, 0, seconds, 0, time.UTC)
}
