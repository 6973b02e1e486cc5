package event_test

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
)

var (
	receivedAt  = time.Date(2026, 2, 7, 10, 0, 5, 987654321, time.FixedZone("", 3600))
	generatedID = uuid.MustParse("0190a5c0-7b1e-7c3a-9d3e-5f6a7b8c9d0e")
)

const (
	givenID     = "0190a5c0-7b1e-7c3a-9d3e-000000000001"
	traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
)

func origin() event.Origin {
	return event.Origin{
		Source: "http", Now: receivedAt, NewID: func() uuid.UUID { return generatedID },
		CorrelationID: "request-1", Traceparent: traceparent,
	}
}

// refused asserts that err is one clean line about a field. Words are what the rule must say.
func refused(t *testing.T, err error, kind event.Kind, field string, words ...string) {
	t.Helper()
	var broken *event.Error
	require.ErrorAs(t, err, &broken)
	require.Equal(t, kind, broken.Kind, "%v", err)
	require.Equal(t, field, broken.Field, "%v", err)
	for _, w := range words {
		require.Contains(t, broken.Rule, w)
	}
	require.NoError(t, cleanError(err))
}

func body(eventType, aggregateID, payload string) []byte {
	return fmt.Appendf(nil, `{"event_type":%q,"aggregate_id":%q,"payload":%s}`, eventType, aggregateID, payload)
}

func TestParseTakesWhatItIsGiven(t *testing.T) {
	t.Parallel()
	e, err := event.Parse([]byte(` {"event_id":"`+strings.ToUpper(givenID)+`","event_type":"sensor.reading","aggregate_id":"device-001",
		"event_time":"2026-02-07T12:00:00.123456999+02:00","ingested_at":"1970-01-01T00:00:00Z","payload":{"value": 72.5, "unit": "°F"},
		"metadata":{"source":"forged","correlation_id":"mine","schema_version":99,"position":7,"more":null}} `), origin())
	require.NoError(t, err)
	require.Equal(t, event.Envelope{
		ID: uuid.MustParse(givenID), Type: "sensor.reading", AggregateID: "device-001",
		Time:       time.Date(2026, 2, 7, 10, 0, 0, 123456000, time.UTC),
		IngestedAt: time.Date(2026, 2, 7, 9, 0, 5, 987654000, time.UTC),
		Payload:    []byte(`{"value":72.5,"unit":"°F"}`),
		Metadata:   event.Metadata{Source: "http", CorrelationID: "mine", Traceparent: traceparent, SchemaVersion: 1},
	}, e)
}

func TestParseSetsWhatIsMissing(t *testing.T) {
	t.Parallel()
	for _, in := range []string{
		`{"event_type":"a.b","aggregate_id":"x","payload":{}}`,
		`{"event_id":null,"event_type":"a.b","aggregate_id":"x","event_time":null,"payload":{},"metadata":null,"ingested_at":null}`,
		`{"event_type":"a.b","aggregate_id":"x","payload":{},"metadata":{"correlation_id":null,"traceparent":""}}`,
	} {
		o := origin()
		o.CorrelationID, o.Traceparent = "", ""
		e, err := event.Parse([]byte(in), o)
		require.NoError(t, err, in)
		require.Equal(t, generatedID, e.ID)
		require.Equal(t, e.IngestedAt, e.Time)
		require.Equal(t, generatedID.String(), e.Metadata.CorrelationID)
		require.Empty(t, e.Metadata.Traceparent)
		require.Zero(t, e.Metadata.Position)
	}
}

