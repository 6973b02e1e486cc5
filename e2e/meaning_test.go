package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
)

func newID() string { return uuid.Must(uuid.NewV7()).String() }

// reading is the body of POST /api/v1/events for a reading with an ID and a time.
func reading(id, aggregate, eventTime string, value int) string {
	return fmt.Sprintf(`{"event_id":%q,"event_type":"sensor.reading","aggregate_id":%q,"event_time":%q,"payload":{"value":%d,"unit":"celsius"}}`,
		id, aggregate, eventTime, value)
}

// The state is that of the newest event_time, of two with the same time that of the larger ID, in whatever order they
// come, over whichever door.
func TestNewestWins(t *testing.T) {
	t.Parallel()
	p := shared(t)
	const old, now = "2026-02-07T10:00:00Z", "2026-02-07T10:00:01Z"
	small, large := "00000000-0000-7000-8000-", "ffffffff-0000-7000-8000-"
	for _, c := range []struct {
		name  string
		order [3]struct{ prefix, time string }
		wins  int
	}{
		{"older comes later", [3]struct{ prefix, time string }{{small, now}, {large, old}, {large, old}}, 0},
		{"newer comes later", [3]struct{ prefix, time string }{{large, old}, {small, old}, {small, now}}, 2},
		{"tie, larger ID comes first", [3]struct{ prefix, time string }{{small, old}, {large, now}, {small, now}}, 1},
		{"tie, larger ID comes last", [3]struct{ prefix, time string }{{small, old}, {small, now}, {large, now}}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			aggregate := unique("newest")
			device := connect(t, p.mqtt)
			var ids []string
			for i, e := range c.order {
				id := e.prefix + newID()[24:]
				ids = append(ids, id)
				if i%2 == 0 {
					p.send(t, reading(id, aggregate, e.time, i))
				} else {
					device.publish(t, "devices/"+aggregate+"/events/sensor.reading", fmt.Sprintf(`{"value":%d,"unit":"celsius"}`, i),
						"event_id", id, "event_time", e.time)
				}
			}
			newest := p.events(t, aggregate, 3)[0]
			s := p.projected(t, "sensor_state", aggregate, newest.Metadata.Position)
			require.Equal(t, ids[c.wins], s.LastEventID)
			require.JSONEq(t, fmt.Sprintf(`{"value":%d,"unit":"celsius"}`, c.wins), string(s.State))
		})
	}
}

// An event that comes again under its ID, over whichever door and with whatever in it, has no second effect.
func TestRepeatedIDHasNoSecondEffect(t *testing.T) {
	t.Parallel()
	p := shared(t)
	started := time.Now().Add(-time.Minute)
	id, aggregate := newID(), unique("repeat")
	topic := "devices/" + aggregate + "/events/sensor.reading"
	require.Equal(t, id, p.send(t, reading(id, aggregate, "2026-02-07T10:00:00Z", 1)))
	device := connect(t, p.mqtt)
	for i := range 5 {
		p.send(t, reading(id, aggregate, "2026-02-07T11:00:00Z", 100+i))
		device.publish(t, topic, `{"value":200,"unit":"celsius"}`, "event_id", id, "event_time", "2026-02-07T12:00:00Z")
	}
	a := p.post(t, batchPath, typeJSON, "["+strings.Repeat(reading(id, aggregate, "2026-02-07T13:00:00Z", 300)+",", 3)+
		reading(newID(), aggregate, "2026-02-07T09:00:00Z", 2)+"]")
	require.JSONEq(t, `{"accepted":4,"rejected":[]}`, string(a.body))

	list := p.events(t, aggregate, 2) // the first, and the last of the batch
	s := p.projected(t, "sensor_state", aggregate, list[0].Metadata.Position)
	require.Equal(t, id, s.LastEventID)
	require.JSONEq(t, `{"value":1,"unit":"celsius"}`, string(s.State))
	p.events(t, aggregate, 2)
	t.Run("bus", func(t *testing.T) {
		records := ofKey(p.listen(t, started, "sensor-events").until(t, func(r []*kgo.Record) bool { return len(ofKey(r, aggregate)) >= 2 }, "both"), aggregate)
		require.Equal(t, id, header(records[0], "event_id"))
		require.NotEqual(t, id, header(records[1], "event_id"))
	})
}

