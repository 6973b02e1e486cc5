package event_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
)

func TestPayload(t *testing.T) {
	t.Parallel()
	nested := func(n int) string { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) }
	digits := func(n int) string { return strings.Repeat("9", n) }
	accepted := map[string]string{
		`{}`:                                           "",
		" { \"a\" :\t[ 1 ,\r\n2 ] } ":                  `{"a":[1,2]}`,
		`{"a b":" c\t d "}`:                            "",
		`{"a":" \\u0000 "}`:                            "", // a backslash and letters, no NUL
		`{"u0000":"u0000"}`:                            "",
		`{"a":"\ud83d\ude00 \uFFFD"}`:                  "",
		`{"a":"\ue000\ufeff\uffff"}`:                   "",
		`{"":1," ":2}`:                                 "",
		`{"a":0,"b":-0,"c":-0.0e-400}`:                 "",
		`{"a":0e400,"b":1e308,"c":5e-324}`:             "",
		`{"a":-1.7976931348623157e+308}`:               "",
		`{"a":` + digits(308) + `}`:                    "",
		`{"a":0.` + digits(398) + `}`:                  "",
		`{"a":1` + strings.Repeat("0", 300) + `e-400}`: "",
		nested(event.MaxDepth):                         "",
	}
	for in, want := range accepted {
		if want == "" {
			want = in
		}
		t.Run(name(in), func(t *testing.T) {
			t.Parallel()
			bodies(t, in, func(e event.Envelope, err error) {
				require.NoError(t, err)
				require.Equal(t, want, string(e.Payload))
				require.NoError(t, storable(e))
			})
		})
	}
	refusals := []struct {
		in    string
		kind  event.Kind
		field string
		word  string
	}{
		{`null`, event.Invalid, "payload", "is null"},
		{`[]`, event.Invalid, "payload", "is an array"},
		{`"x"`, event.Invalid, "payload", "is a string"},
		{`1.5`, event.Invalid, "payload", "is a number"},
		{`false`, event.Invalid, "payload", "is a boolean"},
		{`{"a":"\u0000"}`, event.Invalid, "payload.a", `\u0000`},
		{`{"a":{"b":["x","y\u0000z"]}}`, event.Invalid, "payload.a.b.1", `\u0000`},
		{`{"a":"\\\u0000"}`, event.Invalid, "payload.a", `\u0000`},
		{`{"a\u0000":1}`, event.Invalid, `payload.a\x00`, `\u0000`},
		{`{"a":{"\u0000":1}}`, event.Invalid, `payload.a.\x00`, `\u0000`},
		{`{"a":1e400}`, event.Invalid, "payload.a", "double"},
		{`{"a":-1E+400}`, event.Invalid, "payload.a", "double"},
		{`{"a":1e309}`, event.Invalid, "payload.a", "double"},
		{`{"a":[0,1e-500]}`, event.Invalid, "payload.a.1", "double"},
		{`{"a":1e-325}`, event.Invalid, "payload.a", "double"},
		{`{"a":0e401}`, event.Invalid, "payload.a", "exponent"},
		{`{"a":0e99999999999999999999}`, event.Invalid, "payload.a", "exponent"},
		{`{"a":` + digits(309) + `}`, event.Invalid, "payload.a", "double"},
		{`{"a":` + digits(401) + `}`, event.Invalid, "payload.a", "400"},
		{`{"a":0.` + digits(399) + `}`, event.Invalid, "payload.a", "400"},
		{nested(event.MaxDepth + 1), event.Invalid, "payload", "64"},
		{nested(9_000), event.Invalid, "payload", "64"},
		{`{"a\nb":{"c\u202e":1e999}}`, event.Invalid, `payload.a\nb.c\u202e`, "double"},
	}
	for _, tt := range refusals {
		t.Run(name(tt.in), func(t *testing.T) {
			t.Parallel()
			bodies(t, tt.in, func(_ event.Envelope, err error) { refused(t, err, tt.kind, tt.field, tt.word) })
		})
	}
	// In an envelope these make the whole of it unreadable, and the path says where.
	unreadable := []struct{ in, field, word string }{
		{`{"a":NaN}`, "payload.a", "not valid JSON"},
		{`{"a":Infinity}`, "payload.a", "not valid JSON"},
		{`{"a":-Infinity}`, "payload.a", "not valid JSON"},
		{`{"a":"\ud800"}`, "payload.a", "not valid JSON"},
		{`{"a":"\uDC00\uD800"}`, "payload.a", "not valid JSON"},
		{`{"\udbff":1}`, "payload", "not valid JSON"},
		{`{"a":1,"a":2}`, "payload.a", "duplicate"},
		{`{"a":1,"\u0061":2}`, "payload.a", "duplicate"},
		{"{\"a\":\"\xff\"}", "payload.a", "not valid JSON"},
		{"{\"a\":\"\xed\xa0\x80\"}", "payload.a", "not valid JSON"},
		{"{\"a\":\"\x00\"}", "payload.a", "not valid JSON"},
		{"{\"a\":\"\n\"}", "payload.a", "not valid JSON"},
		{`{"a":"\U0000"}`, "payload.a", "not valid JSON"},
		{`{"a":"\x00"}`, "payload.a", "not valid JSON"},
		{`{"a":01}`, "payload", "not valid JSON"},
		{`{"a":+1}`, "payload.a", "not valid JSON"},
		{`{"a":.5}`, "payload.a", "not valid JSON"},
		{`{a:1}`, "payload", "not valid JSON"},
		{`{"a":1} // c`, "payload", "not valid JSON"},
	}
	for _, tt := range unreadable {
		t.Run(name(tt.in), func(t *testing.T) {
			t.Parallel()
			_, err := event.ParseMQTT("devices/x/events/a.b", []byte(tt.in), event.Properties{}, origin())
			refused(t, err, event.Malformed, tt.field, tt.word)
			_, err = event.Parse([]byte(`{"event_type":"a.b","aggregate_id":"x","payload":`+tt.in+`}`), origin())
			var broken *event.Error
			require.ErrorAs(t, err, &broken)
			require.Equal(t, event.Malformed, broken.Kind)
			require.NoError(t, cleanError(err))
		})
	}
	t.Run("only in MQTT", func(t *testing.T) {
		t.Parallel()
		for in, word := range map[string]string{`{}{}`: "more follows", `{} {"a":1}`: "more follows", `{} 1`: "more follows", `{}x`: "not valid JSON", "\ufeff{}": "not valid JSON", `{`: "not valid JSON"} {
			_, err := event.ParseMQTT("devices/x/events/a.b", []byte(in), event.Properties{}, origin())
			refused(t, err, event.Malformed, "payload", word)
		}
		for _, in := range []string{"", "  \n"} {
			_, err := event.ParseMQTT("devices/x/events/a.b", []byte(in), event.Properties{}, origin())
			refused(t, err, event.Invalid, "payload", "is required")
		}
		_, err := event.ParseMQTT("devices/x/events/a.b", []byte(nested(100_000)), event.Properties{}, origin())
		refused(t, err, event.Invalid, "payload", "64")
	})
}

