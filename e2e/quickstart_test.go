package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The first steps of a new user, with the clients that the documentation names.

func TestQuickStartMosquitto(t *testing.T) {
	t.Parallel()
	p := shared(t)
	host, port, err := net.SplitHostPort(p.mqtt)
	require.NoError(t, err)
	for version, args := range map[string][]string{"5": {"-V", "5"}, "3.1.1": {"-V", "311"}, "default": nil} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			id := unique("device")
			args := append([]string{"-h", host, "-p", port, "-q", "1"}, args...)
			tool(t, "mosquitto_pub", append(args, "-t", "devices/"+id+"/events/sensor.reading", "-m", `{"value":72.5,"unit":"fahrenheit"}`)...)
			e := p.events(t, id, 1)[0]
			require.Equal(t, "sensor.reading", e.EventType)
			require.Equal(t, "mqtt", e.Metadata.Source)
			require.Equal(t, 1, e.Metadata.SchemaVersion)
			require.JSONEq(t, `{"value":72.5,"unit":"fahrenheit"}`, string(e.Payload))
			require.WithinDuration(t, time.Now(), e.EventTime, wait)
			s := p.projected(t, "sensor_state", id, e.Metadata.Position)
			require.JSONEq(t, `{"value":72.5,"unit":"fahrenheit"}`, string(s.State))
			require.Equal(t, e.EventID, s.LastEventID)
		})
	}
}

func TestQuickStartCurl(t *testing.T) {
	t.Parallel()
	p := shared(t)
	id := unique("device")
	out := tool(t, "curl", "-sS", "-w", "\n%{http_code}", "-H", "Content-Type: application/json", p.ingestionAPI()+eventsPath,
		"-d", fmt.Sprintf(`{"event_type":"sensor.reading","aggregate_id":%q,"payload":{"value":21.5,"unit":"celsius"}}`, id))
	body, status, _ := strings.Cut(out, "\n")
	require.Equal(t, "202", status, out)
	var accepted struct {
		EventID string `json:"event_id"`
	}
	require.NoError(t, json.Unmarshal([]byte(body), &accepted))
	p.projected(t, "sensor_state", id, 1)
	out = tool(t, "curl", "-sS", "--fail", p.queryAPI()+"/api/v1/projections/sensor_state/"+id)
	var s projection
	require.NoError(t, json.Unmarshal([]byte(out), &s))
	require.Equal(t, accepted.EventID, s.LastEventID)
	require.JSONEq(t, `{"value":21.5,"unit":"celsius"}`, string(s.State))
}

// What is printed at the start can be pasted: addresses with the ports that were taken.
func TestBannerIsTrue(t *testing.T) {
	t.Parallel()
	own(t)
	p := shared(t)
	said := p.process.stdout.String()
	host, port, err := net.SplitHostPort(p.mqtt)
	require.NoError(t, err)
	for _, part := range []string{
		"mqtt://" + p.mqtt, "mosquitto_pub -h " + host + " -p " + port + " ", p.ingestion + eventsPath, p.query + "/api/v1/projections/sensor_state",
		p.relay + "/health", p.eventhandler + "/health", p.kafka, p.database, p.dir,
	} {
		require.Contains(t, said, part)
	}
}

// The broker of the platform is a broker: what is published to a device reaches it.
func TestCommandsReachADevice(t *testing.T) {
	t.Parallel()
	p := shared(t)
	host, port, err := net.SplitHostPort(p.mqtt)
	require.NoError(t, err)
	topic := "devices/" + unique("device") + "/commands/reboot"
	sub, err := launch(nil, needTool(t, "mosquitto_sub"), "-h", host, "-p", port, "-V", "5", "-v", "-C", "1", "-t", topic)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, sub.kill()) })
	sender := connect(t, p.mqtt)
	require.Eventually(t, func() bool { // once it has subscribed, which it does not say
		if err := sender.offer(t.Context(), topic, []byte("now")); err != nil && !errors.Is(err, errNobody) {
			return false
		}
		select {
		case <-sub.done:
			return true
		default:
			return false
		}
	}, wait, tick, "the command arrives")
	require.Zero(t, sub.code)
	require.Equal(t, topic+" now\n", sub.stdout.String())
}