func TestEnvelopeFields(t *testing.T) {
	t.Parallel()
	const rest = `,"event_type":"a.b","aggregate_id":"x","payload":{}}`
	accepted := []string{
		`{"event_id":"` + givenID + `"` + rest,
		`{"event_id":"6ba7b810-9dad-11d1-80b4-00c04fd430c8"` + rest, // not version 7
		`{"event_time":"0001-01-01T00:00:00Z"` + rest,
		`{"event_time":"9999-12-31T23:59:59.999999999Z"` + rest,
		`{"event_time":"2026-02-07T10:00:00-14:00"` + rest,
		`{"metadata":{"correlation_id":"` + strings.Repeat("c", 256) + `"}` + rest,
	}
	for _, in := range accepted {
		_, err := event.Parse([]byte(in), origin())
		require.NoError(t, err, in)
	}

	tests := []struct {
		in    string
		kind  event.Kind
		field string
		word  string
	}{
		{``, event.Malformed, "", "is empty"},
		{" \n\t", event.Malformed, "", "is empty"},
		{`null`, event.Malformed, "", "not null"},
		{`[]`, event.Malformed, "", "not an array"},
		{`"x"`, event.Malformed, "", "not a string"},
		{`12`, event.Malformed, "", "not a number"},
		{`true`, event.Malformed, "", "not a boolean"},
		{`hello`, event.Malformed, "", "not valid JSON"},
		{`{"event_type":"a.b"`, event.Malformed, "", "not valid JSON"},
		{`{'event_type':1}`, event.Malformed, "", "not valid JSON"},
		{`{"event_type":"a.b",}`, event.Malformed, "", "not valid JSON"},
		{"\ufeff" + string(body("a.b", "x", "{}")), event.Malformed, "", "not valid JSON"},
		{string(body("a.b", "x", "{}")) + "x", event.Malformed, "", "not valid JSON"},
		{string(body("a.b", "x", "{}")) + "{}", event.Malformed, "", "not valid JSON"},
		{"{\"event_type\":\"a.b\xff\"" + rest, event.Malformed, "event_type", "not valid JSON"},
		{`{"event_type":"\ud800"}`, event.Malformed, "event_type", "not valid JSON"},
		{`{}`, event.Invalid, "event_type", "is required"},
		{`{"event_type":"a.b"}`, event.Invalid, "aggregate_id", "is required"},
		{`{"event_type":"a.b","aggregate_id":"x"}`, event.Invalid, "payload", "is required"},
		{`{"event_type":null,"aggregate_id":"x","payload":{}}`, event.Invalid, "event_type", "is required"},
		{`{"event_type":"a.b","event_type":"a.b"}`, event.Malformed, "event_type", "duplicate"},
		{`{"event_type":"a.b","event\u005ftype":"a.b"}`, event.Malformed, "event_type", "duplicate"},
		{`{"event_type":7` + rest[:1] + `"aggregate_id":"x","payload":{}}`, event.Malformed, "event_type", "must not be a number"},
		{`{"event_type":"a.b","aggregate_id":["x"],"payload":{}}`, event.Malformed, "aggregate_id", "must not be an array"},
		{`{"event_id":{}` + rest, event.Malformed, "event_id", "must not be an object"},
		{`{"event_time":1770000000` + rest, event.Malformed, "event_time", "must not be a number"},
		{`{"colour":"red"` + rest, event.Invalid, "colour", "not a field"},
		{`{"Event_Id":"` + givenID + `"` + rest, event.Invalid, "Event_Id", "not a field"},
		{`{"a\nb\u0000":1` + rest, event.Invalid, `a\nb\x00`, "not a field"},
		{`{"` + strings.Repeat("long", 200) + `":1` + rest, event.Invalid, strings.Repeat("long", 16) + "…", "not a field"},
		{`{"event_id":""` + rest, event.Invalid, "event_id", "empty"},
		{`{"event_id":"x"` + rest, event.Invalid, "event_id", "UUID"},
		{`{"event_id":"` + strings.Repeat("1", 300) + `"` + rest, event.Invalid, "event_id", "UUID"},
		{`{"event_id":"` + strings.ReplaceAll(givenID, "-", "") + `"` + rest, event.Invalid, "event_id", "UUID"},
		{`{"event_id":"urn:uuid:` + givenID + `"` + rest, event.Invalid, "event_id", "UUID"},
		{`{"event_id":"{` + givenID + `}"` + rest, event.Invalid, "event_id", "UUID"},
		{`{"event_id":"` + uuid.Nil.String() + `"` + rest, event.Invalid, "event_id", "nil"},
		{`{"event_time":""` + rest, event.Invalid, "event_time", "empty"},
		{`{"event_time":"yesterday"` + rest, event.Invalid, "event_time", "RFC 3339"},
		{`{"event_time":"2026-02-07"` + rest, event.Invalid, "event_time", "RFC 3339"},
		{`{"event_time":"2026-02-07T10:00:00"` + rest, event.Invalid, "event_time", "RFC 3339"},
		{`{"event_time":"2026-02-30T10:00:00Z"` + rest, event.Invalid, "event_time", "RFC 3339"},
		{`{"event_time":"2026-02-07T1:00:00Z"` + rest, event.Invalid, "event_time", "RFC 3339"},
		{`{"event_time":"2026-02-07T10:00:00,5Z"` + rest, event.Invalid, "event_time", "RFC 3339"},
		{`{"event_time":"2026-02-07T10:00:00+24:00"` + rest, event.Invalid, "event_time", "RFC 3339"},
		{`{"event_time":"292278994-08-17T07:12:55.807Z"` + rest, event.Invalid, "event_time", "RFC 3339"},
		{`{"event_time":"+292278994-08-17T07:12:55.807Z"` + rest, event.Invalid, "event_time", "RFC 3339"},
		{`{"event_time":"9999-12-31T23:59:59-23:59"` + rest, event.Invalid, "event_time", "years"},
		{`{"event_time":"0001-01-01T00:00:00+00:01"` + rest, event.Invalid, "event_time", "years"},
		{`{"event_time":"0000-01-01T00:00:00Z"` + rest, event.Invalid, "event_time", "years"},
		{`{"metadata":"x"` + rest, event.Malformed, "metadata", "JSON object"},
		{`{"metadata":{"correlation_id":5}` + rest, event.Malformed, "metadata.correlation_id", "must not be a number"},
		{`{"metadata":{"correlation_id":"a\nb"}` + rest, event.Invalid, "correlation_id", "printable"},
		{`{"metadata":{"correlation_id":"\u0000"}` + rest, event.Invalid, "correlation_id", "printable"},
		{`{"metadata":{"correlation_id":"` + strings.Repeat("c", 257) + `"}` + rest, event.Invalid, "correlation_id", "256"},
		{strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000), event.Malformed, "", "not an array"},
		{`{"x":` + strings.Repeat(" ", event.MaxBody), event.TooLarge, "", "1048576"},
	}
	for _, tt := range tests {
		t.Run(name(tt.in), func(t *testing.T) {
			t.Parallel()
			_, err := event.Parse([]byte(tt.in), origin())
			refused(t, err, tt.kind, tt.field, tt.word)
		})
	}
}

