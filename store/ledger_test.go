package store_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/internal/pgtest"
	"github.com/cornjacket/platform-services/ledger"
)

// books are the databases of a platform whose relay and event handler are played by the test.
type books struct {
	t                   *testing.T
	events, projections *pgxpool.Pool
	n                   int
}

func newBooks(t *testing.T, databases int) *books {
	t.Helper()
	b := &books{t: t, events: database(t)}
	b.projections = b.events
	if databases == 2 {
		b.projections = database(t)
	}
	return b
}

func (b *books) consumer() ledger.Consumer {
	return ledger.Consumer{
		Name: "eventhandler", Topics: []string{event.TopicSensor, event.TopicUser}, Pool: b.projections,
		Projections: func(eventType string) []string {
			switch event.Topic(eventType) {
			case event.TopicSensor:
				return []string{"sensor_state"}
			case event.TopicUser:
				return []string{"user_session"}
			}
			return nil
		},
	}
}

// ledger reads what a ledger without a cache says.
func (b *books) ledger() ledger.Ledger {
	b.t.Helper()
	l, err := ledger.NewReader(b.events, []ledger.Consumer{b.consumer()}, time.Now).Ledger(within(b.t, time.Minute))
	require.NoError(b.t, err)
	return l
}

func (b *books) do(pool *pgxpool.Pool, query string, args ...any) {
	b.t.Helper()
	_, err := pool.Exec(b.t.Context(), query, args...)
	require.NoError(b.t, err)
}

// log stores events of a type, and returns the position of the last.
func (b *books) log(eventType string, events int) int64 {
	b.t.Helper()
	for range events {
		b.n++
		b.do(b.events, `INSERT INTO event_store (event_id, event_type, aggregate_id, event_time, ingested_at, payload, metadata, position)
			VALUES ($1, $2, 'a', now(), now() - interval '90 s', '{}', '{"source":"http","correlation_id":"c"}', $3)`, id(b.n), eventType, b.n)
	}
	return int64(b.n)
}

// publish moves the cursor as the relay does.
func (b *books) publish(position int64) {
	b.t.Helper()
	b.do(b.events, `UPDATE relay_cursor SET position = $1, counted = $1,
		sensor_events = (SELECT count(*) FROM event_store WHERE position <= $1 AND event_type LIKE 'sensor.%'),
		user_actions = (SELECT count(*) FROM event_store WHERE position <= $1 AND event_type LIKE 'user.%'),
		system_events = (SELECT count(*) FROM event_store WHERE position <= $1 AND event_type NOT LIKE 'sensor.%' AND event_type NOT LIKE 'user.%')`, position)
}

func (b *books) apply(projection string, events int, position int64) {
	b.t.Helper()
	b.do(b.projections, `INSERT INTO projections (projection_type, aggregate_id, state, last_event_id, last_event_timestamp, position, event_count)
		VALUES ($1, 'a', '{}', $2, now(), $3, $4) ON CONFLICT (projection_type, aggregate_id)
		DO UPDATE SET position = excluded.position, event_count = projections.event_count + excluded.event_count`,
		projection, id(int(position)), position, events)
}

// refuse makes a dead letter of the event at a position.
func (b *books) refuse(consumer string, eventID uuid.UUID, offset int64, status string) {
	b.t.Helper()
	pool := b.projections
	if consumer != "eventhandler" {
		pool = b.events
	}
	b.do(pool, `INSERT INTO dlq (consumer, event_id, event_payload, error_message, source_topic, source_offset, bus_topic, status)
		VALUES ($1, $2, $3, 'refused', 'x', $4, 'x.dlq', $5)`, consumer, eventID, fmt.Append(nil, consumer, offset), offset, status)
}

func (b *books) accept(events int) {
	b.t.Helper()
	for range events {
		b.do(b.events, `INSERT INTO outbox (event_id, event_type, aggregate_id, event_time, ingested_at, payload, metadata)
			VALUES (gen_random_uuid(), 'sensor.reading', 'a', now(), now() - interval '60 s', '{}', '{}')`)
	}
}

