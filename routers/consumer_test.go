package routers_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/handlers"
	"github.com/cornjacket/platform-services/internal/pgtest"
	"github.com/cornjacket/platform-services/migrations"
	"github.com/cornjacket/platform-services/pubsub/batch"
	"github.com/cornjacket/platform-services/routers"
	"github.com/cornjacket/platform-services/store"
)

// member is one of a group, which has both partitions of sensor-events.
type member[T any] struct {
	pool      *pgxpool.Pool
	consumer  routers.Consumer[T]
	positions *store.Positions
}

var bothPartitions = []store.Partition{{Topic: event.TopicSensor, Partition: 0}, {Topic: event.TopicSensor, Partition: 1}}

// database returns a pool on a fresh database with all tables, and a version of each projection.
func database(t *testing.T, projections ...handlers.Projection) *pgxpool.Pool {
	t.Helper()
	pool := pgtest.Pool(t, "")
	db := stdlib.OpenDBFromPool(pool)
	defer func() { require.NoError(t, db.Close()) }()
	for _, service := range migrations.Services() {
		_, err := migrations.Up(t.Context(), db, service)
		require.NoError(t, err)
	}
	_, err := pool.Exec(t.Context(), tallyTable)
	require.NoError(t, err)
	types := make([]string, len(projections))
	for i, p := range projections {
		types[i] = p.Type
	}
	_, err = store.EnsureVersions(t.Context(), pool, routers.Eventhandler, types)
	require.NoError(t, err)
	return pool
}

func newMember[T any](t *testing.T, pool *pgxpool.Pool, c routers.Consumer[T]) *member[T] {
	t.Helper()
	m := &member[T]{pool: pool, consumer: c, positions: store.NewPositions(pool, c.Name)}
	_, err := m.positions.Claim(t.Context(), nil, bothPartitions)
	require.NoError(t, err)
	return m
}

// handles runs records through the member's router until all are done.
func (m *member[T]) handles(t *testing.T, records ...batch.Record) {
	t.Helper()
	f := newFeed()
	f.sender.Again = func(rest []batch.Record) []batch.Record { // what others have is theirs, as on the bus
		if !m.positions.Claimed(bothPartitions[0]) {
			return nil
		}
		return rest
	}
	r, err := routers.NewConsumer(m.consumer, routers.ConsumerConfig{
		Stack: stack(), Subscriber: f, Pool: m.pool, Positions: m.positions, Now: func() time.Time { return came },
	})
	require.NoError(t, err)
	through(t, f, r, records...)
}

// onBus returns events as records of the bus, in the partitions of their aggregates; offsets go on from first.
func onBus(t *testing.T, first int64, events ...event.Envelope) (all []batch.Record) {
	t.Helper()
	for i, e := range events {
		all = append(all, batch.Record{
			Topic: event.TopicSensor, Partition: int32(e.AggregateID[len(e.AggregateID)-1] & 1), Offset: first + int64(i),
			Key: e.AggregateID, ID: e.ID.String(), Value: marshal(t, e),
			Headers: []batch.Header{{Key: event.MetaEventType, Value: e.Type}, {Key: event.MetaCorrelationID, Value: e.Metadata.CorrelationID}},
		})
	}
	return all
}

// account returns what the ledger counts of a consumer.
func account(t *testing.T, pool *pgxpool.Pool, consumer string) (events, dead int) {
	t.Helper()
	require.NoError(t, pool.QueryRow(t.Context(), `SELECT coalesce(sum(events), 0), coalesce(sum(dead), 0) FROM consumer_positions
		WHERE consumer = $1`, consumer).Scan(&events, &dead))
	return events, dead
}

// state returns the state of a projection and how many events it is made of; both are zero if there is no row.
func state(t *testing.T, pool *pgxpool.Pool, projectionType, aggregate string) (state string, events int64) {
	t.Helper()
	p, err := store.NewReader(pool, pool).Projection(t.Context(), projectionType, aggregate)
	if err != nil {
		return "", 0
	}
	return string(p.State), p.EventCount
}