// bodies gives a payload to both doors.
func bodies(t *testing.T, payload string, check func(event.Envelope, error)) {
	t.Helper()
	check(event.ParseMQTT("devices/x/events/a.b", []byte(payload), event.Properties{}, origin()))
	check(event.Parse([]byte(`{"event_type":"a.b","aggregate_id":"x","payload":`+payload+`}`), origin()))
}

func TestPayloadSize(t *testing.T) {
	t.Parallel()
	sized := func(n int) string { return `{"a":"` + strings.Repeat("x", n-len(`{"a":""}`)) + `"}` }
	spaced := func(n int) string { return " " + strings.Replace(sized(n), ":", " :\n", 1) + "\t" }
	for _, in := range []string{sized(event.MaxPayload), spaced(event.MaxPayload)} {
		bodies(t, in, func(e event.Envelope, err error) {
			require.NoError(t, err)
			require.Len(t, e.Payload, event.MaxPayload, "white space does not count")
			require.NoError(t, storable(e))
		})
	}
	for _, in := range []string{sized(event.MaxPayload + 1), spaced(event.MaxPayload + 1)} {
		bodies(t, in, func(_ event.Envelope, err error) {
			refused(t, err, event.TooLarge, "payload", "262144", "is 262145")
		})
	}
	_, err := event.ParseMQTT("devices/x/events/a.b", []byte(sized(event.MaxBody+1)), event.Properties{}, origin())
	refused(t, err, event.TooLarge, "payload", "262144")
	e, err := event.ParseMQTT("devices/x/events/a.b", []byte("{"+strings.Repeat(" ", event.MaxBody-2)+"}"), event.Properties{}, origin())
	require.NoError(t, err)
	require.Equal(t, `{}`, string(e.Payload))
}