func TestTheLedgerOfAnEmptyPlatformBalances(t *testing.T) {
	t.Parallel()
	l := newBooks(t, 1).ledger()
	require.True(t, l.Balanced)
	require.Zero(t, l.Accepted)
	require.Empty(t, l.Missing)
	require.Equal(t, map[string]int64{"outbox": 0, "relay": 0, "eventhandler": 0}, l.Pending)
	require.Contains(t, l.DeadLettered, "ingestion")
}

func TestTheLedgerSaysWhereEventsAre(t *testing.T) {
	t.Parallel()
	for _, databases := range []int{1, 2} {
		t.Run(fmt.Sprint(databases), func(t *testing.T) {
			t.Parallel()
			b := newBooks(t, databases)
			b.log("sensor.reading", 10)
			b.log("user.login", 4)
			b.log("system.alert", 3)
			b.publish(17)
			b.apply("sensor_state", 10, 10)
			b.apply("user_session", 4, 14)
			l := b.ledger()
			require.True(t, l.Balanced, "%+v", l)
			require.Equal(t, []int64{17, 17, 17, 14}, []int64{l.Accepted, l.Sequenced, l.Published, l.Applied["eventhandler"]})

			b.do(b.events, `UPDATE relay_cursor SET duplicates = 2`)
			b.accept(3)
			b.log("sensor.reading", 5) // 18 to 22
			b.publish(20)
			l = b.ledger()
			require.False(t, l.Balanced)
			require.Equal(t, []int64{27, 2, 22, 20}, []int64{l.Accepted, l.Duplicates, l.Sequenced, l.Published})
			require.Equal(t, map[string]int64{"outbox": 3, "relay": 2, "eventhandler": 3}, l.Pending)
			require.EqualValues(t, 5, l.Lag["relay"].Events)
			require.EqualValues(t, 3, l.Lag["eventhandler"].Events)
			require.InDelta(t, 90, l.Lag["relay"].Seconds, 30)
			require.InDelta(t, 90, l.Lag["eventhandler"].Seconds, 30)
			var stages []string
			for _, m := range l.Missing {
				stages = append(stages, m.Stage)
			}
			require.Equal(t, []string{"outbox", "relay", "eventhandler"}, stages)

			b.apply("sensor_state", 5, 22) // the cursor is behind what the consumer has
			l = b.ledger()
			require.EqualValues(t, 22, l.Published, "what has been applied has been published")
			require.Equal(t, map[string]int64{"outbox": 3, "relay": 0, "eventhandler": 0}, l.Pending)

			b.publish(22)
			b.do(b.events, `DELETE FROM outbox`)
			require.True(t, b.ledger().Balanced)
			b.apply("sensor_state", 1, 22)
			l = b.ledger()
			require.False(t, l.Balanced, "one was applied twice")
			require.EqualValues(t, -1, l.Pending["eventhandler"])
			require.Contains(t, l.Missing[0].Detail, "twice")
		})
	}
}

