package event_test

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
)

// TestPropertiesBesideAnEnvelope: user properties count on the topic events too, where the body does not say otherwise.
func TestPropertiesBesideAnEnvelope(t *testing.T) {
	t.Parallel()
	ids := []string{"0190a5c0-7b1e-7c3a-9d3e-5f6a7b8c9d0e", "0190a5c0-7b1e-7c3a-9d3e-5f6a7b8c9d0f"}
	props := event.Properties{EventID: ids[0], EventTime: "2026-02-07T10:00:00Z", CorrelationID: "c-1"}
	origin := event.Origin{Source: "mqtt", Now: time.Unix(1_800_000_000, 0), NewID: uuid.New}
	body := `{"event_type":"system.note","aggregate_id":"a","payload":{}`

	e, err := event.ParseMQTT(event.MQTTEvents, []byte(body+`}`), props, origin)
	require.NoError(t, err)
	require.Equal(t, ids[0], e.ID.String())
	require.Equal(t, time.Date(2026, 2, 7, 10, 0, 0, 0, time.UTC), e.Time)
	require.Equal(t, "c-1", e.Metadata.CorrelationID)

	e, err = event.ParseMQTT(event.MQTTEvents, []byte(body+`,"event_id":"`+ids[1]+`"}`), props, origin)
	require.NoError(t, err)
	require.Equal(t, ids[1], e.ID.String())
}
