package routers_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/devstack"
	"github.com/cornjacket/platform-services/internal/kafkatest"
	"github.com/cornjacket/platform-services/internal/pgtest"
	"github.com/cornjacket/platform-services/migrations"
	"github.com/cornjacket/platform-services/pubsub/kafka"
	"github.com/cornjacket/platform-services/routers"
)

// tally is a consumer that is not idempotent: it counts the events of each aggregate, and its chain depends on their order.
// What is lost, applied twice or applied out of order shows.
func tally() routers.Consumer[reading] {
	return routers.Consumer[reading]{
		Name: "tally", Topics: []string{event.TopicSensor},
		Read: func(e *event.Envelope) (reading, error) {
			if e.Type != "sensor.reading" {
				return reading{}, routers.ErrNotConcerned
			}
			var payload struct{ Value int }
			err := json.Unmarshal(e.Payload, &payload)
			return reading{e.AggregateID, payload.Value}, err
		},
		Apply: func(ctx context.Context, tx pgx.Tx, items []reading) error {
			statements := &pgx.Batch{}
			for _, r := range items {
				statements.Queue(`INSERT INTO tally AS t VALUES ($1, 1, $2) ON CONFLICT (aggregate) DO UPDATE
					SET count = t.count + 1, chain = (t.chain * 31 + excluded.chain) % 4294967296`, r.aggregate, r.value)
			}
			return tx.SendBatch(ctx, statements).Close()
		},
	}
}

type reading struct {
	aggregate string
	value     int
}

const tallyTable = `CREATE TABLE tally (aggregate text PRIMARY KEY, count int NOT NULL, chain bigint NOT NULL)`

const (
	talliedAggregates = 12
	talliedEach       = 400 // events of an aggregate
)

// Members, each a process of its own, join, leave, freeze and are killed while events flow, and records come
// again and again as from a relay that crashes: each event has its effect once, in order.
func TestEachEventCountsOnce(t *testing.T) {
	t.Parallel()
	embedded := func(t *testing.T) string {
		k, err := devstack.StartKafka(devstack.KafkaConfig{Addr: "127.0.0.1:0", Log: quiet})
		require.NoError(t, err)
		t.Cleanup(k.Close)
		return k.Addr()
	}
	apache := func(t *testing.T) string { return kafkatest.Start(t).Addr() }
	for name, c := range map[string]struct {
		broker func(t *testing.T) string
		static bool
	}{
		"dynamic members": {embedded, false}, "static members": {embedded, true}, "static members of Apache Kafka": {apache, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			newCrowd(t, c.broker(t), c.static).run(t)
		})
	}
}

// crowd is a group of event handlers and the events that they share.
type crowd struct {
	cfg    memberConfig // of each
	static bool
	pool   *pgxpool.Pool
	random *rand.Rand
	alive  []*memberProcess
	did    map[string]int // disturbances
}

func newCrowd(t *testing.T, broker string, static bool) *crowd {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	url := pgtest.URL(t)
	pool := pgtest.Pool(t, url)
	db := stdlib.OpenDBFromPool(pool)
	for _, service := range []string{"ingestion", "eventhandler"} {
		_, err := migrations.Up(t.Context(), db, service)
		require.NoError(t, err)
	}
	require.NoError(t, db.Close())
	_, err := pool.Exec(t.Context(), tallyTable)
	require.NoError(t, err)
	require.NoError(t, kafka.AwaitTopics(t.Context(), []string{broker}, quiet,
		kafka.TopicConfig{Partitions: 5, Replication: 1}, event.TopicSensor))
	return &crowd{
		cfg: memberConfig{Database: url, Broker: broker, Group: "first"}, static: static, pool: pool,
		random: rand.New(rand.NewPCG(seed, seed)), did: map[string]int{},
	}
}

func (c *crowd) run(t *testing.T) {
	t.Helper()
	pub, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: []string{c.cfg.Broker}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, pub.Close()) })
	events := talliedEvents(t, talliedAggregates*talliedEach)
	var publishing sync.WaitGroup
	seed := c.random.Uint64()
	publishing.Go(func() { relayRepeatedly(t, pub, events, rand.New(rand.NewPCG(seed, seed))) })
	c.join(t)
	for c.applied(t) < len(events)*9/10 {
		c.disturb(t)
	}
	t.Log("disturbances:", c.did)
	publishing.Wait()
	c.complete(t, len(events))
	c.leave(t)

	// A group that starts from the beginning, by what the bus knows, goes on where the consumer is. The last one of each aggregate is new.
	more := talliedEvents(t, len(events)+talliedAggregates)[len(events):]
	require.NoError(t, pub.Publish(event.TopicSensor, records(t, more)...))
	c.cfg.Group = "second"
	c.join(t)
	c.complete(t, len(events)+len(more))
	c.leave(t)
	c.proven(t, talliedEach+1)
}

// talliedEvents are events of all aggregates in turn. The number of an event in its aggregate is its payload.
func talliedEvents(t *testing.T, n int) []event.Envelope { return talliedFrom(t, 0, n) }

// talliedFrom returns n events from the one with a number on.
func talliedFrom(t *testing.T, first, n int) []event.Envelope {
	t.Helper()
	events := make([]event.Envelope, n)
	for at := range events {
		i := first + at
		events[at] = event.Envelope{
			ID: uuid.NewSHA1(uuid.NameSpaceOID, []byte(strconv.Itoa(i))), Type: "sensor.reading",
			AggregateID: fmt.Sprint("device-", i%talliedAggregates), Time: time.Unix(int64(i), 0).UTC(), IngestedAt: time.Unix(int64(i), 0).UTC(),
			Payload:  jsontext.Value(fmt.Sprintf(`{"value":%d}`, i/talliedAggregates)),
			Metadata: event.Metadata{Source: "test", SchemaVersion: 1, Position: int64(i + 1)},
		}
	}
	return events
}

