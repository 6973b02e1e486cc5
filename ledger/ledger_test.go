package ledger_test

import (
	"context"
	"fmt"
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

const eventhandler = "eventhandler"

// eachDatabase runs a test with the consumer's tables in the database of the log, and in another one.
func eachDatabase(t *testing.T, test func(t *testing.T, f *fixture, c *consumer)) {
	t.Parallel()
	for _, apart := range []bool{false, true} {
		t.Run(fmt.Sprintf("apart=%v", apart), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			var pool *pgxpool.Pool
			if apart {
				pool = database(t)
			}
			test(t, f, f.consumer(eventhandler, pool, event.TopicSensor, event.TopicUser))
		})
	}
}

func TestTheLedgerOfAnEmptyPlatformBalances(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.consumer(eventhandler, nil, event.TopicSensor)
	l := f.balanced()
	require.Zero(t, l.Accepted)
	require.Equal(t, map[string]int64{"outbox": 0, "relay": 0, eventhandler: 0}, l.Pending)
	require.Contains(t, l.DeadLettered, "ingestion")
}

func TestTheLedgerSaysWhereEventsAre(t *testing.T) {
	eachDatabase(t, func(t *testing.T, f *fixture, c *consumer) {
		f.log("sensor.reading", "a", 10)
		f.log("user.login", "b", 4)
		f.log("system.alert", "c", 3)
		f.publish(17)
		c.run(17)
		l := f.balanced()
		require.Equal(t, []int64{17, 17, 17, 14}, []int64{l.Accepted, l.Sequenced, l.Published, l.Applied[eventhandler]})

		f.do(f.events, `UPDATE relay_cursor SET duplicates = 2`)
		f.accept(3)
		f.log("sensor.reading", "a", 5) // 18 to 22
		f.publish(20)
		l = f.ledger()
		require.False(t, l.Balanced)
		require.Equal(t, []int64{27, 2, 22, 20}, []int64{l.Accepted, l.Duplicates, l.Sequenced, l.Published})
		require.Equal(t, map[string]int64{"outbox": 3, "relay": 2, eventhandler: 3}, l.Pending)
		require.EqualValues(t, 5, l.Lag["relay"].Events)
		require.EqualValues(t, 3, l.Lag[eventhandler].Events)
		require.InDelta(t, 90, l.Lag["relay"].Seconds, 30)
		require.InDelta(t, 90, l.Lag[eventhandler].Seconds, 30)
		var stages []string
		for _, m := range l.Missing {
			stages = append(stages, m.Stage)
		}
		require.Equal(t, []string{"outbox", "relay", eventhandler}, stages)

		c.run(22) // the cursor is behind what the consumer has
		l = f.ledger()
		require.EqualValues(t, 22, l.Published, "what has been handled has been published")
		require.Equal(t, map[string]int64{"outbox": 3, "relay": 0, eventhandler: 0}, l.Pending)

		f.publish(22)
		f.do(f.events, `DELETE FROM outbox`)
		f.balanced()
	})
}

// Projections are of no account: what an event changes is the consumer's business, and it handles each event once.
func TestTwoProjectionsOnOneTopic(t *testing.T) {
	eachDatabase(t, func(t *testing.T, f *fixture, c *consumer) {
		f.log("sensor.reading", "a", 6)
		f.publish(6)
		c.run(6)
		for _, projection := range []string{"sensor_state", "sensor_extremes"} {
			f.do(c.Pool, `INSERT INTO projections (projection_type, aggregate_id, state, last_event_id, last_event_timestamp, position)
				VALUES ($1, 'a', '{}', $2, now(), 6)`, projection, id(6))
		}
		require.EqualValues(t, 6, f.balanced().Applied[eventhandler])
	})
}

func TestConsumersOfAllKinds(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	both := f.consumer(eventhandler, nil, event.TopicSensor, event.TopicUser)
	series := f.consumer("tsdb", database(t), event.TopicSensor) // in a database of its own
	alarms := f.consumer("alarms", series.Pool, event.TopicSystem)
	alarms.Skips = func(eventType string) string { // of some types only
		if eventType != "action.fired" {
			return "no alarm"
		}
		return ""
	}
	f.log("sensor.reading", "a", 5)
	f.log("user.login", "b", 3)
	f.log("action.fired", "c", 2)
	f.log("ai.anomaly", "d", 4)
	f.publish(14)
	for _, c := range f.consumers {
		c.run(14)
	}
	l := f.balanced()
	require.Equal(t, map[string]int64{eventhandler: 8, "tsdb": 5, "alarms": 6}, l.Applied)
	require.EqualValues(t, 8, l.Consumers[0].Published)

	late := f.consumer("late", database(t), event.TopicSensor, event.TopicSystem)
	l, detail := f.oneMissing("late", 11) // added later, it has all before it
	require.Contains(t, detail, "yet")
	require.EqualValues(t, 11, l.Lag["late"].Events)
	require.InDelta(t, 90, l.Lag["late"].Seconds, 30)
	late.run(6) // on its way
	f.oneMissing("late", 6)
	late.run(14)
	f.balanced()

	f.log("sensor.reading", "b", 7)
	f.publish(21)
	both.run(21)
	late.run(21)
	f.oneMissing("tsdb", 7)
	series.run(21)
	f.balanced()
}

