package event_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
)

// PostgreSQL writes a stored number out in full, so an event that comes out of the log again can be longer than the door
// lets in. It was accepted and must still be readable.
func TestUnmarshalTakesWhatTheLogWrites(t *testing.T) {
	t.Parallel()
	e := event.Envelope{ID: uuid.New(), Type: "system.note", AggregateID: "a", Time: time.Unix(1, 0), IngestedAt: time.Unix(1, 0)}
	digits := "0." + strings.Repeat("0", 390) + "1" // 1e-391 would not pass, 1e-300 in full with digits behind it does
	for name, payload := range map[string]string{
		"a long number": `{"v": 0.` + strings.Repeat("0", 299) + strings.Repeat("1", 300) + `}`,
		"many":          `{"v": [` + strings.Repeat("1"+strings.Repeat("0", 308)+", ", 1000) + `0]}`,
	} {
		e.Payload = []byte(payload)
		data, err := e.Marshal()
		require.NoError(t, err, name)
		_, err = event.Unmarshal(data)
		require.NoError(t, err, name)
	}
	e.Payload = []byte(`{"v": ` + digits + `}`)
	data, err := e.Marshal()
	require.NoError(t, err)
	_, err = event.Unmarshal(data)
	require.ErrorContains(t, err, "IEEE 754", "what no double holds is still refused")
}

// Many large exponents in a small payload would be a large event once PostgreSQL has written them out.
func TestNumbersMustNotGrowBeyondAPayload(t *testing.T) {
	t.Parallel()
	parse := func(n int) error {
		body := `{"v":[` + strings.Repeat("1e300,", n) + `0]}`
		_, err := event.ParseMQTT("devices/a/events/system.note", []byte(body), event.Properties{},
			event.Origin{Source: "mqtt", Now: time.Unix(1, 0), NewID: uuid.New})
		return err
	}
	require.NoError(t, parse(event.MaxPayload/300))
	var broken *event.Error
	require.ErrorAs(t, parse(event.MaxPayload/300+1), &broken)
	require.Equal(t, event.TooLarge, broken.Kind)
	require.Equal(t, "payload", broken.Field)
}