// Records come again, as from a relay that crashed or to a member that has lost track: each event counts once, in order.
func TestTheConsumerAppliesEachEventOnce(t *testing.T) {
	t.Parallel()
	p := chained(nothing)
	pool := database(t, p)
	events := talliedEvents(t, 120)
	m := newMember(t, pool, routers.Projector([]handlers.Projection{p}))
	m.handles(t, onBus(t, 0, events[:80]...)...)
	m.handles(t, onBus(t, 80, events[40:100]...)...) // the cursor was behind
	next := newMember(t, pool, routers.Projector([]handlers.Projection{p}))
	next.handles(t, onBus(t, 0, events[:110]...)...) // from the beginning
	m.handles(t, onBus(t, 110, events[110:]...)...)  // it does not know yet that it has been relieved
	next.handles(t, onBus(t, 110, events[110:]...)...)

	var want struct{ Chain, Count uint32 }
	for value := range uint32(10) {
		want.Chain, want.Count = want.Chain*31+value, want.Count+1
	}
	for i := range talliedAggregates {
		got, count := state(t, pool, "chained", fmt.Sprint("device-", i))
		require.JSONEq(t, fmt.Sprintf(`{"Chain":%d,"Count":%d}`, want.Chain, want.Count), got)
		require.EqualValues(t, 10, count)
	}
	all, dead := account(t, pool, routers.Eventhandler)
	require.Equal(t, []int{120, 0}, []int{all, dead})
	require.Empty(t, lettersOf(t, pool))
}

// kept is a dead letter as it is in the table.
type kept struct {
	ID       uuid.UUID
	EventID  *uuid.UUID
	Payload  []byte
	Reason   string
	Retries  int
	Offset   int64
	Position *int64
	Key, Bus string
}

func lettersOf(t *testing.T, pool *pgxpool.Pool) []kept {
	t.Helper()
	rows, err := pool.Query(t.Context(), `SELECT dlq_id, event_id, event_payload, error_message, retry_count, source_offset, position, message_key, bus_topic
		FROM dlq ORDER BY source_offset`)
	require.NoError(t, err)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[kept])
	require.NoError(t, err)
	return list
}

// Of a batch those records become dead letters that can never be applied, each alone and once. What has come through the
// log is counted, and no other.
func TestTheConsumersDeadLetters(t *testing.T) {
	t.Parallel()
	p := chained(func(value int) bool { return value == 1 })
	reduce := p.Reduce
	p.Reduce = func(s handlers.State, e *event.Envelope) (handlers.State, error) {
		if e.AggregateID == "cursed-1" {
			explode()
		}
		return reduce(s, e)
	}
	pool := database(t, p)
	events := talliedEvents(t, 24) // of each of 12 aggregates the second one is refused
	cursed, stranger := envelope7(25), envelope7(0)
	cursed.AggregateID, stranger.AggregateID = "cursed-1", "device-3"
	unconcerned := envelope7(26)
	unconcerned.Type = "user.login"
	records := onBus(t, 0, append(events, cursed, stranger, unconcerned)...)
	garbage := batch.Record{Topic: event.TopicSensor, Partition: 0, Offset: 27, Key: "device-4", ID: "r", Value: []byte("\x00\xff{\"not\": an event")}
	records = append(records, garbage)
	m := newMember(t, pool, routers.Projector([]handlers.Projection{p}))
	m.handles(t, records...)
	m.handles(t, records...)

	list := lettersOf(t, pool)
	require.Len(t, list, 12+3)
	for i, l := range list[:12] {
		e := events[12+i]
		require.Equal(t, kept{
			ID: l.ID, EventID: &e.ID, Payload: marshal(t, e), Reason: fmt.Sprintf("eventhandler: apply event %s to chained: the reducer refuses it", e.ID),
			Offset: int64(12 + i), Position: &e.Metadata.Position, Key: e.AggregateID, Bus: "sensor-events.dlq",
		}, l)
	}
	require.Contains(t, list[12].Reason, "the roof is on fire")
	require.Contains(t, list[12].Reason, "routers_test.explode", "the stack")
	require.Equal(t, retryMax, list[12].Retries)
	require.Contains(t, list[13].Reason, "metadata.position")
	require.Equal(t, &stranger.ID, list[13].EventID)
	require.Nil(t, list[13].Position)
	require.Contains(t, list[14].Reason, "read event")
	require.Nil(t, list[14].EventID)
	require.Equal(t, garbage.Value, list[14].Payload, "the bytes as they came")
	for i := range talliedAggregates {
		got, count := state(t, pool, "chained", fmt.Sprint("device-", i))
		require.JSONEq(t, `{"Chain":0,"Count":1}`, got)
		require.EqualValues(t, 1, count)
	}
	all, dead := account(t, pool, routers.Eventhandler)
	require.Equal(t, []int{26, 13}, []int{all, dead}, "also the one that concerns no projection")
}

