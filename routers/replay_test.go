package routers_test

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/handlers"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/routers"
)

// summed is [chained] whose order, it says, does not matter.
func summed(refuse func(value int) bool) handlers.Projection {
	p := chained(refuse)
	p.OrderMatters = false
	return p
}

// replays returns the dead letters of an event handler with a projection.
func replays(pool *pgxpool.Pool, p handlers.Projection) *deadletter.Store {
	return deadletter.NewStore(pool, routers.Eventhandler, map[string]deadletter.Apply{
		routers.Eventhandler: routers.ReplayConsumer(func() routers.Consumer[routers.Application] {
			return routers.Projector([]handlers.Projection{p})
		}),
	})
}

func five(value int) bool { return value == 5 }

// A letter is applied once, after newer events, however many letters its event is; the ledger counts it then as applied.
func TestReplayConsumerAppliesOnce(t *testing.T) {
	t.Parallel()
	p := summed(five)
	pool := database(t, p)
	m := newMember(t, pool, routers.Projector([]handlers.Projection{p}))
	m.handles(t, onBus(t, 0, valued(4), valued(5), valued(6))...)
	letter := lettersOf(t, pool)[0] // and another one of the same event
	_, err := pool.Exec(t.Context(), `INSERT INTO dlq (consumer, event_id, event_payload, error_message, source_topic, source_partition, source_offset, bus_topic, event_type, position, message_key)
		SELECT consumer, event_id, event_payload, error_message, source_topic, source_partition, 9, bus_topic, event_type, position, message_key FROM dlq`)
	require.NoError(t, err)

	box := replays(pool, p)
	var refused *deadletter.RefusedError
	_, err = box.Replay(t.Context(), letter.ID, deadletter.Edit{})
	require.ErrorAs(t, err, &refused, "by the same reducer")
	require.ErrorContains(t, refused.Err, "the reducer refuses it")
	_, count := state(t, pool, "chained", "device-7")
	require.EqualValues(t, 2, count)

	box = replays(pool, summed(nothing))
	notes := make([]string, 2)
	for i, l := range lettersOf(t, pool) {
		done, err := box.Replay(t.Context(), l.ID, deadletter.Edit{})
		require.NoError(t, err)
		notes[i] = done.Reason
	}
	require.Equal(t, []string{"", "the event was applied by the replay of dead letter " + letter.ID.String()}, notes)
	_, count = state(t, pool, "chained", "device-7")
	require.EqualValues(t, 3, count)
	all, dead := account(t, pool, routers.Eventhandler)
	require.Equal(t, []int{3, 0}, []int{all, dead})
	m.handles(t, onBus(t, 10, valued(7))...)
	_, count = state(t, pool, "chained", "device-7")
	require.EqualValues(t, 4, count, "the event handler sees what the replay has written")
}

func TestWhereOrderMattersNewerEventsAreInTheWay(t *testing.T) {
	t.Parallel()
	p := chained(five)
	pool := database(t, p)
	m := newMember(t, pool, routers.Projector([]handlers.Projection{p}))
	m.handles(t, onBus(t, 0, valued(4), valued(5), valued(6))...)
	letter := lettersOf(t, pool)[0]
	box := replays(pool, chained(nothing))
	_, err := box.Replay(t.Context(), letter.ID, deadletter.Edit{})
	require.ErrorIs(t, err, deadletter.ErrNeedsRebuild)
	require.ErrorContains(t, err, "platform rebuild chained --aggregate device-7")
	_, count := state(t, pool, "chained", "device-7")
	require.EqualValues(t, 2, count)
	_, err = pool.Exec(t.Context(), `UPDATE projections SET position = 4`) // as if nothing newer had been applied
	require.NoError(t, err)
	_, err = box.Replay(t.Context(), letter.ID, deadletter.Edit{})
	require.NoError(t, err)
	_, count = state(t, pool, "chained", "device-7")
	require.EqualValues(t, 3, count)
}

// An edit can mend an event, but not make another one of it or move it.
func TestAnEditCannotMoveAnEvent(t *testing.T) {
	t.Parallel()
	p := summed(five)
	pool := database(t, p)
	m := newMember(t, pool, routers.Projector([]handlers.Projection{p}))
	e := valued(5)
	stranger := envelope7(0)
	garbage := onBus(t, 2, envelope7(0))[0]
	garbage.Value = []byte("{")
	m.handles(t, append(onBus(t, 0, e, stranger), garbage)...)
	list := lettersOf(t, pool)
	require.Len(t, list, 3)
	box := replays(pool, p)
	for i, want := range []string{"the reducer refuses it", "metadata.position", "not valid JSON"} {
		_, err := box.Replay(t.Context(), list[i].ID, deadletter.Edit{})
		require.ErrorContains(t, err, want)
		require.True(t, fault.IsPermanent(err))
	}
	edited := e
	edited.ID = uuid.New()
	_, err := box.Replay(t.Context(), list[0].ID, deadletter.Edit{Payload: marshal(t, edited)})
	require.ErrorContains(t, err, "event_id: must stay "+e.ID.String())
	edited.ID, edited.Metadata.Position, edited.Payload = e.ID, 900, []byte(`{"value":7}`)
	_, err = box.Replay(t.Context(), list[0].ID, deadletter.Edit{Payload: marshal(t, edited)})
	require.NoError(t, err)
	position := func() (n int64) {
		require.NoError(t, pool.QueryRow(t.Context(), `SELECT position FROM projections WHERE aggregate_id = 'device-7'`).Scan(&n))
		return n
	}
	require.EqualValues(t, 5, position(), "that of the letter")
	mended := envelope7(800)
	_, err = box.Replay(t.Context(), list[2].ID, deadletter.Edit{Payload: marshal(t, mended)})
	require.NoError(t, err)
	require.EqualValues(t, 5, position(), "nobody knows it")
	_, count := state(t, pool, "chained", "device-7")
	require.EqualValues(t, 2, count)
	all, dead := account(t, pool, routers.Eventhandler)
	require.Equal(t, []int{1, 0}, []int{all, dead}, "what is not in the log is not counted")
}