func records(t *testing.T, events []event.Envelope) []*message.Message {
	t.Helper()
	msgs := make([]*message.Message, 0, len(events))
	for _, e := range events {
		data, err := e.Marshal()
		require.NoError(t, err)
		m := message.NewMessage(e.ID.String(), data)
		m.Metadata = message.Metadata{event.MetaAggregateID: e.AggregateID, event.MetaEventType: e.Type}
		msgs = append(msgs, m)
	}
	return msgs
}

// relayRepeatedly publishes events as a relay does that crashes now and then before it has moved its cursor.
func relayRepeatedly(t *testing.T, pub message.Publisher, events []event.Envelope, random *rand.Rand) {
	msgs := records(t, events)
	pace := time.NewTicker(15 * time.Millisecond) // so that events flow while members come and go
	defer pace.Stop()
	for cursor := 0; cursor < len(msgs); {
		<-pace.C
		end := min(cursor+1+random.IntN(30), len(msgs))
		if err := pub.Publish(event.TopicSensor, msgs[cursor:end]...); err != nil {
			t.Error(err)
			return
		}
		cursor = end
		if random.IntN(20) == 0 {
			cursor = max(0, cursor-random.IntN(200))
		}
	}
}

// disturb does each thing to the group once, in any order, and lets some events be applied after each. There is a member
// that runs at all times.
func (c *crowd) disturb(t *testing.T) {
	t.Helper()
	things := []string{"join", "join", "leave", "freeze", "kill", "cut", "cut"}
	c.random.Shuffle(len(things), func(i, j int) { things[i], things[j] = things[j], things[i] })
	for _, thing := range things {
		if len(c.alive) == 1 {
			c.join(t)
		}
		c.did[thing]++
		one := c.random.IntN(len(c.alive))
		switch thing {
		case "join":
			c.join(t)
		case "leave":
			c.alive[one].leave(t)
			c.forget(one)
		case "freeze":
			// The others have its partitions by the time it wakes, and it does not know it yet.
			c.alive[one].signal(t, syscall.SIGSTOP)
			c.progress(t, 200)
			c.alive[one].signal(t, syscall.SIGCONT)
		case "cut": // whatever statement they are at: whether the last one was committed is not known
			_, err := c.pool.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'cornjacket-tally'`)
			require.NoError(t, err)
		case "kill":
			c.alive[one].kill(t)
			c.forget(one)
			if c.random.IntN(2) == 0 {
				c.join(t) // at once, in its place
			}
		}
		c.progress(t, c.random.IntN(150))
	}
}

// join starts a member, in the lowest slot that is free if members are static.
func (c *crowd) join(t *testing.T) {
	t.Helper()
	cfg := c.cfg
	if c.static {
		taken := map[int]bool{}
		for _, m := range c.alive {
			taken[m.slot] = true
		}
		for taken[cfg.Slot] {
			cfg.Slot++
		}
		cfg.Instance = fmt.Sprint("slot-", cfg.Slot)
	}
	m := startMember(t, cfg)
	c.alive = append(c.alive, m)
	m.joins(t)
}

func (c *crowd) forget(i int) { c.alive = append(c.alive[:i:i], c.alive[i+1:]...) }

// leave stops all members.
func (c *crowd) leave(t *testing.T) {
	t.Helper()
	for _, m := range c.alive {
		m.leave(t)
	}
	c.alive = nil
}

// applied returns how many events have been applied, as the rows tell it.
func (c *crowd) applied(t *testing.T) int {
	t.Helper()
	var n int
	require.NoError(t, c.pool.QueryRow(context.WithoutCancel(t.Context()),
		`SELECT coalesce(sum(count), 0) FROM tally`).Scan(&n))
	return n
}

// progress waits until so many events more have been applied, or nearly all.
func (c *crowd) progress(t *testing.T, more int) {
	t.Helper()
	goal := min(c.applied(t)+more, talliedAggregates*talliedEach*9/10)
	require.Eventually(t, func() bool { return c.applied(t) >= goal }, 2*soon, every, "%d events more are applied", more)
}

// complete waits until so many events have been applied, or too many.
func (c *crowd) complete(t *testing.T, events int) {
	t.Helper()
	require.Eventually(t, func() bool { return c.applied(t) >= events }, 2*soon, every, "all events are applied")
}

// proven shows that each aggregate has counted each of its events once, in order, and that the positions say so.
func (c *crowd) proven(t *testing.T, each int) {
	t.Helper()
	chain := uint32(0)
	for i := range each {
		chain = chain*31 + uint32(i)
	}
	rows, err := c.pool.Query(t.Context(), `SELECT count, chain FROM tally`)
	require.NoError(t, err)
	counted := 0
	var count int
	var got int64
	_, err = pgx.ForEachRow(rows, []any{&count, &got}, func() error {
		counted++
		require.Equal(t, each, count)
		require.EqualValues(t, chain, got, "the order")
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, talliedAggregates, counted)
	var events, dead int
	require.NoError(t, c.pool.QueryRow(t.Context(), `SELECT sum(events), sum(dead) FROM consumer_positions WHERE consumer = 'tally'`).Scan(&events, &dead))
	require.Equal(t, each*talliedAggregates, events, "what the ledger counts")
	require.Zero(t, dead)
}