// The age is that of the oldest event that waits, wherever it stands in the log.
func TestWhoIsBehindIsNamedWithItsAge(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	sensors := f.consumer(eventhandler, nil, event.TopicSensor)
	users := f.consumer("users", nil, event.TopicUser)
	f.log("sensor.reading", "a", 10)
	f.log("user.login", "a", 1)
	f.logAt("user.login", "a", 1, time.Hour)
	f.log("user.logout", "d", 3)
	stuck := f.logAt("sensor.reading", "b", 1, 2*time.Hour)
	f.log("sensor.reading", "a", 30)
	f.log("sensor.reading", "b", 2)
	f.publish(f.n)
	sensors.run(f.n, 0) // partition 1 is stuck, 2 and 3 have never had an event
	users.run(11)
	l := f.ledger()
	require.Equal(t, []int64{3, 4}, []int64{l.Pending[eventhandler], l.Pending["users"]})
	require.InDelta(t, 7200, l.Lag[eventhandler].Seconds, 60)
	require.InDelta(t, 3600, l.Lag["users"].Seconds, 60)
	for _, m := range l.Missing {
		require.Contains(t, m.Detail, "yet")
	}
	sensors.run(stuck)
	sensors.run(f.n, 1)
	users.run(f.n)
	f.balanced()
}

func TestWhatIsLostIsNamed(t *testing.T) {
	eachDatabase(t, func(t *testing.T, f *fixture, c *consumer) {
		f.log("sensor.reading", "a", 10)
		f.log("user.login", "b", 4)
		f.publish(14)
		c.run(8)
		c.handles(event.TopicSensor, 0, 9, 0, 0) // passed, and not handled
		c.run(14)
		l, detail := f.oneMissing(eventhandler, 1)
		require.Contains(t, detail, "lost")
		require.Zero(t, l.Lag[eventhandler].Seconds, "nothing is known to wait")

		f.log("sensor.reading", "d", 2) // what is on its way besides makes no secret of it
		f.publish(16)
		_, detail = f.oneMissing(eventhandler, 3)
		require.NotContains(t, detail, "lost")
		c.run(16)
		f.oneMissing(eventhandler, 1)
	})
}

func TestWhatIsAppliedTwiceIsNamed(t *testing.T) {
	eachDatabase(t, func(t *testing.T, f *fixture, c *consumer) {
		f.log("sensor.reading", "a", 10)
		f.log("user.login", "b", 4)
		f.publish(14)
		c.run(14)
		c.handles(event.TopicSensor, 0, 10, 1, 0)
		l, detail := f.oneMissing(eventhandler, -1)
		require.Contains(t, detail, "twice")
		require.EqualValues(t, -1, l.Pending[eventhandler])
		require.Zero(t, l.Lag[eventhandler].Events)

		c.handles(event.TopicUser, 1, 14, -1, 0) // lacks on one topic what it has too much on the other
		l = f.ledger()
		require.Len(t, l.Missing, 2)
		require.False(t, l.Balanced)
	})
}

// Each event ends once: applied, or as a dead letter however many rows that has.
func TestTheLedgerCountsDeadLettersAsEvents(t *testing.T) {
	eachDatabase(t, func(t *testing.T, f *fixture, c *consumer) {
		f.log("sensor.reading", "a", 10)
		f.publish(10)
		c.run(10)
		c.handles(event.TopicSensor, 0, 10, 0, 2)
		f.refuse(c.Pool, eventhandler, id(1), 1, "pending")
		f.refuse(c.Pool, eventhandler, id(2), 2, "discarded")
		f.refuse(c.Pool, eventhandler, uuid.New(), 50, "pending") // somebody else's record: not counted
		l := f.balanced()
		require.EqualValues(t, 8, l.Applied[eventhandler])
		require.EqualValues(t, 2, l.Consumers[0].DeadLettered)
		require.Equal(t, ledger.DeadLetterCounts{Pending: 2, Discarded: 1}, l.DeadLettered[eventhandler])
		c.handles(event.TopicSensor, -1, 0, 0, -1) // replayed
		l = f.balanced()
		require.EqualValues(t, 9, l.Applied[eventhandler])
	})
}