// While something is away nothing is counted or given up, and a conflict does not go back to the source.
func TestTheConsumerTriesAgain(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		err   error
		fails int
		late  bool // after the effect was made
	}{
		"outage": {errors.New("connection refused"), 2, false}, "outage after the effect": {errors.New("connection refused"), 2, true},
		"conflict": {fmt.Errorf("row: %w", store.ErrConflict), 4, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool, calls, c := database(t), 0, tally()
			apply := c.Apply
			c.Apply = func(ctx context.Context, tx pgx.Tx, items []reading) error {
				calls++
				if calls > tc.fails {
					return apply(ctx, tx, items)
				}
				if tc.late {
					require.NoError(t, apply(ctx, tx, items))
				}
				return tc.err
			}
			outcomes := 0
			c.Done = func(committed bool, _ time.Duration) time.Duration {
				outcomes++
				require.Equal(t, outcomes > tc.fails, committed)
				return 0
			}
			newMember(t, pool, c).handles(t, onBus(t, 0, talliedEvents(t, 24)...)...)
			require.Equal(t, tc.fails+1, calls)
			require.Equal(t, calls, outcomes)
			var rows, sum int
			require.NoError(t, pool.QueryRow(t.Context(), `SELECT count(*), sum(count) FROM tally`).Scan(&rows, &sum))
			require.Equal(t, []int{12, 24}, []int{rows, sum})
			all, dead := account(t, pool, "tally")
			require.Equal(t, []int{24, 0}, []int{all, dead})
			require.Empty(t, lettersOf(t, pool))
		})
	}
}

// Where a dead letter can't be stored, its whole batch has had no effect.
func TestTheConsumersDeadLettersAreOfItsTransaction(t *testing.T) {
	t.Parallel()
	p := chained(func(value int) bool { return value == 1 })
	pool := database(t, p)
	_, err := pool.Exec(t.Context(), `CREATE SEQUENCE tries; CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		IF nextval('tries') <= 2 THEN RAISE EXCEPTION 'disk full' USING ERRCODE = '53100'; END IF; RETURN NEW; END $$;
		CREATE TRIGGER fault BEFORE INSERT ON dlq FOR EACH ROW EXECUTE FUNCTION fault()`)
	require.NoError(t, err)
	var events []event.Envelope
	for i, e := range talliedEvents(t, 36) {
		if i%talliedAggregates == 0 {
			events = append(events, e)
		}
	}
	newMember(t, pool, routers.Projector([]handlers.Projection{p})).handles(t, onBus(t, 0, events...)...)
	require.Len(t, lettersOf(t, pool), 1)
	got, count := state(t, pool, "chained", "device-0")
	require.JSONEq(t, `{"Chain":2,"Count":2}`, got)
	require.EqualValues(t, 2, count)
	all, dead := account(t, pool, routers.Eventhandler)
	require.Equal(t, []int{3, 1}, []int{all, dead})
}

// The projections of the platform are the newest event's payload, whatever order events arrive in. One without a table
// is left out.
func TestTheProjectionsOfThePlatform(t *testing.T) {
	t.Parallel()
	all := handlers.Projections()
	pool := database(t, all[0], all[1], all[2])
	var events []event.Envelope
	for i, second := range []int{3, 0, 5, 1, 4, 2} {
		e := envelope7(int64(i + 1))
		e.Time = came.Add(time.Duration(second) * time.Second)
		e.Payload = jsontext.Value(fmt.Sprintf(`{"value":%d}`, second))
		events = append(events, e)
	}
	for i, eventType := range []string{"user.login", "device.status", "ai.anomaly", "system.alert"} {
		e := envelope7(int64(7 + i))
		e.Type, e.Payload = eventType, jsontext.Value(`{}`)
		events = append(events, e)
	}
	newMember(t, pool, routers.Projector(nil)).handles(t, onBus(t, 0, events...)...)
	p, err := store.NewReader(pool, pool).Projection(t.Context(), "sensor_state", "device-7")
	require.NoError(t, err)
	require.JSONEq(t, `{"value":5}`, string(p.State))
	require.Equal(t, events[2].ID, p.LastEventID)
	require.Equal(t, events[2].Time, p.LastEventTimestamp)
	require.EqualValues(t, 6, p.EventCount, "also those that are older than the state")
	require.EqualValues(t, 6, p.Position)
	for projectionType, want := range map[string]int64{"user_session": 1, "device_status": 1, "anomaly": 0} {
		_, count := state(t, pool, projectionType, "device-7")
		require.Equal(t, want, count, projectionType)
	}
	applied, dead := account(t, pool, routers.Eventhandler)
	require.Equal(t, []int{10, 0}, []int{applied, dead})
}

// valued is an event of device-7 whose position and value are the same.
func valued(position int64) event.Envelope {
	e := envelope7(position)
	data, err := json.Marshal(map[string]int64{"value": position})
	if err != nil {
		panic(err)
	}
	e.Payload = data
	return e
}