func TestSchemas(t *testing.T) {
	t.Parallel()
	tests := []struct{ eventType, payload, field, rule string }{
		{"sensor.reading", `{"value":72.5,"unit":"fahrenheit"}`, "", ""},
		{"sensor.reading", `{"value":-0,"unit":"","humidity":1e3}`, "", ""},
		{"sensor.other", `{"anything":[null]}`, "", ""},
		{"user.login", `{"user_id":"u","ip":"::1","more":{}}`, "", ""},
		{"user.logout", `{}`, "", ""},
		{"system.alert", `{"level":"warn","message":"hot","at":[1]}`, "", ""},
		{"device.status", `{"online":true}`, "", ""},
		{"device.status", `{"online":false,"reason":"timeout","rssi":-70}`, "", ""},
		{"ai.anomaly", `{"source_event_id":"0190a5c0-7b1e-7c3a-9d3e-5f6a7b8c9d0e","metric":"value","value":99,"expected":20.5,"lower":18,"upper":23,"score":0.97,"model":"m","model_version":"1"}`, "", ""},
		{"ai.other", `{"score":null}`, "", ""},
		{"sensor.reading", `{"value":1}`, "", ""},
		{"sensor.reading", `{"temperature":21.5,"humidity":40}`, "", ""},
		{"sensor.reading", `{"value":1,"unit":"C","note":"x","on":true,"tags":{},"list":[null]}`, "", ""},
		{"sensor.reading", `{"time":"now","ENERGY":{"a":{},"list":["",[false,{"b":[0]}]]}}`, "", ""},
		{"sensor.reading", `{}`, "payload", "must hold at least one number in sensor.reading"},
		{"sensor.reading", `{"unit":"C"}`, "payload", "must hold at least one number in sensor.reading"},
		{"sensor.reading", `{"1":"2","a":{"3":[true,null,"4",[],{"5":{}}]}}`, "payload", "must hold at least one number in sensor.reading"},
		{"sensor.reading", `{"value":"72","unit":"C"}`, "payload.value", "must be a number in sensor.reading, is a string"},
		{"sensor.reading", `{"value":null,"a":1}`, "payload.value", "must be a number in sensor.reading, is null"},
		{"sensor.reading", `{"value":{"a":1}}`, "payload.value", "must be a number in sensor.reading, is an object"},
		{"sensor.reading", `{"value":1,"unit":5}`, "payload.unit", "must be a string in sensor.reading, is a number"},
		{"user.login", `{"user_id":"u"}`, "payload.ip", "is required in user.login"},
		{"user.login", `{"user_id":1,"ip":"x"}`, "payload.user_id", "must be a string in user.login, is a number"},
		{"device.status", `{"reason":"x"}`, "payload.online", "is required in device.status"},
		{"device.status", `{"online":"yes"}`, "payload.online", "must be a boolean in device.status, is a string"},
		{"device.status", `{"online":true,"reason":null}`, "payload.reason", "must be a string in device.status, is null"},
		{"ai.anomaly", `{"metric":"value","value":99,"expected":20.5,"lower":18,"upper":23,"score":0.97,"model":"m","model_version":"1"}`, "payload.source_event_id", "is required in ai.anomaly"},
		{"ai.anomaly", `{"source_event_id":"x","metric":"value","value":99,"expected":20.5,"lower":18,"upper":23,"score":null,"model":"m","model_version":"1"}`, "payload.score", "must be a number in ai.anomaly, is null"},
		{"system.alert", `{"level":"x"}`, "payload.message", "is required in system.alert"},
		{"system.alert", `{"level":[],"message":""}`, "payload.level", "must be a string in system.alert, is an array"},
	}
	for _, tt := range tests {
		t.Run(tt.eventType+" "+tt.payload, func(t *testing.T) {
			t.Parallel()
			for range 10 { // the same answer each time, whatever the order of maps
				_, err := event.Parse(body(tt.eventType, "x", tt.payload), origin())
				_, mqtt := event.ParseMQTT("devices/x/events/"+tt.eventType, []byte(tt.payload), event.Properties{}, origin())
				require.Equal(t, err, mqtt)
				if tt.field == "" {
					require.NoError(t, err)
				} else {
					refused(t, err, event.Invalid, tt.field)
					require.Equal(t, tt.field+": "+tt.rule, err.Error())
				}
			}
		})
	}
}

