package event_test

import (
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
)

// Marshal writes what the library would, and fails where it does.
func TestMarshalIsTheLibrarys(t *testing.T) {
	t.Parallel()
	id := uuid.MustParse("0190a5c0-7b1e-7c3a-9d3e-5f6a7b8c9d0e")
	at := time.Date(2026, 2, 7, 10, 0, 0, 123456000, time.UTC)
	whole := event.Envelope{
		ID: id, Type: "sensor.reading", AggregateID: "device-001", Time: at, IngestedAt: at.Add(time.Second),
		Payload: jsontext.Value(`{"value":72.5}`),
		Metadata: event.Metadata{Source: "http", CorrelationID: "c", SchemaVersion: 1, Position: 42,
			Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", DeviceTime: "2099-01-01T00:00:00Z", Clock: event.ClockAhead},
	}
	with := func(change func(*event.Envelope)) event.Envelope {
		e := whole
		change(&e)
		return e
	}
	for name, e := range map[string]event.Envelope{
		"all members":         whole,
		"nothing":             {},
		"no optional members": with(func(e *event.Envelope) { e.Metadata = event.Metadata{} }),
		"quotes, tags, emoji": with(func(e *event.Envelope) { e.AggregateID, e.Metadata.CorrelationID = `a"b\c<&>`, "🌡\u2028\x01\n" }),
		"not UTF-8":           with(func(e *event.Envelope) { e.AggregateID = "a\xff" }),
		"correlation ID":      with(func(e *event.Envelope) { e.Metadata.CorrelationID = "\xc3" }),
		"raw strings":         with(func(e *event.Envelope) { e.Payload = jsontext.Value(`{"a":"\u00e9\/","n":1.50e3}`) }),
		"white space":         with(func(e *event.Envelope) { e.Payload = jsontext.Value(" { \"a\" : [ 1 ,\n2 ] } ") }),
		"name given twice":    with(func(e *event.Envelope) { e.Payload = jsontext.Value(`{"a":1,"a":2}`) }),
		"broken payload":      with(func(e *event.Envelope) { e.Payload = jsontext.Value(`{"a":`) }),
		"two payloads":        with(func(e *event.Envelope) { e.Payload = jsontext.Value(`{} {}`) }),
		"no payload":          with(func(e *event.Envelope) { e.Payload = nil }),
		"another zone":        with(func(e *event.Envelope) { e.Time = at.In(time.FixedZone("", 3600)) }),
		"a whole second":      with(func(e *event.Envelope) { e.Time = at.Truncate(time.Second) }),
		"the year 10000":      with(func(e *event.Envelope) { e.Time = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) }),
		"before the year 0":   with(func(e *event.Envelope) { e.IngestedAt = time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC) }),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := e.Marshal()
			want, wantErr := json.Marshal(&e, jsontext.PreserveRawStrings(true))
			require.Equal(t, wantErr == nil, err == nil, "%v, the library: %v", err, wantErr)
			if err == nil {
				require.Equal(t, string(want), string(got))
			}
			got, err = e.Metadata.Marshal()
			want, wantErr = json.Marshal(e.Metadata)
			require.Equal(t, wantErr == nil, err == nil, "%v, the library: %v", err, wantErr)
			if err == nil {
				require.Equal(t, string(want), string(got))
			}
		})
	}
}