// Each event ends once: applied, or as a dead letter however many rows that has.
func TestTheLedgerCountsDeadLettersAsEvents(t *testing.T) {
	t.Parallel()
	for _, databases := range []int{1, 2} {
		t.Run(fmt.Sprint(databases), func(t *testing.T) {
			t.Parallel()
			b := newBooks(t, databases)
			b.log("sensor.reading", 10)
			b.publish(10)
			b.apply("sensor_state", 6, 10)
			b.refuse("eventhandler", id(1), 1, "pending")
			b.refuse("eventhandler", id(1), 101, "pending") // published twice
			b.refuse("eventhandler", id(2), 2, "discarded")
			b.refuse("eventhandler", uuid.New(), 50, "pending") // somebody else's record
			l := b.ledger()
			require.EqualValues(t, 2, l.Pending["eventhandler"])
			require.EqualValues(t, 2, l.Consumers[0].DeadLettered)
			require.Equal(t, ledger.DeadLetterCounts{Pending: 3, Discarded: 1}, l.DeadLettered["eventhandler"])

			b.refuse("eventhandler", id(3), 3, "replayed") // counted as applied
			b.refuse("eventhandler", id(4), 4, "replayed") // so is this, the other of its letters is of no account
			b.refuse("eventhandler", id(4), 104, "pending")
			b.apply("sensor_state", 2, 10)
			require.True(t, b.ledger().Balanced)

			// The relay: one that the bus refuses, and ones that the log could not hold.
			b.log("user.login", 2) // 11 and 12
			b.refuse("relay", id(11), 11, "pending")
			b.refuse("relay", uuid.New(), 7, "pending")
			b.refuse("relay", uuid.New(), 8, "discarded")
			b.refuse("relay", uuid.New(), 9, "replayed") // it is in the log by now
			b.refuse("ingestion", uuid.New(), 1, "pending")
			l = b.ledger()
			require.Equal(t, map[string]int64{"outbox": 0, "relay": 1, "eventhandler": 0}, l.Pending, "not passed yet, and refused already")
			b.publish(12)
			b.apply("user_session", 1, 12)
			l = b.ledger()
			require.True(t, l.Balanced, "%+v", l)
			require.Equal(t, []int64{14, 12, 11}, []int64{l.Accepted, l.Sequenced, l.Published})
			b.do(b.events, `UPDATE dlq SET status = 'replayed' WHERE consumer = 'relay' AND source_offset = 11`)
			l = b.ledger()
			require.EqualValues(t, 12, l.Published)
			require.EqualValues(t, 1, l.Pending["eventhandler"])
		})
	}
}

// However events move while it reads, the ledger never has more behind a stage than before it.
func TestTheLedgerOfAMovingPlatform(t *testing.T) {
	t.Parallel()
	b := newBooks(t, 2)
	ctx, cancel := context.WithCancel(t.Context())
	var moving sync.WaitGroup
	moving.Go(func() {
		for ctx.Err() == nil && b.n < 3000 {
			last := b.log("sensor.reading", 3)
			b.apply("sensor_state", 3, last)
			if last%5 == 0 {
				b.publish(last)
			}
		}
	})
	defer moving.Wait()
	defer cancel()
	for range 40 {
		l := b.ledger()
		for stage, n := range l.Pending {
			require.GreaterOrEqual(t, n, int64(0), stage)
		}
	}
}

func TestTheLedgerIsReadOnceASecond(t *testing.T) {
	t.Parallel()
	b := newBooks(t, 1)
	l := ledger.NewReader(b.events, []ledger.Consumer{b.consumer()}, time.Now)
	first, err := l.Ledger(t.Context())
	require.NoError(t, err)
	again, err := l.Ledger(t.Context())
	require.NoError(t, err)
	require.Equal(t, first.At, again.At)
	require.Eventually(t, func() bool {
		later, err := l.Ledger(t.Context())
		return err == nil && later.At.After(first.At)
	}, 20*time.Second, 20*time.Millisecond)
}

func TestTheLedgerOfADatabaseThatIsAway(t *testing.T) {
	t.Parallel()
	pg := pgtest.Server(t)
	pool := pgtest.Pool(t, pg.URL())
	tables(t, pool)
	b := &books{t: t, events: pool, projections: pool}
	l := ledger.NewReader(pool, []ledger.Consumer{b.consumer()}, time.Now)
	pgtest.Freeze(t, pg)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := l.Ledger(ctx)
	require.ErrorIs(t, err, fault.ErrUnavailable)
	pgtest.Thaw(t, pg)
	require.Eventually(t, func() bool { _, err := l.Ledger(t.Context()); return err == nil }, 20*time.Second, 20*time.Millisecond)
}

// fakeBus knows one record.
type fakeBus struct {
	place ledger.BusPlace
	err   error
}

func (f fakeBus) Find(context.Context, uuid.UUID, string, string, time.Time) (ledger.BusPlace, error) {
	return f.place, f.err
}

func (b *books) journey(eventID uuid.UUID, bus fakeBus) ledger.Journey {
	b.t.Helper()
	j, err := ledger.NewJourneys(b.events, []ledger.Consumer{b.consumer()}, bus).Journey(b.t.Context(), eventID)
	require.NoError(b.t, err)
	return j
}