func TestParseMQTT(t *testing.T) {
	t.Parallel()
	e, err := event.ParseMQTT("devices/device-001/events/sensor.reading", []byte(`{"value":1,"unit":"C"}`), event.Properties{
		EventID: givenID, EventTime: "2026-02-07T10:00:00Z", CorrelationID: "c-1", Traceparent: traceparent,
	}, event.Origin{Source: "mqtt", Now: receivedAt})
	require.NoError(t, err)
	require.Equal(t, givenID, e.ID.String())
	require.Equal(t, "2026-02-07T10:00:00Z", e.Time.Format("2006-01-02T15:04:05Z07:00"))
	require.Equal(t, event.Metadata{Source: "mqtt", CorrelationID: "c-1", Traceparent: traceparent, SchemaVersion: 1}, e.Metadata)

	e, err = event.ParseMQTT("events", body("a.b", "x", `{}`), event.Properties{CorrelationID: "c-2", Traceparent: traceparent}, origin())
	require.NoError(t, err)
	require.Equal(t, "c-2", e.Metadata.CorrelationID)
	require.Equal(t, traceparent, e.Metadata.Traceparent)

	for name, aggregate := range map[string]string{"devices/events/events/a.b": "events", "devices/$SYS/events/a.b": "$SYS", "devices/devices/events/a.b": "devices"} {
		e, err = event.ParseMQTT(name, []byte(`{}`), event.Properties{}, origin())
		require.NoError(t, err, name)
		require.Equal(t, aggregate, e.AggregateID)
	}
	for _, topic := range []string{
		"", "/", "event", "events/", "/events", "devices", "devices/x", "devices/x/events", "devices//events/a.b", "device/x/events/a.b",
		"/devices/x/events/a.b", "devices/x/events/a.b/", "devices/x/events/a/b", "devices/x/events/events/a.b", "devices/x/commands/a.b",
		"Devices/x/events/a.b", "devices/events/a.b", strings.Repeat("x", 60_000), "x\n\xff",
	} {
		_, err := event.ParseMQTT(topic, []byte(`{}`), event.Properties{}, origin())
		refused(t, err, event.Invalid, "topic", "devices/{aggregate_id}/events/{event_type}")
	}
	_, err = event.ParseMQTT("devices/x/events/", []byte(`{}`), event.Properties{}, origin())
	refused(t, err, event.Invalid, "event_type", "empty")
	_, err = event.ParseMQTT("devices/a/b/events/a.b", []byte(`{}`), event.Properties{}, origin())
	refused(t, err, event.Invalid, "aggregate_id", "'/'")

	for field, p := range map[string]event.Properties{
		"event_id":       {EventID: "x"},
		"event_time":     {EventTime: "now"},
		"correlation_id": {CorrelationID: "a\xffb"},
	} {
		_, err := event.ParseMQTT("devices/x/events/a.b", []byte(`{}`), p, origin())
		refused(t, err, event.Invalid, field)
	}
}

