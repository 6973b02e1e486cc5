package routers

import (
	"encoding/json"
	"testing"

	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/store"
	"github.com/stretchr/testify/require"
)

// FuzzProject takes records from the bus into projections, as the event handler does: what can be read never makes a
// state that is not JSON, and what can't be is a permanent error.
func FuzzProject(f *testing.F) {
	envelope := func(eventType, payload, metadata string) []byte {
		return []byte(`{"event_id":"0190a5c0-7b1e-7c3a-9d3e-5f6a7b8c9d0e","event_type":"` + eventType + `","aggregate_id":"a",` +
			`"event_time":"2026-02-07T10:00:00Z","ingested_at":"2026-02-07T10:00:00Z","payload":` + payload + `,"metadata":` + metadata + `}`)
	}
	const placed = `{"source":"http","correlation_id":"c","schema_version":1,"position":7}`
	f.Add(envelope("sensor.reading", `{"value":1,"unit":"c"}`, placed))
	f.Add(envelope("sensor.reading", `{"value":"hot"}`, placed))
	f.Add(envelope("user.login", `{"user_id":"u","ip":"::1"}`, placed))
	f.Add(envelope("system.alert", `{}`, placed))
	f.Add(envelope("sensor.reading", `{"value":1,"unit":"c"}`, `{"source":"http","correlation_id":"c","schema_version":1}`))
	f.Add(envelope("sensor.x", `{"a":1e400}`, `{"source":"http","correlation_id":"c","schema_version":1,"position":-1}`))
	f.Add([]byte(``))
	f.Add([]byte(`null`))
	f.Add([]byte("{\"a\":\"\xff\"}"))
	f.Fuzz(func(t *testing.T, record []byte) {
		a := &application{record: record}
		if err := a.read(Projections()); err != nil {
			require.True(t, fault.IsPermanent(err), "%v", err)
			return
		}
		require.Positive(t, a.event.Metadata.Position)
		rows := make(map[store.ProjectionKey]*store.Projection)
		for range 2 { // the second time has no effect
			for _, p := range a.projections {
				if err := reduce(rows, p, &a.event); err != nil {
					require.True(t, fault.IsPermanent(err), "%v", err)
				}
			}
		}
		for _, row := range rows {
			require.True(t, json.Valid(row.State), "%s", row.State)
			require.Equal(t, a.event.Metadata.Position, row.Position)
			require.Equal(t, a.event.AggregateID, row.AggregateID)
		}
	})
}