// A reducer that panics refuses the letter, with its stack, and undoes what it did.
func TestAReplayThatPanicsIsRefused(t *testing.T) {
	t.Parallel()
	p := summed(five)
	pool := database(t, p)
	newMember(t, pool, routers.Projector([]handlers.Projection{p})).handles(t, onBus(t, 0, valued(5))...)
	p.Reduce = func(handlers.State, *event.Envelope) (handlers.State, error) {
		explode()
		return handlers.State{}, nil
	}
	_, err := replays(pool, p).Replay(t.Context(), lettersOf(t, pool)[0].ID, deadletter.Edit{})
	var refused *deadletter.RefusedError
	require.ErrorAs(t, err, &refused)
	require.ErrorContains(t, err, "the handler panicked: the roof is on fire\ngoroutine")
	_, dead := account(t, pool, routers.Eventhandler)
	require.Equal(t, 1, dead)
}

func TestReplayIngestionReadsAsTheRouterDoes(t *testing.T) {
	t.Parallel()
	l := &deadletter.Letter{Entry: deadletter.Entry{
		ID: uuid.New(), Consumer: routers.Ingestion, Payload: []byte(`{"value":"x","unit":"c"}`), Topic: "devices/device-7/events/sensor.reading", FailedAt: came,
		Properties: map[string]string{event.MetaCorrelationID: "c-7"},
	}}
	_, err := routers.ReplayIngestion(event.Clock{MaxAhead: time.Minute})(l)
	require.ErrorContains(t, err, "payload.value")
	require.True(t, fault.IsPermanent(err))

	l.EditedBytes = []byte(`{"value":1,"unit":"c"}`)
	e, err := routers.ReplayIngestion(event.Clock{MaxAhead: time.Minute})(l)
	require.NoError(t, err)
	again, err := routers.ReplayIngestion(event.Clock{MaxAhead: time.Minute})(l)
	require.NoError(t, err)
	require.Equal(t, e, again, "the same event each time")
	require.Equal(t, uuid.Version(7), e.ID.Version())
	require.Equal(t, came.UnixMilli(), time.Unix(e.ID.Time().UnixTime()).UnixMilli())
	require.Equal(t, came, e.Time, "when it came, not when it is replayed")
	require.Equal(t, "c-7", e.Metadata.CorrelationID)
	require.Equal(t, "mqtt", e.Metadata.Source)

	id := uuid.New()
	l.Properties = map[string]string{event.MetaEventID: id.String(), event.MetaEventTime: "2026-01-01T00:00:00Z"}
	e, err = routers.ReplayIngestion(event.Clock{MaxAhead: time.Minute})(l)
	require.NoError(t, err)
	require.Equal(t, id, e.ID)
	require.Equal(t, 2026, e.Time.Year())
	l.Properties[event.MetaEventTime] = came.Add(time.Hour).Format(time.RFC3339)
	e, err = routers.ReplayIngestion(event.Clock{MaxAhead: time.Minute})(l)
	require.NoError(t, err)
	require.Equal(t, came, e.Time, "it is now later than that, and the message came before")
	require.Equal(t, event.ClockAhead, e.Metadata.Clock)
	l.Properties[event.MetaEventTime] = "yesterday"
	_, err = routers.ReplayIngestion(event.Clock{MaxAhead: time.Minute})(l)
	require.ErrorContains(t, err, "event_time")

	l.EditedTopic, l.EditedBytes = "events", []byte(`{"event_id":"`+id.String()+`","event_type":"a.b","aggregate_id":"x","event_time":"2026-01-01T00:00:00Z","payload":{}}`)
	e, err = routers.ReplayIngestion(event.Clock{MaxAhead: time.Minute})(l)
	require.NoError(t, err, "an envelope says everything itself")
	require.Equal(t, "a.b", e.Type)
}

func TestReplayRelay(t *testing.T) {
	t.Parallel()
	e := envelope7(7)
	l := &deadletter.Letter{Entry: deadletter.Entry{ID: uuid.New(), Consumer: routers.Relay, EventID: e.ID, Payload: marshal(t, e), Position: 7, FailedAt: came}}
	read, err := routers.ReplayRelay(l)
	require.NoError(t, err)
	require.Equal(t, e.ID, read.ID)
	l.EditedBytes = marshal(t, envelope7(7))
	_, err = routers.ReplayRelay(l)
	require.ErrorContains(t, err, "event_id: must stay")
	l.EditedBytes = []byte("null")
	_, err = routers.ReplayRelay(l)
	require.Error(t, err)
	require.True(t, fault.IsPermanent(err))
}