func TestParseBatch(t *testing.T) {
	t.Parallel()
	good, bad := string(body("a.b", "x", `{"i":1}`)), string(body("a.b", "", `{}`))
	tests := []struct {
		in       string
		accepted int
		rejected []int
	}{
		{"[" + good + "]", 1, nil},
		{" \n[\n" + good + " , " + bad + "," + good + "]\n ", 2, []int{1}},
		{`[1,null,"x",{},[` + good + `]]`, 0, []int{0, 1, 2, 3, 4}},
		{`[{"a":1,"a":2},` + good + `,{"a":"\ud800"},"` + "\xff" + `"]`, 1, []int{0, 2, 3}},
		{good, 1, nil},
		{good + "\n" + good, 2, nil},
		{good + "\r\n\r\n \t\n" + bad + "\n" + good + "\n", 2, []int{1}},
		{"{\n" + good + "\n}", 1, []int{0, 2}},
		{good + good + "\n" + good, 1, []int{0}},
		{"hello\n" + good, 1, []int{0}},
		{good + "\n[" + good + "]", 1, []int{1}},
		{"\ufeff" + good + "\n" + good, 1, []int{0}},
		{`[{"x":"` + strings.Repeat("y", event.MaxBody) + `"},` + good + `]`, 1, []int{0}},
	}
	for _, tt := range tests {
		t.Run(name(tt.in), func(t *testing.T) {
			t.Parallel()
			accepted, rejected, err := event.ParseBatch([]byte(tt.in), origin())
			require.NoError(t, err)
			require.Len(t, accepted, tt.accepted)
			var places []int
			for _, r := range rejected {
				places = append(places, r.Index)
				require.NoError(t, cleanError(r.Err))
			}
			require.Equal(t, tt.rejected, places)
		})
	}
	refusals := []struct {
		in   string
		kind event.Kind
		word string
	}{
		{``, event.Invalid, "empty"},
		{" \n ", event.Invalid, "empty"},
		{`[]`, event.Invalid, "empty"},
		{`[ ]`, event.Invalid, "empty"},
		{`[`, event.Malformed, "not valid JSON"},
		{`[` + good, event.Malformed, "not valid JSON"},
		{`[` + good + `,]`, event.Malformed, "not valid JSON"},
		{`[,]`, event.Malformed, "not valid JSON"},
		{`[` + good + ` ` + good + `]`, event.Malformed, "not valid JSON"},
		{`[` + good + `}`, event.Malformed, "not valid JSON"},
		{`[` + good + `][]`, event.Malformed, "more follows"},
		{`[` + good + `] x`, event.Malformed, "more follows"},
		{`[` + strings.Repeat("1,", event.MaxBatch) + `1]`, event.TooLarge, "10000"},
		{strings.Repeat("1\n", event.MaxBatch+1), event.TooLarge, "10000"},
		{strings.Repeat(" ", event.MaxBatchBody+1), event.TooLarge, "33554432"},
	}
	for _, tt := range refusals {
		t.Run(name(tt.in), func(t *testing.T) {
			t.Parallel()
			accepted, rejected, err := event.ParseBatch([]byte(tt.in), origin())
			var broken *event.Error
			require.ErrorAs(t, err, &broken)
			require.Equal(t, tt.kind, broken.Kind)
			require.Contains(t, broken.Rule, tt.word)
			require.Empty(t, accepted)
			require.Empty(t, rejected)
			require.NoError(t, cleanError(err))
		})
	}
	t.Run("full", func(t *testing.T) {
		t.Parallel()
		for _, in := range []string{"[" + strings.Repeat(good+",", event.MaxBatch-1) + good + "]", strings.Repeat(good+"\n", event.MaxBatch)} {
			accepted, rejected, err := event.ParseBatch([]byte(in), origin())
			require.NoError(t, err)
			require.Len(t, accepted, event.MaxBatch)
			require.Empty(t, rejected)
		}
	})
}

func TestParseBatchKeepsOrder(t *testing.T) {
	t.Parallel()
	in := `[{"event_type":"a.b","aggregate_id":"1","payload":{"a":"é"}},{"event_type":"a.b","aggregate_id":"2","payload":{"b":" \" "}},` +
		`{"event_type":"a.b","aggregate_id":"3","payload":{"c":3}}]`
	accepted, _, err := event.ParseBatch([]byte(in), origin())
	require.NoError(t, err)
	require.Equal(t, []string{"1", "2", "3"}, []string{accepted[0].AggregateID, accepted[1].AggregateID, accepted[2].AggregateID})
	require.Equal(t, `{"a":"é"}{"b":" \" "}{"c":3}`, string(accepted[0].Payload)+string(accepted[1].Payload)+string(accepted[2].Payload))
}