func name(s string) string { return s[:min(len(s), 60)] }

func TestEventTypeAndAggregateID(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 300)
	tests := []struct{ eventType, aggregateID, field, word string }{
		{"a.b", "x", "", ""},
		{".", " ", "", ""},
		{"sensor.reading_2-b.0", "device-001", "", ""},
		{"a." + long[:126], long[:256], "", ""},
		{"a.b", "日本-🌡️ m³ e\u0301 \"\\<&>", "", ""},
		{"", "x", "event_type", "empty"},
		{"sensor", "x", "event_type", "dot"},
		{"a." + long[:127], "x", "event_type", "128"},
		{"Sensor.reading", "x", "event_type", `has "Sens…" at byte 0`},
		{"a.b c", "x", "event_type", `has " c" at byte 3`},
		{"a.b/c", "x", "event_type", "at byte 3"},
		{"a.b\x00", "x", "event_type", `"\x00"`},
		{"sensör.x", "x", "event_type", "at byte 4"},
		{"a.b+", "x", "event_type", "at byte 3"},
		{"a.b", "", "aggregate_id", "empty"},
		{"a.b", long[:257], "aggregate_id", "256"},
		{"a.b", long, "aggregate_id", "256"},
		{"a.b", strings.Repeat("é", 128) + "x", "aggregate_id", "256"},
		{"a.b", "a/b", "aggregate_id", `'/' at byte 1`},
		{"a.b", "+", "aggregate_id", "'+'"},
		{"a.b", "x#", "aggregate_id", "'#'"},
		{"a.b", "x\x00", "aggregate_id", "U+0000"},
		{"a.b", "x\n", "aggregate_id", "U+000A"},
		{"a.b", "\x7f", "aggregate_id", "U+007F"},
		{"a.b", "x\u0085", "aggregate_id", "U+0085"},
		{"a.b", "\ufeffx", "aggregate_id", "U+FEFF"},
		{"a.b", "so\u00adft", "aggregate_id", "U+00AD"},
		{"a.b", "\ue000", "aggregate_id", "U+E000"},
		{"a.b", "a\u00a0b", "aggregate_id", "U+00A0"},
		{"a.b", "a\u2028b", "aggregate_id", "U+2028"},
		{"a.b", "\u202egnp", "aggregate_id", "U+202E"},
		{"a.b", "a\u200db", "aggregate_id", "U+200D"},
		{"a.b", "\U0010ffff", "aggregate_id", "U+10FFFF"},
	}
	check := func(t *testing.T, e event.Envelope, err error, eventType, aggregateID, field, word string) {
		if field != "" {
			refused(t, err, event.Invalid, field, word)
			return
		}
		require.NoError(t, err)
		require.Equal(t, eventType, e.Type)
		require.Equal(t, aggregateID, e.AggregateID)
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%.20q %.20q", tt.eventType, tt.aggregateID), func(t *testing.T) {
			t.Parallel()
			e, err := event.Parse([]byte(`{"event_type":`+quote(t, tt.eventType)+`,"aggregate_id":`+quote(t, tt.aggregateID)+`,"payload":{}}`), origin())
			check(t, e, err, tt.eventType, tt.aggregateID, tt.field, tt.word)
			// The MQTT topic has the same rules, but where a part is missing or holds a slash there is no such topic.
			if tt.aggregateID == "" || strings.Contains(tt.eventType, "/") {
				return
			}
			e, err = event.ParseMQTT("devices/"+tt.aggregateID+"/events/"+tt.eventType, []byte(`{}`), event.Properties{}, origin())
			check(t, e, err, tt.eventType, tt.aggregateID, tt.field, tt.word)
		})
	}
}

