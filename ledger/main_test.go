package ledger_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/pgtest"
	"github.com/cornjacket/platform-services/ledger"
	"github.com/cornjacket/platform-services/migrations"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, pgtest.IgnoreServer()) }

// migrate creates the tables of all services in the database of pool.
func migrate(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	db := stdlib.OpenDBFromPool(pool)
	defer func() { require.NoError(t, db.Close()) }()
	for _, service := range migrations.Services() {
		_, err := migrations.Up(t.Context(), db, service)
		require.NoError(t, err)
	}
}

// database returns a pool on a fresh database with all tables.
func database(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool := pgtest.Pool(t, "")
	migrate(t, pool)
	return pool
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// id returns the same UUID for the same number.
func id(n int64) uuid.UUID {
	return uuid.UUID{0: 1, 6: 0x70, 8: 0x80, 13: byte(n >> 16), 14: byte(n >> 8), 15: byte(n)}
}

// fixture is the log of a platform whose relay is played by the test.
type fixture struct {
	t         *testing.T
	events    *pgxpool.Pool
	consumers []*consumer
	n         int64 // newest position
}

// newFixture returns an empty log; nobody reads it.
func newFixture(t *testing.T) *fixture {
	t.Helper()
	return &fixture{t: t, events: database(t)}
}

// partitions is how many each topic has.
const partitions = 4

// partitionOf puts the aggregates a, b, c and d in the partitions 0 to 3.
func partitionOf(aggregateID string, n int) int32 { return int32(aggregateID[0]-'a') % int32(n) } //nolint:gosec // a few

// consumer is one that is played by the test. It handles a topic as its own transaction would: position and counts
// of a partition in one statement.
type consumer struct {
	ledger.Consumer
	f *fixture
}

// consumer adds a reader of topics; a nil pool is the database of the log.
func (f *fixture) consumer(name string, pool *pgxpool.Pool, topics ...string) *consumer {
	if pool == nil {
		pool = f.events
	}
	c := &consumer{ledger.Consumer{Name: name, Pool: pool, Topics: topics, Partition: partitionOf}, f}
	f.consumers = append(f.consumers, c)
	return c
}

func (f *fixture) do(pool *pgxpool.Pool, query string, args ...any) {
	f.t.Helper()
	_, err := pool.Exec(f.t.Context(), query, args...)
	require.NoError(f.t, err)
}

// log stores events of a type about an aggregate that came in 90 seconds ago, and returns the position of the last.
func (f *fixture) log(eventType, aggregateID string, events int) int64 {
	f.t.Helper()
	return f.logAt(eventType, aggregateID, events, 90*time.Second)
}

func (f *fixture) logAt(eventType, aggregateID string, events int, age time.Duration) int64 {
	f.t.Helper()
	var b pgx.Batch
	for range events {
		f.n++
		b.Queue(`INSERT INTO event_store (event_id, event_type, aggregate_id, event_time, ingested_at, payload, metadata, position)
			VALUES ($1, $2, $3, now(), $5, '{}', '{"source":"http","correlation_id":"c"}', $4)`,
			id(f.n), eventType, aggregateID, f.n, time.Now().Add(-age))
	}
	require.NoError(f.t, f.events.SendBatch(f.t.Context(), &b).Close())
	return f.n
}

// stored is what the log says of an event.
type stored struct {
	position        int64
	topic           string
	aggregate, kind string
}

func (f *fixture) stored(after, upTo int64) []stored {
	f.t.Helper()
	rows, err := f.events.Query(f.t.Context(), `SELECT position, event_type, aggregate_id FROM event_store
		WHERE position > $1 AND position <= $2 ORDER BY position`, after, upTo)
	require.NoError(f.t, err)
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (s stored, err error) {
		err = row.Scan(&s.position, &s.kind, &s.aggregate)
		s.topic = event.Topic(s.kind)
		return s, err
	})
	require.NoError(f.t, err)
	return all
}

