package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
)

// letter is a row of the dlq table.
type letter struct {
	Consumer     string
	EventPayload []byte
	ErrorMessage string
	RetryCount   int
	Status       string
	SourceTopic  string
}

const lettersOf = `SELECT consumer, event_payload, error_message, retry_count, status, source_topic FROM dlq WHERE source_topic = ANY ($1) AND failed_at > $2`

// badMessage is what a device should not publish.
type badMessage struct {
	name, topic, body string
	props             []string
	letters           string // topic of the dead letter
}

func badMessages() []badMessage {
	var list []badMessage
	on := func(name, id, kind, body string, props ...string) {
		topic := "sensor-events.dlq"
		if !strings.HasPrefix(kind, "sensor.") {
			topic = "system-events.dlq"
		}
		list = append(list, badMessage{name, "devices/" + id + "/events/" + kind, body, props, topic})
	}
	for name, body := range map[string]string{
		"not JSON": "temperature=21", "empty": "", "null": "null", "array": "[1]", "NaN": `{"value":NaN,"unit":"c"}`, "no number": `{"unit":"c"}`,
		"value is text": `{"value":"hot","unit":"c"}`, "NUL": `{"value":1,"unit":"\u0000"}`, "raw NUL": "{\"value\":1,\"unit\":\"\x00\"}",
		"lone surrogate": `{"value":1,"unit":"\ud800"}`, "invalid UTF-8": "{\"value\":1,\"unit\":\"\xff\"}", "binary": "\x00\x01\xfe\xff", "deep": deep,
		"trailing garbage": `{"value":1,"unit":"c"} garbage`, "two objects": `{"value":1,"unit":"c"}{"value":1,"unit":"c"}`,
		"300 KB": `{"value":1,"unit":"` + strings.Repeat("x", 300<<10) + `"}`, "huge number": `{"value":1e200000,"unit":"c"}`,
		"a name twice": `{"value":1,"value":2,"unit":"c"}`,
	} {
		on(name, unique("bad"), "sensor.reading", body)
	}
	good := `{"value":1,"unit":"c"}`
	on("300 characters of ID", unique(longID), "sensor.reading", good)
	on("300 characters of type", unique("bad"), "sensor."+longID, good)
	on("type without a dot", unique("bad"), "reading", good)
	on("type in upper case", unique("bad"), "Sensor.Reading", good)
	on("year 292278994", unique("bad"), "sensor.reading", good, "event_time", "+292278994-08-17T07:12:55.807Z")
	on("not a time", unique("bad"), "sensor.reading", good, "event_time", "yesterday")
	on("not a UUID", unique("bad"), "sensor.reading", good, "event_id", "17")
	on("nil UUID", unique("bad"), "sensor.reading", good, "event_id", "00000000-0000-0000-0000-000000000000")
	on("long correlation ID", unique("bad"), "sensor.reading", good, "correlation_id", longID)
	return list
}

// What a device publishes and nobody can read is acknowledged, or it would come again for ever, and kept as it came.
func TestMQTTMistakesBecomeDeadLetters(t *testing.T) {
	t.Parallel()
	p := shared(t)
	started := time.Now().Add(-time.Minute)
	device := connect(t, p.mqtt)
	bad := badMessages()
	good := unique("between")
	var topics []string
	byTopic := map[string]badMessage{}
	for _, m := range bad {
		device.publish(t, m.topic, m.body, m.props...)
		device.publish(t, "devices/"+good+"/events/sensor.reading", `{"value":1,"unit":"celsius"}`)
		topics = append(topics, m.topic)
		byTopic[m.topic] = m
	}
	newest := p.events(t, good, len(bad))[0]
	p.projected(t, "sensor_state", good, newest.Metadata.Position)

	t.Run("rows", func(t *testing.T) {
		db := pool(t, p.database)
		var found []letter
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			var err error
			found, err = rows[letter](t.Context(), db, lettersOf, topics, started)
			require.NoError(c, err)
			require.Len(c, found, len(bad))
		}, wait, tick)
		for _, l := range found {
			m := byTopic[l.SourceTopic]
			require.Equal(t, "ingestion", l.Consumer, m.name)
			require.True(t, bytes.Equal([]byte(m.body), l.EventPayload), "%s: the bytes as they came", m.name)
			require.NotEmpty(t, l.ErrorMessage, m.name)
			require.Equal(t, "pending", l.Status, m.name)
			require.Zero(t, l.RetryCount, "%s: no retry mends it", m.name)
		}
	})
	t.Run("records", func(t *testing.T) {
		// From the start: kfake does not find records of sarama by their time.
		b := p.listen(t, time.Time{}, "sensor-events.dlq", "system-events.dlq")
		records := b.until(t, func(list []*kgo.Record) bool {
			seen := map[string]bool{}
			for _, r := range list {
				if _, ok := byTopic[header(r, "source_topic")]; ok {
					seen[header(r, "source_topic")] = true
				}
			}
			return len(seen) == len(bad)
		}, "a record for each of %d dead letters", len(bad))
		for _, r := range records {
			if m, ok := byTopic[header(r, "source_topic")]; ok {
				require.Equal(t, m.letters, r.Topic, m.name)
				require.True(t, bytes.Equal([]byte(m.body), r.Value), m.name)
				require.Equal(t, "ingestion", header(r, "consumer"), m.name)
				require.NotEmpty(t, header(r, "error_message"), m.name)
			}
		}
	})
}