func TestTopic(t *testing.T) {
	t.Parallel()
	for eventType, want := range map[string]string{
		"sensor.reading": event.TopicSensor, "sensor.": event.TopicSensor, "sensor.a.b": event.TopicSensor,
		"user.login": event.TopicUser, "user.x": event.TopicUser,
		"system.alert": event.TopicSystem, "ai.anomaly": event.TopicSystem, "sensors.x": event.TopicSystem,
		"sensor": event.TopicSystem, ".sensor": event.TopicSystem, "x.user": event.TopicSystem, "": event.TopicSystem,
		"user-x.y": event.TopicSystem,
	} {
		require.Equal(t, want, event.Topic(eventType), eventType)
	}
	require.Subset(t, event.Topics(), []string{"sensor-events", "user-actions", "system-events"})
	for i, r := range event.Routes() {
		require.Equal(t, r.Topic, event.Topic(r.Prefix+"x"))
		for j, other := range event.Routes() {
			require.True(t, i == j || !strings.HasPrefix(other.Prefix, r.Prefix), "an event has one route")
		}
	}
	require.Equal(t, "sensor-events.dlq", event.DeadLetterTopic(event.TopicSensor))
}

func TestTraceparent(t *testing.T) {
	t.Parallel()
	require.True(t, event.ValidTraceparent(traceparent))
	for _, s := range []string{
		"", "00", traceparent + "-00", traceparent[:54], "01" + traceparent[2:], "ff" + traceparent[2:],
		strings.ToUpper(traceparent), strings.Replace(traceparent, "0af7651916cd43dd8448eb211c80319c", strings.Repeat("0", 32), 1),
		strings.Replace(traceparent, "b7ad6b7169203331", strings.Repeat("0", 16), 1), strings.Replace(traceparent, "b7", "g7", 1),
		strings.ReplaceAll(traceparent, "-", "_"),
	} {
		require.False(t, event.ValidTraceparent(s), s)
		// One that can't be read is dropped; the event is not refused for it.
		e, err := event.ParseMQTT("devices/x/events/a.b", []byte(`{}`), event.Properties{Traceparent: s}, origin())
		require.NoError(t, err)
		require.Empty(t, e.Metadata.Traceparent)
	}
	for s, want := range map[string]bool{
		"a": true, "a b é": true, strings.Repeat("x", 256): true,
		"": false, strings.Repeat("x", 257): false, "a\n": false, "\x00": false, "\xff": false, "\u200b": false,
	} {
		require.Equal(t, want, event.ValidCorrelationID(s), "%q", s)
	}
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	payload := `{"a":"\u0041\/é\ud83c\udf21","n":[-0,1e-300,12345678901234567890123,0.10],"o":{"":null," ":true}}`
	e, err := event.Parse(body("a.b", "x", payload), origin())
	require.NoError(t, err)
	e.Metadata.Position = math.MaxInt64
	data, err := e.Marshal()
	require.NoError(t, err)
	require.Equal(t, `{"event_id":"0190a5c0-7b1e-7c3a-9d3e-5f6a7b8c9d0e","event_type":"a.b","aggregate_id":"x",`+
		`"event_time":"2026-02-07T09:00:05.987654Z","ingested_at":"2026-02-07T09:00:05.987654Z","payload":`+payload+
		`,"metadata":{"source":"http","correlation_id":"request-1","traceparent":"`+traceparent+
		`","schema_version":1,"position":9223372036854775807}}`, string(data))
	back, err := event.Unmarshal(data)
	require.NoError(t, err)
	require.Equal(t, e, back)

	e.Metadata.Position, e.Metadata.Traceparent = 0, ""
	data, err = e.Marshal()
	require.NoError(t, err)
	require.NotContains(t, string(data), "position")
	require.NotContains(t, string(data), "traceparent")
}

