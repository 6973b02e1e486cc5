package routers

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/handlers"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/store"
)

// countEvents counts the events of an aggregate; whether it says that their order matters is the test's.
func countEvents(orderMatters bool) handlers.Projection {
	return handlers.Projection{
		Type: "count", Topic: event.TopicSensor, Applies: func(string) bool { return true }, OrderMatters: orderMatters,
		Reduce: func(current handlers.State, e *event.Envelope) (handlers.State, error) {
			var n int
			if current.Exists() {
				if err := json.Unmarshal(current.Value, &n); err != nil {
					return current, err
				}
			}
			value, err := json.Marshal(n + 1)
			return handlers.State{Value: value, EventID: e.ID, EventTime: e.Time}, err
		},
	}
}

func letterOf(t *testing.T, e event.Envelope) *deadletter.Letter {
	t.Helper()
	return &deadletter.Letter{Entry: deadletter.Entry{
		ID: uuid.New(), Consumer: Eventhandler, EventID: e.ID, Payload: marshal(t, e), Position: e.Metadata.Position, FailedAt: t0,
	}}
}

// replayed applies a letter to a row with 5 events up to a position.
func replayed(t *testing.T, l *deadletter.Letter, p handlers.Projection, position int64) (*store.Projection, error) {
	t.Helper()
	again, err := ReplayEventhandler(l, []handlers.Projection{p})
	if err != nil {
		return nil, err
	}
	key := store.ProjectionKey{Type: p.Type, AggregateID: "device-7"}
	require.Equal(t, []store.ProjectionKey{key}, again.Keys)
	rows := map[store.ProjectionKey]*store.Projection{}
	if position > 0 {
		rows[key] = &store.Projection{
			Type: p.Type, AggregateID: "device-7", State: []byte("5"), LastEventID: uuid.New(), LastEventTimestamp: t0,
			Position: position, EventCount: 5,
		}
	}
	err = again.Fold(rows)
	return rows[key], err
}

func TestAnOlderEventIsAppliedOnce(t *testing.T) {
	t.Parallel()
	l := letterOf(t, envelope7(7))
	for _, c := range []struct{ row, position, count int64 }{
		{0, 7, 1},   // there is no row yet
		{3, 7, 6},   // the newest so far
		{90, 90, 6}, // newer ones are there
		{7, 7, 5},   // it was applied after all
	} {
		row, err := replayed(t, l, countEvents(false), c.row)
		require.NoError(t, err)
		require.Equal(t, c.position, row.Position)
		require.Equal(t, c.count, row.EventCount)
		require.Equal(t, string(row.State), string(rune('0'+c.count)))
	}
}

func TestWhereOrderMattersNewerEventsAreInTheWay(t *testing.T) {
	t.Parallel()
	l := letterOf(t, envelope7(7))
	row, err := replayed(t, l, countEvents(true), 3)
	require.NoError(t, err, "nothing newer has been applied")
	require.Equal(t, int64(6), row.EventCount)
	row, err = replayed(t, l, countEvents(true), 8)
	require.ErrorIs(t, err, deadletter.ErrNeedsRebuild)
	require.True(t, fault.IsPermanent(err))
	require.ErrorContains(t, err, "platform rebuild count")
	require.Equal(t, int64(5), row.EventCount)
}

func TestAnEditCannotMoveAnEvent(t *testing.T) {
	t.Parallel()
	e := envelope7(7)
	l := letterOf(t, e)
	e.Metadata.Position, e.Payload = 900, []byte(`{"value":2,"unit":"celsius"}`)
	l.EditedBytes = marshal(t, e)
	row, err := replayed(t, l, countEvents(false), 3)
	require.NoError(t, err)
	require.Equal(t, int64(7), row.Position, "that of the letter")

	l.Payload, l.Position = []byte("garbage"), 0
	row, err = replayed(t, l, countEvents(false), 3)
	require.NoError(t, err)
	require.Equal(t, int64(3), row.Position, "nobody knows it")
	require.Equal(t, int64(6), row.EventCount)

	e.ID = uuid.New()
	l.EditedBytes = marshal(t, e)
	_, err = replayed(t, l, countEvents(false), 3)
	require.ErrorContains(t, err, "event_id: must stay "+l.EventID.String())
}