func TestHTTPForms(t *testing.T) {
	t.Parallel()
	p := shared(t)
	reading := func(id string, value int) string {
		return fmt.Sprintf(`{"event_type":"sensor.reading","aggregate_id":%q,"payload":{"value":%d,"unit":"celsius"}}`, id, value)
	}
	for name, c := range map[string]struct{ contentType, open, between, end string }{
		"array":  {typeJSON, "[", ",", "]"},
		"NDJSON": {typeLines, "", "\n", "\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			id := unique("batch")
			var list []string
			for i := range 25 {
				list = append(list, reading(id, i))
			}
			a := p.post(t, batchPath, c.contentType, c.open+strings.Join(list, c.between)+c.end)
			require.Equal(t, 202, a.status, "%s", a.body)
			require.JSONEq(t, `{"accepted":25,"rejected":[]}`, string(a.body))
			events := p.events(t, id, 25)
			for i, e := range events { // newest first, in the order of the batch
				require.JSONEq(t, fmt.Sprintf(`{"value":%d,"unit":"celsius"}`, 24-i), string(e.Payload))
			}
			p.projected(t, "sensor_state", id, events[0].Metadata.Position)
		})
	}
	t.Run("no body is the same as the next", func(t *testing.T) {
		t.Parallel()
		id := unique("single")
		first, second := p.send(t, reading(id, 1)), p.send(t, reading(id, 2))
		require.NotEqual(t, first, second)
		events := p.events(t, id, 2)
		require.Equal(t, []string{second, first}, []string{events[0].EventID, events[1].EventID})
		require.Less(t, events[1].Metadata.Position, events[0].Metadata.Position)
		require.Equal(t, "http", events[0].Metadata.Source)
	})
}

// An envelope on the MQTT topic "events" is what POST takes.
func TestEnvelopeOverMQTT(t *testing.T) {
	t.Parallel()
	p := shared(t)
	id, user := newID(), unique("user")
	connect(t, p.mqtt).publish(t, "events", fmt.Sprintf(`{"event_id":%q,"event_type":"user.login","aggregate_id":%q,
		"event_time":"2026-02-07T10:00:00.123456Z","ingested_at":"2020-01-01T00:00:00Z",
		"payload":{"user_id":"u-1","ip":"192.0.2.1"},"metadata":{"source":"x","correlation_id":"from-envelope","schema_version":1}}`, id, user))
	e := p.event(t, id)
	require.Equal(t, "user.login", e.EventType)
	require.Equal(t, "2026-02-07T10:00:00.123456Z", e.EventTime.Format(time.RFC3339Nano))
	require.WithinDuration(t, time.Now(), e.IngestedAt, wait, "ingested_at is the platform's to say")
	require.Equal(t, "mqtt", e.Metadata.Source)
	require.Equal(t, "from-envelope", e.Metadata.CorrelationID)
	s := p.projected(t, "user_session", user, e.Metadata.Position)
	require.Equal(t, id, s.LastEventID)
	require.JSONEq(t, `{"user_id":"u-1","ip":"192.0.2.1"}`, string(s.State))
}

// A list of projections is complete whatever the size of its pages.
func TestPages(t *testing.T) {
	t.Parallel()
	p := shared(t)
	id := unique("pages")
	for range 7 {
		p.send(t, fmt.Sprintf(`{"event_type":"sensor.reading","aggregate_id":%q,"payload":{"value":1,"unit":"celsius"}}`, id))
	}
	p.events(t, id, 7)
	seen := map[string]bool{}
	cursor := ""
	for pages := 1; ; pages++ {
		var page struct {
			Items      []storedEvent `json:"items"`
			NextCursor string        `json:"next_cursor"`
		}
		status, err := p.get(t.Context(), eventsPath+"?limit=3&aggregate_id="+id+cursor, &page)
		require.NoError(t, err)
		require.Equal(t, 200, status)
		for _, e := range page.Items {
			assert.False(t, seen[e.EventID], "an event on two pages")
			seen[e.EventID] = true
		}
		if page.NextCursor == "" {
			require.Equal(t, 3, pages)
			break
		}
		cursor = "&cursor=" + page.NextCursor
	}
	require.Len(t, seen, 7)
}