// What the bus will not get is not expected behind it.
func TestDeadLettersOfTheRelay(t *testing.T) {
	eachDatabase(t, func(t *testing.T, f *fixture, c *consumer) {
		f.log("user.login", "a", 2)
		f.refuse(f.events, "relay", id(1), 1, "pending")
		f.refuse(f.events, "relay", uuid.New(), 7, "pending") // the log could not hold these two
		f.refuse(f.events, "relay", uuid.New(), 8, "discarded")
		f.refuse(f.events, "relay", uuid.New(), 9, "replayed") // it is in the log by now
		f.refuse(f.events, "ingestion", uuid.New(), 1, "pending")
		f.oneMissing("relay", 1) // one has not passed yet, the other was refused already
		f.publish(2)
		c.handles(event.TopicUser, 0, 2, 1, 0)
		l := f.balanced()
		require.Equal(t, []int64{4, 2, 1}, []int64{l.Accepted, l.Sequenced, l.Published})
		require.EqualValues(t, 1, l.Topics[1].DeadLettered)
		f.do(f.events, `UPDATE dlq SET status = 'replayed' WHERE consumer = 'relay' AND source_offset = 1`)
		f.oneMissing(eventhandler, 1)
	})
}

// An event that the bus refuses is no event that waits for a consumer.
func TestAgesLeaveOutWhatTheBusRefuses(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := f.consumer(eventhandler, nil, event.TopicSensor)
	f.logAt("sensor.reading", "b", 1, 10*time.Hour)
	f.refuse(f.events, "relay", id(1), 1, "pending")
	f.do(f.events, `UPDATE dlq SET position = 1`)
	f.log("sensor.reading", "a", 3)
	f.publish(4)
	c.handles(event.TopicSensor, 0, 3, 2, 0)
	c.handles(event.TopicSensor, partitions-1, 0, 0, 0)
	l, _ := f.oneMissing(eventhandler, 1)
	require.InDelta(t, 90, l.Lag[eventhandler].Seconds, 30)
}

// However events move while it reads, the ledger never has more behind a stage than before it.
func TestTheLedgerOfAMovingPlatform(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := f.consumer(eventhandler, database(t), event.TopicSensor)
	other := f.consumer("other", nil, event.TopicSensor)
	ctx, cancel := context.WithCancel(t.Context())
	var moving sync.WaitGroup
	moving.Go(func() {
		for ctx.Err() == nil && f.n < 3000 {
			last := f.log("sensor.reading", "a", 3)
			c.handles(event.TopicSensor, 0, last, 3, 0)
			if last%5 == 0 {
				f.publish(last)
			}
			other.handles(event.TopicSensor, 0, last, 3, 0)
		}
	})
	defer moving.Wait()
	defer cancel()
	for range 40 {
		l := f.ledger()
		for stage, n := range l.Pending {
			require.GreaterOrEqual(t, n, int64(0), stage)
		}
		for _, m := range l.Missing {
			require.NotContains(t, m.Detail, "lost")
		}
	}
}

func TestTheLedgerIsReadOnceASecond(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.consumer(eventhandler, nil, event.TopicSensor)
	r := f.reader(nil)
	first, err := r.Ledger(t.Context())
	require.NoError(t, err)
	again, err := r.Ledger(t.Context())
	require.NoError(t, err)
	require.Equal(t, first.At, again.At)
	require.Eventually(t, func() bool {
		later, err := r.Ledger(t.Context())
		return err == nil && later.At.After(first.At)
	}, 20*time.Second, 20*time.Millisecond)
}

func TestTheLedgerOfALogThatIsAway(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("a server that is stopped and started")
	}
	pg := pgtest.Server(t)
	f := &fixture{t: t, events: pgtest.Pool(t, pg.URL())}
	migrate(t, f.events)
	f.consumer(eventhandler, nil, event.TopicSensor)
	r := f.reader(nil)
	pgtest.Freeze(t, pg)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := r.Ledger(ctx)
	require.ErrorIs(t, err, fault.ErrUnavailable)
	pgtest.Thaw(t, pg)
	require.Eventually(t, func() bool { _, err := r.Ledger(t.Context()); return err == nil }, 20*time.Second, 20*time.Millisecond)
}