func TestAReplayIsRefusedAsTheConsumerWould(t *testing.T) {
	t.Parallel()
	unsequenced := letterOf(t, envelope7(0))
	garbage := letterOf(t, envelope7(7))
	garbage.Payload = []byte("{")
	refusing, panicking := countEvents(false), countEvents(false)
	refusing.Reduce = func(handlers.State, *event.Envelope) (handlers.State, error) {
		return handlers.State{}, errors.New("no")
	}
	panicking.Reduce = func(handlers.State, *event.Envelope) (handlers.State, error) { panic("no idea") }
	for _, c := range []struct {
		l    *deadletter.Letter
		p    handlers.Projection
		want string
	}{
		{unsequenced, countEvents(false), "metadata.position"},
		{garbage, countEvents(false), "not valid JSON"},
		{letterOf(t, envelope7(7)), refusing, "apply event"},
		{letterOf(t, envelope7(7)), panicking, "the handler panicked: no idea\ngoroutine"},
	} {
		_, err := replayed(t, c.l, c.p, 3)
		require.ErrorContains(t, err, c.want)
		require.True(t, fault.IsPermanent(err))
	}
}

func TestReplayIngestionReadsAsTheRouterDoes(t *testing.T) {
	t.Parallel()
	l := &deadletter.Letter{Entry: deadletter.Entry{
		ID: uuid.New(), Consumer: Ingestion, Payload: []byte(`{"value":"x","unit":"c"}`), Topic: "devices/device-7/events/sensor.reading", FailedAt: t0,
		Properties: map[string]string{event.MetaCorrelationID: "c-7"},
	}}
	_, err := ReplayIngestion(l)
	require.ErrorContains(t, err, "payload.value")
	require.True(t, fault.IsPermanent(err))

	l.EditedBytes = []byte(`{"value":1,"unit":"c"}`)
	e, err := ReplayIngestion(l)
	require.NoError(t, err)
	again, err := ReplayIngestion(l)
	require.NoError(t, err)
	require.Equal(t, e, again, "the same event each time")
	require.Equal(t, uuid.Version(7), e.ID.Version())
	require.Equal(t, t0.UnixMilli(), time.Unix(e.ID.Time().UnixTime()).UnixMilli())
	require.Equal(t, t0, e.Time, "when it came, not when it is replayed")
	require.Equal(t, "c-7", e.Metadata.CorrelationID)
	require.Equal(t, "mqtt", e.Metadata.Source)

	id := uuid.New()
	l.Properties = map[string]string{event.MetaEventID: id.String(), event.MetaEventTime: "2026-01-01T00:00:00Z"}
	e, err = ReplayIngestion(l)
	require.NoError(t, err)
	require.Equal(t, id, e.ID)
	require.Equal(t, 2026, e.Time.Year())
	l.Properties[event.MetaEventTime] = "yesterday"
	_, err = ReplayIngestion(l)
	require.ErrorContains(t, err, "event_time")

	l.EditedTopic, l.EditedBytes = "events", []byte(`{"event_id":"`+id.String()+`","event_type":"a.b","aggregate_id":"x","event_time":"2026-01-01T00:00:00Z","payload":{}}`)
	e, err = ReplayIngestion(l)
	require.NoError(t, err, "an envelope says everything itself")
	require.Equal(t, "a.b", e.Type)
}

func TestReplayRelay(t *testing.T) {
	t.Parallel()
	l := letterOf(t, envelope7(7))
	e, err := ReplayRelay(l)
	require.NoError(t, err)
	require.Equal(t, l.EventID, e.ID)
	other := envelope7(7)
	l.EditedBytes = marshal(t, other)
	_, err = ReplayRelay(l)
	require.ErrorContains(t, err, "event_id: must stay")
	l.EditedBytes = []byte("null")
	_, err = ReplayRelay(l)
	require.Error(t, err)
	require.True(t, fault.IsPermanent(err))
}