func TestUnmarshal(t *testing.T) {
	t.Parallel()
	good := `{"event_id":"` + givenID + `","event_type":"a.b","aggregate_id":"x","event_time":"2026-02-07T11:00:00.1234567+01:00",` +
		`"ingested_at":"2026-02-07T09:00:00-01:00","payload":{"a": 1},"metadata":{"source":"mqtt","correlation_id":"c","schema_version":2,"new":1},"new":[]}`
	e, err := event.Unmarshal([]byte(good))
	require.NoError(t, err, "a newer writer's members are ignored")
	require.Equal(t, time.Date(2026, 2, 7, 10, 0, 0, 123456000, time.UTC), e.Time)
	require.Equal(t, time.Date(2026, 2, 7, 10, 0, 0, 0, time.UTC), e.IngestedAt)
	require.Equal(t, 2, e.Metadata.SchemaVersion)
	require.JSONEq(t, `{"a":1}`, string(e.Payload))

	tests := []struct {
		old, new string
		kind     event.Kind
		field    string
		word     string
	}{
		{good, ``, event.Malformed, "", "not valid JSON"},
		{good, `null`, event.Invalid, "event_id", "required"},
		{good, `[1]`, event.Malformed, "", "not an array"},
		{good, good + "x", event.Malformed, "", "not valid JSON"},
		{givenID, "x", event.Malformed, "event_id", "cannot be read"},
		{givenID, uuid.Nil.String(), event.Invalid, "event_id", "required"},
		{`"a.b"`, `"a"`, event.Invalid, "event_type", "dot"},
		{`"a.b"`, `5`, event.Malformed, "event_type", "must not be a number"},
		{`"x"`, `"a/b"`, event.Invalid, "aggregate_id", "'/'"},
		{`2026-02-07T11:00:00.1234567+01:00`, strings.Repeat(`é\n`, 400), event.Malformed, "event_time", "cannot be read"},
		{`2026-02-07T11:00:00.1234567+01:00`, `9999-12-31T23:59:59-01:00`, event.Invalid, "event_time", "years"},
		{`2026-02-07T09:00:00-01:00`, `0000-02-07T10:00:00Z`, event.Invalid, "ingested_at", "years"},
		{`{"a": 1}`, `[]`, event.Invalid, "payload", "an array"},
		{`{"a": 1}`, `{"a":"\u0000"}`, event.Invalid, "payload.a", "u0000"},
		{`{"a": 1}`, `{"a":1e400}`, event.Invalid, "payload.a", "double"},
		{`"payload":{"a": 1},`, ``, event.Invalid, "payload", "required"},
		{`"mqtt"`, `"\u0000"`, event.Invalid, "metadata.source", "printable"},
		{`"c"`, `"\u0000"`, event.Invalid, "metadata.correlation_id", "printable"},
		{`"new":1`, `"traceparent":"\n"`, event.Invalid, "metadata.traceparent", "printable"},
	}
	for _, tt := range tests {
		t.Run(name(tt.new), func(t *testing.T) {
			t.Parallel()
			_, err := event.Unmarshal([]byte(strings.Replace(good, tt.old, tt.new, 1)))
			refused(t, err, tt.kind, tt.field, tt.word)
		})
	}
}

func TestPermanent(t *testing.T) {
	t.Parallel()
	plain := errors.New("away")
	require.NoError(t, fault.Permanent(nil))
	require.False(t, fault.IsPermanent(nil))
	require.False(t, fault.IsPermanent(plain))
	require.True(t, fault.IsPermanent(fmt.Errorf("apply: %w", fault.Permanent(plain))))
	require.ErrorIs(t, fault.Permanent(plain), plain)
	require.Equal(t, "away", fault.Permanent(plain).Error())
	_, err := event.Parse(nil, origin())
	require.True(t, fault.IsPermanent(err))
	require.Equal(t, "payload.a: must", (&event.Error{Field: "payload.a", Rule: "must"}).Error())
}