// A consumer whose database is away is named, and hides nobody's numbers.
func TestTheLedgerOfAConsumerThatIsAway(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("servers that are stopped and frozen")
	}
	pg := pgtest.Server(t)
	pool := pgtest.Pool(t, pg.URL())
	migrate(t, pool)
	f := newFixture(t)
	c := f.consumer(eventhandler, nil, event.TopicSensor)
	away := f.consumer("away", pool, event.TopicSensor)
	f.log("sensor.reading", "a", 3)
	f.publish(3)
	c.run(3)
	away.run(3)
	f.balanced()
	found := fakeBus{place: ledger.BusPlace{Partition: 3, Offset: 7, At: time.Now()}}
	pgtest.Freeze(t, pg)
	l, detail := f.oneMissing("away", 0)
	require.Contains(t, detail, "can't be read")
	require.EqualValues(t, 3, l.Applied[eventhandler])
	require.NotContains(t, l.Pending, "away", "nothing is said that is not known")
	require.NotContains(t, l.Applied, "away")
	j := f.journey(id(1), found)
	require.Equal(t, "received done, stored done, published done, applied done, applied unknown", steps(j))
	require.Equal(t, ledger.StepUnknown, j.Status)
	_, err := f.reader(found).Journey(t.Context(), uuid.New())
	require.ErrorIs(t, err, fault.ErrUnavailable, "it may have a dead letter there")
	pgtest.Thaw(t, pg)
	require.Eventually(t, func() bool { return f.ledger().Balanced }, 20*time.Second, 20*time.Millisecond)
	require.Equal(t, ledger.StepDone, f.journey(id(1), found).Status)
}

// What the ledger and journeys read is bounded, however long the log is.
func TestNothingReadsTheWholeLog(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	f := &fixture{t: t, events: pgtest.Pool(t, url)}
	migrate(t, f.events)
	const events = 100_000
	f.do(f.events, `INSERT INTO event_store (event_id, event_type, aggregate_id, event_time, ingested_at, payload, metadata, position)
		SELECT gen_random_uuid(), CASE WHEN n % 1000 = 0 THEN 'user.login' ELSE 'sensor.reading' END, chr(97 + n % 2), now(), now(), '{}', '{}', n
		FROM generate_series(1, $1) AS n`, events)
	f.do(f.events, `ANALYZE event_store`)
	f.do(f.events, `UPDATE relay_cursor SET position = $1, counted = $1`, events)
	f.do(f.events, `INSERT INTO relay_counts VALUES ('sensor-events', $1), ('user-actions', $2)`, events-events/1000, events/1000)
	f.do(f.events, `INSERT INTO dlq (consumer, event_id, event_payload, error_message, source_topic, source_offset, position, bus_topic)
		SELECT 'relay', event_id, '', 'x', 'outbox', position, position, 'x' FROM event_store WHERE position % 2000 = 1`)
	f.do(f.events, `ANALYZE dlq`)
	read := func() (scans, rows int64) {
		require.NoError(t, f.events.QueryRow(t.Context(), `SELECT seq_scan, seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables
			WHERE relname = 'event_store'`).Scan(&scans, &rows))
		return scans, rows
	}
	f.events.Reset() // sessions report what they have done when they end
	var scans, rows int64
	require.Eventually(t, func() bool { scans, rows = read(); return rows >= events/2000 }, 20*time.Second, 20*time.Millisecond)

	pool := pgtest.Pool(t, url)
	g := &fixture{t: t, events: pool}
	behind := g.consumer("behind", nil, event.TopicSensor, event.TopicUser)
	g.consumer("new", nil, event.TopicSensor, event.TopicUser)
	behind.handles(event.TopicSensor, 0, 100, 50, 0)
	behind.handles(event.TopicUser, 1, 2000, 2, 0)
	r := g.reader(fakeBus{})
	var last uuid.UUID
	require.NoError(t, pool.QueryRow(t.Context(), `SELECT event_id FROM event_store WHERE position = 1999`).Scan((*[16]byte)(&last)))
	l, err := r.Ledger(t.Context())
	require.NoError(t, err)
	require.Positive(t, l.Lag["behind"].Events)
	_, err = r.Journey(t.Context(), last)
	require.NoError(t, err)
	pool.Close()
	require.Eventually(t, func() bool { _, now := read(); return now > rows }, 20*time.Second, 20*time.Millisecond)
	nowScans, nowRows := read()
	require.Equal(t, scans, nowScans, "scans of the log")
	require.Less(t, nowRows-rows, int64(events/2), "rows that were read")
}