// The same mistakes as over HTTP, in envelopes on the topic "events".
func TestMQTTBadEnvelopes(t *testing.T) {
	t.Parallel()
	p := shared(t)
	db := pool(t, p.database)
	started := time.Now().Add(-time.Minute)
	device := connect(t, p.mqtt)
	want := map[string]string{}
	for _, m := range mistakes() {
		if len(m.body) > 1<<20 {
			continue // more than the broker takes: see TestMQTTTooLarge
		}
		if strings.Contains(m.body, `"0000-01-01T00:00:00Z"`) {
			continue // a time, of a clock that is not set: over MQTT the event is kept
		}
		body := strings.Replace(m.body, "bad-"+run, "mqtt-"+run, 1)
		device.publish(t, "events", body)
		want[body] = m.name
	}
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		found, err := rows[letter](t.Context(), db, lettersOf, []string{"events"}, started)
		require.NoError(c, err)
		missing := map[string]bool{}
		for _, name := range want {
			missing[name] = true
		}
		for _, l := range found {
			delete(missing, want[string(l.EventPayload)])
		}
		require.Empty(c, missing, "mistakes without a dead letter")
	}, wait, tick)
	p.arrives(t)
}

// A packet that is larger than the broker takes ends its connection and nothing else; a broker that takes it gets rid
// of it as a dead letter.
func TestMQTTTooLarge(t *testing.T) {
	t.Parallel()
	p := shared(t)
	good := unique("neighbour")
	neighbour := connect(t, p.mqtt)
	neighbour.publish(t, "devices/"+good+"/events/sensor.reading", `{"value":1,"unit":"celsius"}`)
	ctx, cancel := context.WithTimeout(t.Context(), answers)
	defer cancel()
	err := connect(t, p.mqtt).offer(ctx, "devices/"+unique("large")+"/events/sensor.reading", []byte(fmt.Sprintf(`{"value":1,"unit":%q}`, huge)))
	if !live {
		require.ErrorIs(t, err, errCutOff, "it is refused, not left waiting")
	}
	neighbour.publish(t, "devices/"+good+"/events/sensor.reading", `{"value":2,"unit":"celsius"}`)
	p.events(t, good, 2)
	p.arrives(t)
}

// A type that has no schema is no mistake: it is stored and published.
func TestUnknownTypeIsAccepted(t *testing.T) {
	t.Parallel()
	p := shared(t)
	started := time.Now().Add(-time.Minute)
	aggregate := unique("unknown")
	p.send(t, fmt.Sprintf(`{"event_type":"elevator.stuck","aggregate_id":%q,"payload":{"floor":"13½","since":{"minutes":[1,2]}}}`, aggregate))
	connect(t, p.mqtt).publish(t, "devices/"+aggregate+"/events/x.y.z_0-1", `{}`)
	p.send(t, fmt.Sprintf(`{"event_type":"sensor.vibration","aggregate_id":%q,"payload":{"anything":"goes"}}`, aggregate))
	list := p.events(t, aggregate, 3)
	require.JSONEq(t, `{"floor":"13½","since":{"minutes":[1,2]}}`, string(list[2].Payload))
	t.Run("bus", func(t *testing.T) {
		p.listen(t, started, "system-events").until(t, func(r []*kgo.Record) bool { return len(ofKey(r, aggregate)) >= 2 }, "both")
		p.listen(t, started, "sensor-events").until(t, func(r []*kgo.Record) bool { return len(ofKey(r, aggregate)) >= 1 }, "the sensor's")
	})
	status, err := p.get(t.Context(), "/api/v1/projections/user_session/"+aggregate, &projection{})
	require.NoError(t, err)
	require.Equal(t, http.StatusNotFound, status)
}
