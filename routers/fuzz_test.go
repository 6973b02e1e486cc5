package routers

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/handlers"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/pubsub/batch"
	"github.com/cornjacket/platform-services/store"
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
	f.Add(envelope("device.status", `{"online":true}`, placed))
	f.Add(envelope("system.alert", `{}`, placed))
	f.Add(envelope("sensor.reading", `{"value":1,"unit":"c"}`, `{"source":"http","correlation_id":"c","schema_version":1}`))
	f.Add(envelope("sensor.x", `{"a":1e400}`, `{"source":"http","correlation_id":"c","schema_version":1,"position":-1}`))
	f.Add([]byte(``))
	f.Add([]byte(`null`))
	f.Add([]byte("{\"a\":\"\xff\"}"))
	read := reader(handlers.Projections())
	f.Fuzz(func(t *testing.T, record []byte) {
		e, err := logged(&batch.Record{Value: record})
		if err != nil {
			require.True(t, fault.IsPermanent(err), "%v", err)
			return
		}
		require.Positive(t, e.Metadata.Position)
		a, err := read(e)
		if err != nil {
			require.True(t, errors.Is(err, ErrNotConcerned) || fault.IsPermanent(err), "%v", err)
			return
		}
		rows := make(map[store.ProjectionKey]*store.Projection)
		for _, p := range a.Projections {
			if err := Reduce(rows, p, a.Event); err != nil {
				require.True(t, fault.IsPermanent(err), "%v", err)
			}
		}
		for _, row := range rows {
			require.True(t, json.Valid(row.State), "%s", row.State)
			require.Equal(t, e.Metadata.Position, row.Position)
			require.Equal(t, e.AggregateID, row.AggregateID)
			require.EqualValues(t, 1, row.EventCount)
		}
	})
}
