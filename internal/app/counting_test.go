package app

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
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/handlers"
	"github.com/cornjacket/platform-services/internal/kafkatest"
	"github.com/cornjacket/platform-services/internal/pgtest"
	"github.com/cornjacket/platform-services/migrations"
	"github.com/cornjacket/platform-services/pubsub/kafka"
	"github.com/cornjacket/platform-services/routers"
	"github.com/cornjacket/platform-services/store"
)

// tallied is the state of the counting reducer. It shows each event that is lost, applied twice or applied out of order:
// Count counts them, and Chain depends on their order.
type tallied struct {
	Count int    `json:"count"`
	Chain uint32 `json:"chain"`
}

func (s tallied) after(number int) tallied {
	return tallied{s.Count + 1, s.Chain*31 + uint32(number)}
}

// counting is a projection whose reducer is not idempotent.
func counting() handlers.Projection {
	return handlers.Projection{
		Type: "tally", Topic: event.TopicSensor, Applies: func(string) bool { return true },
		Reduce: func(current handlers.State, e *event.Envelope) (handlers.State, error) {
			var s tallied
			var payload struct{ Value int }
			if current.Exists() {
				if err := json.Unmarshal(current.Value, &s); err != nil {
					return current, fmt.Errorf("read state: %w", err)
				}
			}
			if err := json.Unmarshal(e.Payload, &payload); err != nil {
				return current, fmt.Errorf("read payload: %w", err)
			}
			value, err := json.Marshal(s.after(payload.Value))
			return handlers.State{Value: jsontext.Value(value), EventID: e.ID, EventTime: e.Time}, err
		},
	}
}

const (
	talliedAggregates = 12
	talliedEach       = 400 // events of an aggregate
)

// Event handlers, each a process of its own, join, leave, freeze and are killed while events flow, and records come
// again and again as from a relay that crashes: each event has its effect once, in order.
func TestEachEventCountsOnce(t *testing.T) {
	t.Parallel()
	embedded := func(t *testing.T) string { return bus(t).Addr() }
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

// watch notes each row that goes back, if only until the next event: what a member that wakes up writes over what
// another one has written meanwhile.
const watch = `
	CREATE TABLE gone_back (aggregate_id text, before bigint, after bigint);
	CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		INSERT INTO gone_back VALUES (NEW.aggregate_id, OLD.position, NEW.position);
		RETURN NULL;
	END $$;
	CREATE TRIGGER note AFTER UPDATE ON projections FOR EACH ROW WHEN (NEW.position <= OLD.position) EXECUTE FUNCTION note()`

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
	_, err := pool.Exec(t.Context(), watch)
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

	// A group that starts from the beginning sees all records again. The last one of each aggregate is new.
	more := talliedEvents(t, len(events)+talliedAggregates)[len(events):]
	require.NoError(t, pub.Publish(event.TopicSensor, records(t, more)...))
	c.cfg.Group = "second"
	c.join(t)
	c.complete(t, len(events)+len(more))
	c.leave(t)
	c.proven(t, talliedEach+1)
}

// talliedEvents are events of all aggregates in turn. The number of an event in its aggregate is its payload.
func talliedEvents(t *testing.T, n int) []event.Envelope {
	t.Helper()
	events := make([]event.Envelope, n)
	for i := range events {
		events[i] = event.Envelope{
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
	things := []string{"join", "join", "leave", "freeze", "kill"}
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
		`SELECT coalesce(sum((state->>'count')::int), 0) FROM projections WHERE projection_type = 'tally'`).Scan(&n))
	return n
}

// progress waits until so many events more have been applied, or nearly all.
func (c *crowd) progress(t *testing.T, more int) {
	t.Helper()
	goal := min(c.applied(t)+more, talliedAggregates*talliedEach*9/10)
	require.Eventually(t, func() bool { return c.applied(t) >= goal }, 2*soon, every, "%d events more are applied", more)
}

// complete waits until the events up to a position have been applied.
func (c *crowd) complete(t *testing.T, position int) {
	t.Helper()
	require.Eventually(t, func() bool {
		var n int
		require.NoError(t, c.pool.QueryRow(t.Context(),
			`SELECT count(*) FROM projections WHERE projection_type = 'tally' AND position > $1`, position-talliedAggregates).Scan(&n))
		return n == talliedAggregates
	}, 2*soon, every, "all events are applied")
}

// proven shows that each aggregate has counted each of its events once, in order.
func (c *crowd) proven(t *testing.T, each int) {
	t.Helper()
	var want tallied
	for i := range each {
		want = want.after(i)
	}
	reader := store.NewReader(c.pool, c.pool)
	for i := range talliedAggregates {
		p, err := reader.Projection(t.Context(), "tally", fmt.Sprint("device-", i))
		require.NoError(t, err)
		var got tallied
		require.NoError(t, json.Unmarshal(p.State, &got))
		require.Equal(t, want, got, p.AggregateID)
		require.EqualValues(t, each, p.EventCount, p.AggregateID)
	}
	var back int
	require.NoError(t, c.pool.QueryRow(t.Context(), `SELECT count(*) FROM gone_back`).Scan(&back))
	require.Zero(t, back, "rows that went back")
	letters, err := deadletter.Unpublished(t.Context(), c.pool, []string{routers.Eventhandler}, 10, 1<<20)
	require.NoError(t, err)
	require.Empty(t, letters)
}