func steps(j ledger.Journey) string {
	var all []string
	for _, s := range j.Steps {
		all = append(all, s.Stage+" "+s.Status)
	}
	return strings.Join(all, ", ")
}

func TestAJourney(t *testing.T) {
	t.Parallel()
	for _, databases := range []int{1, 2} {
		t.Run(fmt.Sprint(databases), func(t *testing.T) {
			t.Parallel()
			b := newBooks(t, databases)
			at := time.Now().UTC().Truncate(time.Millisecond)
			found := fakeBus{place: ledger.BusPlace{Topic: event.TopicSensor, Partition: 3, Offset: 7, At: at}}
			b.log("sensor.reading", 3)
			b.log("system.alert", 1)

			j := b.journey(id(1), found)
			require.Equal(t, "received done, stored done, published waiting, applied waiting", steps(j))
			require.Equal(t, "relay", j.WaitingAt)
			require.NotNil(t, j.Steps[1].At)
			b.publish(4)
			j = b.journey(id(1), found)
			require.Equal(t, "received done, stored done, published done, applied waiting", steps(j))
			require.Equal(t, []string{"waiting", "eventhandler"}, []string{j.Status, j.WaitingAt})
			require.Equal(t, []any{int32(3), int64(7), at}, []any{*j.Steps[2].Partition, *j.Steps[2].Offset, *j.Steps[2].At})

			b.refuse("eventhandler", id(2), 2, "pending")
			b.apply("sensor_state", 2, 3)
			j = b.journey(id(1), found)
			require.Equal(t, ledger.StepDone, j.Status)
			require.True(t, j.Steps[3].AtLatest, "a later event was applied since")
			j = b.journey(id(3), found)
			require.False(t, j.Steps[3].AtLatest)
			j = b.journey(id(2), found)
			require.Equal(t, "received done, stored done, published done, applied dead_lettered", steps(j))
			require.Equal(t, ledger.StepDeadLettered, j.Status)
			require.Len(t, j.DeadLetters, 1)
			b.do(b.projections, `UPDATE dlq SET status = 'replayed'`)
			require.Equal(t, ledger.StepDone, b.journey(id(2), found).Status)

			j = b.journey(id(4), found)
			require.Equal(t, "received done, stored done, published done, applied skipped", steps(j))
			require.Equal(t, ledger.StepDone, j.Status)

			j = b.journey(id(1), fakeBus{err: errors.New("away")})
			require.Equal(t, "received done, stored done, published unknown, applied done", steps(j))
			require.Equal(t, ledger.StepDone, j.Status)
			j = b.journey(id(1), fakeBus{place: ledger.BusPlace{Partition: 3, Offset: -1, Expired: true}})
			require.Nil(t, j.Steps[2].Offset)
			require.Contains(t, j.Steps[2].Detail, "retention")
		})
	}
}

func TestJourneysThatEndEarly(t *testing.T) {
	t.Parallel()
	b := newBooks(t, 2)
	b.log("user.login", 1)
	b.refuse("relay", id(1), 1, "pending")
	require.Equal(t, "received done, stored done, published dead_lettered, applied waiting", steps(b.journey(id(1), fakeBus{})))

	b.accept(1)
	var waiting uuid.UUID
	require.NoError(t, b.events.QueryRow(t.Context(), `SELECT event_id FROM outbox`).Scan((*[16]byte)(&waiting)))
	j := b.journey(waiting, fakeBus{})
	require.Equal(t, "received done, stored waiting", steps(j))
	require.Equal(t, "outbox", j.WaitingAt)

	refused, setAside := uuid.New(), uuid.New()
	b.refuse("ingestion", refused, 1, "pending")
	j = b.journey(refused, fakeBus{})
	require.Equal(t, "received dead_lettered", steps(j))
	require.Equal(t, ledger.StepDeadLettered, j.Status)
	b.refuse("relay", setAside, 9, "pending")
	require.Equal(t, "stored dead_lettered", steps(b.journey(setAside, fakeBus{})))

	_, err := ledger.NewJourneys(b.events, []ledger.Consumer{b.consumer()}, fakeBus{}).Journey(t.Context(), uuid.New())
	require.ErrorIs(t, err, fault.ErrNotFound)
}
