package handlers_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/handlers"
)

var t0 = time.Date(2026, 2, 7, 10, 0, 0, 0, time.UTC)

func at(id byte, offset time.Duration) *event.Envelope {
	return &event.Envelope{
		ID: uuid.UUID{0: id}, Type: "sensor.reading", AggregateID: "device-1", Time: t0.Add(offset),
		Payload: jsontext.Value(fmt.Sprintf(`{"from":%d}`, id)),
	}
}

func stateOf(e *event.Envelope) handlers.State {
	return handlers.State{Value: e.Payload, EventID: e.ID, EventTime: e.Time}
}

func TestNewest(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		current *event.Envelope // nil for none
		next    *event.Envelope
		wins    bool
	}{
		"the first":                       {nil, at(1, 0), true},
		"the first, long ago":             {nil, at(1, -1e9*time.Second), true},
		"newer":                           {at(9, 0), at(1, time.Microsecond), true},
		"older":                           {at(1, 0), at(9, -time.Microsecond), false},
		"same time, larger ID":            {at(1, 0), at(2, 0), true},
		"same time, smaller ID":           {at(2, 0), at(1, 0), false},
		"same time, IDs compare unsigned": {at(0x7f, 0), at(0x80, 0), true},
		"the same event":                  {at(1, 0), at(1, 0), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var current handlers.State
			if tc.current != nil {
				current = stateOf(tc.current)
			}
			before := current
			next, err := handlers.Newest(current, tc.next)
			require.NoError(t, err)
			require.Equal(t, before, current, "the state it is given is not changed")
			if tc.wins {
				require.Equal(t, stateOf(tc.next), next)
			} else {
				require.Equal(t, before, next)
			}
		})
	}
}

func TestNewestComparesInstantsWhateverTheirZone(t *testing.T) {
	t.Parallel()
	e := at(2, 0)
	e.Time = e.Time.In(time.FixedZone("", 3600))
	next, err := handlers.Newest(stateOf(at(1, 0)), e)
	require.NoError(t, err)
	require.Equal(t, e.ID, next.EventID)
}

// Whatever the order in which events arrive, and however often, the state is the same.
func TestNewestDoesNotDependOnTheOrder(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 7))
		var events []*event.Envelope
		for i := range 1 + random.IntN(12) { // few times, so that many are the same
			events = append(events, at(byte(i+1), time.Duration(random.IntN(4))*time.Second))
		}
		want := fold(t, events)
		for range 20 {
			events = append(events, events[random.IntN(len(events))]) // redelivered
			random.Shuffle(len(events), func(i, j int) { events[i], events[j] = events[j], events[i] })
			require.Equal(t, want, fold(t, events), "seed %d", seed)
		}
	}
}

func fold(t *testing.T, events []*event.Envelope) handlers.State {
	t.Helper()
	var s handlers.State
	for _, e := range events {
		var err error
		s, err = handlers.Newest(s, e)
		require.NoError(t, err)
	}
	require.True(t, s.Exists())
	return s
}

func TestProjectionsAreOfTheirOwnEvents(t *testing.T) {
	t.Parallel()
	require.False(t, new(handlers.State).Exists())
	all := handlers.Projections()
	for eventType, want := range map[string]string{
		"sensor.reading": "sensor_state", "sensor.": "sensor_state", "sensor.a.b": "sensor_state",
		"user.login": "user_session", "user.": "user_session", "device.status": "device_status", "ai.anomaly": "anomaly",
		"sensors.reading": "", "sensor-x.y": "", "users.login": "", "system.alert": "", "action.fired": "", "": "", ".sensor.x": "", "sensor": "",
	} {
		var found []string
		for _, p := range all {
			if p.Applies(eventType) {
				found = append(found, p.Type)
				require.Equal(t, event.Topic(eventType), p.Topic(), "%q must travel where %s is read", eventType, p.Type)
			}
		}
		if want == "" {
			require.Empty(t, found, eventType)
		} else {
			require.Equal(t, []string{want}, found, eventType)
		}
	}
	require.Equal(t, []string{event.TopicSensor, event.TopicUser, event.TopicSystem}, handlers.Topics(all))
}

// A projection's type is part of the names of its tables.
func TestProjectionTypesAreNames(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	for _, p := range handlers.Projections() {
		require.Regexp(t, `^[a-z0-9_]{1,40}$`, p.Type)
		require.False(t, seen[p.Type], "%s is there twice", p.Type)
		seen[p.Type] = true
		require.NotNil(t, p.Reduce)
	}
}
