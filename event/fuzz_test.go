package event_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
)

var seedPayloads = []string{
	`{}`, `{"value":72.5,"unit":"C"}`, ` { "a" : [ 1 , null , true ] } `, `{"a":"\u0000"}`, `{"\u0000":1}`, `{"a":"\ud800"}`, `{"\uDFFF":1}`,
	`{"a":"\ud83d\ude00\ufffd"}`, `{"a":1e400}`, `{"a":1e-500}`, `{"a":-0.0e-0}`, `{"a":NaN}`, `{"a":1,"a":2}`, `{"a":1,"\u0061":2}`, `{"a":1}x`,
	"\ufeff{}", "{\"a\":\"\xff\"}", `null`, `[]`, `{"a\nb":1e999}`, `{"a":` + strings.Repeat("[", 70) + strings.Repeat("]", 70) + `}`,
	`{"a":` + strings.Repeat("9", 401) + `}`, `{"a":0e99999}`,
}

func seedEnvelopes() []string {
	seeds := []string{
		``, `null`, `{}`, `[`, `{"event_type":null}`, `{"event_type":"a.b","aggregate_id":"x","payload":{},"metadata":{"correlation_id":"\n"}}`,
		`{"event_type":"a.b","aggregate_id":"x","payload":{},"event_time":"9999-12-31T23:59:59-01:00","event_id":"` + givenID + `"}`,
		`{"event_type":"a.b","aggregate_id":"x","payload":{},"event_time":"292278994-08-17T07:12:55.807Z"}`,
		`{"event_type":"a.b","aggregate_id":"x","payload":{},"metadata":{"correlation_id":"c","traceparent":"` + traceparent + `"}}`,
		`{"a\u0000":1}`, `{"event_type":"a.b","aggregate_id":"\ufeff","payload":{}}`, `{"event_type":"a.b","aggregate_id":"🌡️","payload":{}}`,
	}
	for _, p := range seedPayloads {
		seeds = append(seeds, `{"event_type":"sensor.reading","aggregate_id":"x","payload":`+p+`}`)
	}
	return seeds
}

func FuzzParse(f *testing.F) {
	for _, s := range seedEnvelopes() {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		check := unchanged(t, data)
		e, err := event.Parse(data, fuzzOrigin())
		judge(t, e, err)
		check()
	})
}

func FuzzParseMQTT(f *testing.F) {
	for _, topic := range []string{"devices/x/events/sensor.reading", "devices/x/events/a.b", "devices/a/b/events/a.b", "devices//events/", "x\n\xff"} {
		for _, s := range seedPayloads {
			f.Add(topic, []byte(s), "", "", "", "")
		}
	}
	for _, s := range seedEnvelopes() {
		f.Add("events", []byte(s), "", "", "c", traceparent)
	}
	f.Add("devices/x/events/a.b", []byte(`{}`), givenID, "2026-02-07T10:00:00Z", "c", traceparent)
	f.Add("devices/x/events/a.b", []byte(`{}`), "x", "0000-01-01T00:00:00+23:59", "\x00", "00-")
	f.Fuzz(func(t *testing.T, topic string, data []byte, id, at, correlation, trace string) {
		check := unchanged(t, data)
		e, err := event.ParseMQTT(topic, data, event.Properties{EventID: id, EventTime: at, CorrelationID: correlation, Traceparent: trace}, fuzzOrigin())
		judge(t, e, err)
		check()
	})
}

func FuzzParseBatch(f *testing.F) {
	all := seedEnvelopes()
	f.Add([]byte("[" + strings.Join(all[5:], ",") + "]"))
	f.Add([]byte(strings.Join(all, "\n")))
	for _, s := range all {
		f.Add([]byte("[" + s + "]"))
		f.Add([]byte(s + "\r\n\n" + s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		check := unchanged(t, data)
		accepted, rejected, err := event.ParseBatch(data, fuzzOrigin())
		check()
		if err != nil {
			require.NoError(t, cleanError(err))
			require.Empty(t, accepted)
			require.Empty(t, rejected)
			return
		}
		require.Positive(t, len(accepted)+len(rejected))
		for _, e := range accepted {
			judge(t, e, nil)
		}
		last := -1
		for _, r := range rejected {
			require.Greater(t, r.Index, last)
			require.Less(t, r.Index, len(accepted)+len(rejected))
			require.NoError(t, cleanError(r.Err))
			last = r.Index
		}
	})
}

func FuzzUnmarshal(f *testing.F) {
	for _, s := range seedEnvelopes() {
		f.Add([]byte(s))
		if e, err := event.Parse([]byte(s), fuzzOrigin()); err == nil {
			data, err := e.Marshal()
			require.NoError(f, err)
			f.Add(data)
		}
	}
	for _, p := range seedPayloads {
		f.Add([]byte(`{"event_id":"` + givenID + `","event_type":"a.b","aggregate_id":"x","event_time":"2026-02-07T11:00:00+01:00",` +
			`"ingested_at":"2026-02-07T10:00:00Z","payload":` + p + `,"metadata":{"source":"mqtt","schema_version":2,"position":9}}`))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		check := unchanged(t, data)
		e, err := event.Unmarshal(data)
		judge(t, e, err)
		check()
	})
}