// publish moves the cursor as the relay does.
func (f *fixture) publish(position int64) {
	f.t.Helper()
	var counted int64
	require.NoError(f.t, f.events.QueryRow(f.t.Context(), `SELECT counted FROM relay_cursor`).Scan(&counted))
	var b pgx.Batch
	for _, e := range f.stored(counted, position) {
		b.Queue(`INSERT INTO relay_counts VALUES ($1, 1) ON CONFLICT (topic) DO UPDATE SET events = relay_counts.events + 1`, e.topic)
	}
	b.Queue(`UPDATE relay_cursor SET position = $1, counted = $1`, position)
	require.NoError(f.t, f.events.SendBatch(f.t.Context(), &b).Close())
}

// accept puts events in the outbox.
func (f *fixture) accept(events int) {
	f.t.Helper()
	for range events {
		f.do(f.events, `INSERT INTO outbox (event_id, event_type, aggregate_id, event_time, ingested_at, payload, metadata)
			VALUES (gen_random_uuid(), 'sensor.reading', 'a', now(), now() - interval '60 s', '{}', '{}')`)
	}
}

// refuse makes a dead letter of an event. Only those of the relay have a position of the log.
func (f *fixture) refuse(pool *pgxpool.Pool, consumer string, eventID uuid.UUID, offset int64, status string) {
	f.t.Helper()
	f.do(pool, `INSERT INTO dlq (consumer, event_id, event_payload, error_message, source_topic, source_offset, bus_topic, status)
		VALUES ($1, $2, $3, 'refused', 'x', $4, 'x.dlq', $5)`, consumer, eventID, fmt.Append(nil, consumer, offset), offset, status)
}

// handles notes that a consumer has come to a position of a partition and has handled so many events more there.
func (c *consumer) handles(topic string, partition int32, position, events, dead int64) {
	c.f.t.Helper()
	c.f.do(c.Pool, `INSERT INTO consumer_positions AS p (consumer, topic, partition, position, events, dead) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (consumer, topic, partition) DO UPDATE SET position = greatest(p.position, excluded.position),
			events = p.events + excluded.events, dead = p.dead + excluded.dead, updated_at = now()`, c.Name, topic, partition, position, events, dead)
}

// run handles what the log has for a consumer, up to a position, of all partitions or of one.
func (c *consumer) run(upTo int64, only ...int32) {
	c.f.t.Helper()
	for _, topic := range c.Topics {
		for p := range int32(partitions) {
			c.handles(topic, p, 0, 0, 0) // it has all of them, whether they have had an event or not
			if len(only) > 0 && p != only[0] {
				continue
			}
			var from int64
			require.NoError(c.f.t, c.Pool.QueryRow(c.f.t.Context(), `SELECT position FROM consumer_positions
				WHERE consumer = $1 AND topic = $2 AND partition = $3`, c.Name, topic, p).Scan(&from))
			var events, last int64
			for _, e := range c.f.stored(from, upTo) {
				if e.topic == topic && partitionOf(e.aggregate, partitions) == p {
					events, last = events+1, e.position
				}
			}
			c.handles(topic, p, last, events, 0)
		}
	}
}

// reader returns a ledger that has read nothing yet.
func (f *fixture) reader(bus ledger.Bus) *ledger.Reader {
	cfg := ledger.Config{Events: f.events, Bus: bus, Now: time.Now}
	for _, c := range f.consumers {
		cfg.Consumers = append(cfg.Consumers, c.Consumer)
	}
	return ledger.NewReader(cfg)
}

func (f *fixture) ledger() ledger.Ledger {
	f.t.Helper()
	l, err := f.reader(nil).Ledger(within(f.t, time.Minute))
	require.NoError(f.t, err)
	return l
}

// balanced requires that nothing waits and nothing is missing.
func (f *fixture) balanced() ledger.Ledger {
	f.t.Helper()
	l := f.ledger()
	require.True(f.t, l.Balanced, "%+v", l.Missing)
	require.Empty(f.t, l.Missing)
	for stage, n := range l.Pending {
		require.Zero(f.t, n, stage)
	}
	return l
}

// oneMissing requires that one stage alone is named.
func (f *fixture) oneMissing(stage string, events int64) (ledger.Ledger, string) {
	f.t.Helper()
	l := f.ledger()
	require.False(f.t, l.Balanced)
	require.Len(f.t, l.Missing, 1, "%+v", l.Missing)
	require.Equal(f.t, stage, l.Missing[0].Stage)
	require.Equal(f.t, events, l.Missing[0].Events)
	return l, l.Missing[0].Detail
}