func TestCorrelation(t *testing.T) {
	t.Parallel()
	p := shared(t)
	const trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	aggregate := unique("correlated")
	body := reading(newID(), aggregate, "2026-02-07T10:00:00Z", 1)
	a := p.post(t, eventsPath, typeJSON, body, "X-Correlation-ID", "corr-"+aggregate, "traceparent", trace)
	require.Equal(t, http.StatusAccepted, a.status)
	require.Equal(t, "corr-"+aggregate, a.header.Get("X-Correlation-ID"))
	e := p.events(t, aggregate, 1)[0]
	require.Equal(t, "corr-"+aggregate, e.Metadata.CorrelationID)
	require.Equal(t, trace, e.Metadata.Traceparent)

	viaMQTT := unique("correlated")
	connect(t, p.mqtt).publish(t, "devices/"+viaMQTT+"/events/sensor.reading", `{"value":1,"unit":"celsius"}`,
		"correlation_id", "corr-"+viaMQTT, "traceparent", trace, "unknown_property", "ignored")
	e = p.events(t, viaMQTT, 1)[0]
	require.Equal(t, "corr-"+viaMQTT, e.Metadata.CorrelationID)
	require.Equal(t, trace, e.Metadata.Traceparent)

	a = p.post(t, eventsPath, typeJSON, `{`)
	require.Equal(t, http.StatusBadRequest, a.status)
	require.NotEmpty(t, a.header.Get("X-Correlation-ID"), "each answer has one, a refusal too")
	a, err := request(t.Context(), http.MethodGet, p.queryAPI()+"/api/v1/projections/sensor_state/"+unique("nobody"), nil, "X-Correlation-ID", "asked")
	require.NoError(t, err)
	require.Equal(t, http.StatusNotFound, a.status)
	require.Equal(t, "asked", a.header.Get("X-Correlation-ID"))
}

// What consumers of the bus rely on: key, headers, value, and that positions grow within a key.
func TestRecordsOnTheBus(t *testing.T) {
	t.Parallel()
	p := shared(t)
	started := time.Now().Add(-time.Minute)
	const trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	const n = 60
	for _, c := range []struct{ topic, eventType, payload string }{
		{"sensor-events", "sensor.reading", `{"value":1.50,"unit":"celsius","b":2,"a":1}`},
		{"user-actions", "user.login", `{"user_id":"u","ip":"192.0.2.1"}`},
		{"system-events", "system.alert", `{"level":"warn","message":"größer \u20ac"}`},
		{"system-events", "factory.door-opened", `{"x":[1,{"y":null}]}`},
	} {
		t.Run(c.eventType, func(t *testing.T) {
			t.Parallel()
			aggregate := unique("größe 温度")
			body := fmt.Sprintf(`{"event_type":%q,"aggregate_id":%q,"payload":%s}`, c.eventType, aggregate, c.payload)
			for range n / 2 {
				p.send(t, body, "X-Correlation-ID", "bus-"+run, "traceparent", trace)
			}
			a := p.post(t, batchPath, typeJSON, "["+strings.Repeat(body+",", n/2-1)+body+"]", "X-Correlation-ID", "bus-"+run, "traceparent", trace)
			require.Equal(t, http.StatusAccepted, a.status, "%s", a.body)

			records := ofKey(p.listen(t, started, c.topic).until(t, func(r []*kgo.Record) bool { return len(ofKey(r, aggregate)) >= n }, "all of "+aggregate), aggregate)
			ids := map[string]bool{}
			var last int64
			for _, r := range records {
				require.Equal(t, records[0].Partition, r.Partition)
				var e storedEvent
				require.NoError(t, json.Unmarshal(r.Value, &e))
				require.Equal(t, aggregate, e.AggregateID)
				require.Equal(t, c.eventType, e.EventType)
				require.Equal(t, e.EventID, header(r, "event_id"))
				require.Equal(t, e.EventType, header(r, "event_type"))
				require.Equal(t, "bus-"+run, header(r, "correlation_id"))
				require.Equal(t, "bus-"+run, e.Metadata.CorrelationID)
				require.Equal(t, trace, header(r, "traceparent"))
				require.Contains(t, string(r.Value), c.payload, "the payload as it was sent, byte for byte")
				require.Greater(t, e.Metadata.Position, last, "positions grow")
				last = e.Metadata.Position
				ids[e.EventID] = true
			}
			require.Len(t, ids, n, "each once")
			require.Equal(t, last, p.events(t, aggregate, n)[0].Metadata.Position)
		})
	}
}
