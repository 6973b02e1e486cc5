package event_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
)

// One reading from the year 2099 must not hide the true ones that follow; and one from 1970 is from no time at all.
func TestClocksThatAreNotBelieved(t *testing.T) {
	t.Parallel()
	o := origin()
	o.Clock = event.Clock{MaxAhead: 10 * time.Minute, Min: time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)}
	at := func(d time.Duration) string { return receivedAt.Add(d).UTC().Format(time.RFC3339Nano) }
	for _, c := range []struct{ said, clock, setting string }{
		{at(0), "", ""},
		{at(9*time.Minute + 59*time.Second), "", ""},
		{at(10*time.Minute + time.Second), event.ClockAhead, "EVENT_TIME_MAX_AHEAD"},
		{"2099-01-01T00:00:00.50Z", event.ClockAhead, "EVENT_TIME_MAX_AHEAD"},
		{"9999-12-31T23:59:59-01:00", event.ClockAhead, "EVENT_TIME_MAX_AHEAD"},
		{"2000-01-01T01:00:00+01:00", "", ""},
		{"1999-12-31T23:59:59.999999Z", event.ClockUnset, "EVENT_TIME_MIN"},
		{"1970-01-01T00:00:03Z", event.ClockUnset, "EVENT_TIME_MIN"},
		{"0000-01-01T00:00:00Z", event.ClockUnset, "EVENT_TIME_MIN"},
	} {
		whole := []byte(`{"event_type":"a.b","aggregate_id":"d","payload":{},"event_time":"` + c.said + `","metadata":{"device_time":"forged","clock":"forged"}}`)
		e, err := event.Parse(whole, o)
		if c.clock == "" {
			require.NoError(t, err, c.said)
			require.Empty(t, e.Metadata.DeviceTime+e.Metadata.Clock, "the platform's to say")
		} else {
			refused(t, err, event.Invalid, "event_time", c.setting)
		}
		byTopic, err := event.ParseMQTT("devices/d/events/a.b", []byte(`{}`), event.Properties{EventTime: c.said}, o)
		require.NoError(t, err, c.said)
		byBody, err := event.ParseMQTT("events", whole, event.Properties{}, o)
		require.NoError(t, err, c.said)
		for _, e := range []event.Envelope{byTopic, byBody} {
			require.Equal(t, c.clock, e.Metadata.Clock, c.said)
			if c.clock != "" {
				require.Equal(t, c.said, e.Metadata.DeviceTime, "as it was said")
				require.Equal(t, e.IngestedAt, e.Time)
			}
			require.NoError(t, storable(e))
		}
	}
	_, err := event.ParseMQTT("devices/d/events/a.b", []byte(`{}`), event.Properties{EventTime: "1970-01-01"}, o)
	refused(t, err, event.Invalid, "event_time", "RFC 3339")
}

// Without bounds whatever can be stored is believed.
func TestNoBoundsOfClocks(t *testing.T) {
	t.Parallel()
	e, err := event.ParseMQTT("devices/d/events/a.b", []byte(`{}`), event.Properties{EventTime: "9999-12-31T00:00:00Z"}, origin())
	require.NoError(t, err)
	require.Equal(t, 9999, e.Time.Year())
	_, err = event.ParseMQTT("devices/d/events/a.b", []byte(`{}`), event.Properties{EventTime: "0000-01-01T00:00:00Z"}, origin())
	refused(t, err, event.Invalid, "event_time", "0001")
}
