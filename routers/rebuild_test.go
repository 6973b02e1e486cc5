package routers_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/handlers"
	"github.com/cornjacket/platform-services/internal/devstack"
	"github.com/cornjacket/platform-services/internal/pgtest"
	"github.com/cornjacket/platform-services/migrations"
	"github.com/cornjacket/platform-services/pubsub/kafka"
	"github.com/cornjacket/platform-services/routers"
	"github.com/cornjacket/platform-services/store"
)

// chained is a projection whose state depends on the number and the order of all events of an aggregate. It refuses the
// event with the value that refuse says.
func chained(refuse func(value int) bool) handlers.Projection {
	return handlers.Projection{Type: "chained", Family: "sensor", OrderMatters: true, Reduce: func(s handlers.State, e *event.Envelope) (handlers.State, error) {
		var payload struct{ Value int }
		if err := json.Unmarshal(e.Payload, &payload); err != nil {
			return s, err
		}
		if refuse(payload.Value) {
			return s, errors.New("the reducer refuses it")
		}
		state := struct {
			Chain uint32 // in the order of jsonb
			Count int
		}{}
		if s.Exists() {
			if err := json.Unmarshal(s.Value, &state); err != nil {
				return s, err
			}
		}
		state.Count++
		state.Chain = state.Chain*31 + uint32(payload.Value)
		value, err := json.Marshal(state)
		return handlers.State{Value: jsontext.Value(value), EventID: e.ID, EventTime: e.Time}, err
	}}
}

func nothing(int) bool { return false }

// flow is a log, a bus and an event handler.
type flow struct {
	t      *testing.T
	pool   *pgxpool.Pool
	broker string
	pub    *kafka.Publisher

	order  sync.Mutex // of what is published: that of the log, as a relay has it
	mu     sync.Mutex
	events []event.Envelope // that were published
}

func newFlow(t *testing.T) *flow {
	t.Helper()
	pool := pgtest.Pool(t, "")
	db := stdlib.OpenDBFromPool(pool)
	for _, service := range migrations.Services() {
		_, err := migrations.Up(t.Context(), db, service)
		require.NoError(t, err)
	}
	require.NoError(t, db.Close())
	k, err := devstack.StartKafka(devstack.KafkaConfig{Addr: "127.0.0.1:0", Partitions: 4, Topics: event.Topics(), Log: quiet})
	require.NoError(t, err)
	t.Cleanup(k.Close)
	pub, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: []string{k.Addr()}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, pub.Close()) })
	return &flow{t: t, pool: pool, broker: k.Addr(), pub: pub}
}

// log puts n further events in the log; the relay has published them.
func (f *flow) log(n int) []event.Envelope {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	events := talliedFrom(f.t, len(f.events), n)
	rows := &pgx.Batch{}
	for _, e := range events {
		metadata, err := e.Metadata.Marshal()
		require.NoError(f.t, err)
		rows.Queue(`INSERT INTO event_store (event_id, event_type, aggregate_id, event_time, ingested_at, payload, metadata, position)
			VALUES ($1, $2, $3, $4, $5, $6::text::jsonb, $7::text::jsonb, $8)`, e.ID, e.Type, e.AggregateID, e.Time, e.IngestedAt, string(e.Payload), string(metadata), e.Metadata.Position)
	}
	require.NoError(f.t, f.pool.SendBatch(context.Background(), rows).Close())
	_, err := f.pool.Exec(context.Background(), `UPDATE relay_cursor SET position = (SELECT max(position) FROM event_store)`)
	require.NoError(f.t, err)
	f.events = append(f.events, events...)
	return events
}

// publish puts n further events in the log and on the bus.
func (f *flow) publish(n int) {
	f.t.Helper()
	f.order.Lock()
	defer f.order.Unlock()
	require.NoError(f.t, f.pub.Publish(event.TopicSensor, records(f.t, f.log(n))...))
}

// handle runs an event handler until the test ends, or stop is called.
func (f *flow) handle(projections ...handlers.Projection) (stop func()) {
	f.t.Helper()
	types := make([]string, len(projections))
	for i, p := range projections {
		types[i] = p.Type
	}
	_, err := store.EnsureVersions(f.t.Context(), f.pool, routers.Eventhandler, types)
	require.NoError(f.t, err)
	positions := store.NewPositions(f.pool, routers.Eventhandler)
	sub := kafka.NewSubscriber(kafka.SubscriberConfig{
		Brokers: []string{f.broker}, Group: "eventhandler", MaxBatch: 500, SessionTimeout: time.Second, Logger: quiet,
		Positions: routers.BusPositions{Positions: positions}, EventLog: routers.BusLog{Log: store.NewLog(f.pool)},
	})
	router, err := routers.NewConsumer(routers.Projector(projections), routers.ConsumerConfig{
		Stack:      routers.Stack{RetryMax: 1, RetryInterval: time.Millisecond, Timeout: 10 * time.Second, CloseTimeout: 10 * time.Second, Log: quiet},
		Subscriber: sub, Pool: f.pool, Positions: positions, Now: time.Now,
	})
	require.NoError(f.t, err)
	ended := make(chan error, 1)
	go func() { ended <- router.Run(context.Background()) }()
	stop = sync.OnceFunc(func() {
		require.NoError(f.t, router.Close(context.Background()))
		require.NoError(f.t, <-ended)
	})
	f.t.Cleanup(stop)
	return stop
}

func (f *flow) rebuild(p handlers.Projection) *routers.Rebuild {
	return &routers.Rebuild{Pool: f.pool, Log: store.NewLog(f.pool), Projection: p, Alone: true, Logger: quiet}
}

// right waits until the projection is that of all events but those that were refused.
func (f *flow) right(p handlers.Projection) {
	f.t.Helper()
	require.Eventually(f.t, func() bool { return f.wrong(p) == "" }, soon, every, "%s", lazily(func() string { return f.wrong(p) }))
}

type lazily func() string

func (l lazily) String() string { return l() }

func (f *flow) wrong(p handlers.Projection) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	want := make(map[string]handlers.State)
	counts := make(map[string]int64)
	for i := range f.events {
		e := &f.events[i]
		if s, err := p.Reduce(want[e.AggregateID], e); err == nil {
			want[e.AggregateID] = s
			counts[e.AggregateID]++
		}
	}
	var differences []string
	for id, state := range want {
		got, err := store.NewReader(f.pool, f.pool).Projection(context.Background(), p.Type, id)
		if err != nil {
			return err.Error()
		}
		a, b := string(state.Value), strings.ReplaceAll(string(got.State), " ", "")
		if a != b || got.EventCount != counts[id] || got.LastEventID != state.EventID {
			differences = append(differences, fmt.Sprintf("%s: %s (%d), want %s (%d)", id, b, got.EventCount, a, counts[id]))
		}
	}
	return strings.Join(differences, "\n")
}

// A projection is built anew while events flow, takes the place of the old one, goes back and is dropped: at each moment
// every row is that of all events so far, each applied once and in order.
func TestRebuildWhileEventsFlow(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("three rebuilds under load")
	}
	f := newFlow(t)
	p := chained(nothing)
	f.handle(p)
	f.publish(2000)
	f.right(p)

	flowing, stop := context.WithCancel(t.Context())
	var publishing sync.WaitGroup
	publishing.Go(func() {
		for flowing.Err() == nil && f.len() < 30_000 {
			f.publish(20)
		}
	})
	rows := func() (n int) {
		require.NoError(t, f.pool.QueryRow(t.Context(), `SELECT count(*) FROM projections WHERE projection_type = 'chained'`).Scan(&n))
		return n
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		for flowing.Err() == nil {
			if n := rows(); n != talliedAggregates {
				t.Errorf("%d rows at some moment", n)
				return
			}
		}
	})
	defer publishing.Wait()
	defer reading.Wait()
	defer stop()

	r := f.rebuild(p)
	for round := range 3 {
		v, err := r.Build(t.Context())
		require.NoError(t, err)
		require.Equal(t, 2+round, v.Number)
		d, err := r.Diff(t.Context(), 20)
		require.NoError(t, err)
		require.Zero(t, d.Differ, "%+v", d)
		_, err = r.Switch(t.Context())
		require.NoError(t, err)
		f.publish(100)
		if round == 1 {
			back, err := r.Back(t.Context())
			require.NoError(t, err)
			require.Equal(t, 2, back.Number)
		}
		f.publish(100)
	}
	stop()
	publishing.Wait()
	reading.Wait()
	f.right(p)
	dropped, err := r.Drop(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, dropped)
	f.publish(50)
	f.right(p)
	var events int
	require.NoError(t, f.pool.QueryRow(t.Context(), `SELECT sum(events) FROM consumer_positions WHERE consumer = 'eventhandler'`).Scan(&events))
	require.Equal(t, len(f.events), events, "what the ledger counts")
}

// A rebuild that ends anywhere goes on where it was.
func TestRebuildGoesOn(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds of 12,000 events")
	}
	f := newFlow(t)
	p := chained(nothing)
	f.handle(p)
	f.publish(12_000)
	f.right(p)
	r := f.rebuild(p)
	ctx, cancel := context.WithCancel(t.Context())
	r.Progress = func(routers.Progress) { cancel() }
	_, err := r.Build(ctx)
	require.Error(t, err)
	var read []int64
	r.Progress = func(p routers.Progress) { read = append(read, p.Events) }
	v, err := r.Build(t.Context())
	require.NoError(t, err)
	require.Equal(t, 2, v.Number, "the one that was begun")
	require.Less(t, read[len(read)-1], int64(12_000), "what was built is not built again")
	_, err = r.Switch(t.Context())
	require.NoError(t, err)
	f.right(p)
}

// A projection that is new in the code is built from the log, and one whose reducer was mended applies what it had refused.
func TestRebuildWithOtherReducers(t *testing.T) {
	t.Parallel()
	f := newFlow(t)
	broken := chained(func(value int) bool { return value%7 == 3 })
	stop := f.handle(broken)
	f.publish(600)
	f.right(broken)
	lost := func() (pending, dead int) {
		require.NoError(t, f.pool.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM dlq WHERE status = 'pending' AND consumer = 'eventhandler'),
			(SELECT coalesce(sum(dead), 0) FROM consumer_positions WHERE consumer = 'eventhandler')`).Scan(&pending, &dead))
		return pending, dead
	}
	pending, dead := lost()
	require.Positive(t, pending)
	require.Equal(t, pending, dead)
	stop()

	mended := chained(nothing)
	r := f.rebuild(mended)
	_, err := r.Build(t.Context())
	require.NoError(t, err)
	d, err := r.Diff(t.Context(), 5)
	require.NoError(t, err)
	require.EqualValues(t, talliedAggregates, d.Differ)
	require.Len(t, d.First, 5)
	_, err = r.Switch(t.Context())
	require.NoError(t, err)
	pending, dead = lost()
	require.Zero(t, pending, "their events were applied")
	require.Zero(t, dead)

	other := mended
	other.Type = "other"
	missing, err := store.EnsureVersions(t.Context(), f.pool, routers.Eventhandler, []string{"chained", "other"})
	require.NoError(t, err)
	require.Equal(t, []string{"other"}, missing)
	f.handle(mended, other)
	f.publish(100)
	f.right(mended)
	added := f.rebuild(other)
	_, err = added.Build(t.Context())
	require.NoError(t, err)
	_, err = added.Switch(t.Context())
	require.NoError(t, err)
	f.publish(100)
	f.right(mended)
	f.right(other)
}

// An aggregate whose letters can't be replayed, because order matters, is made right alone.
func TestRebuildOfOneAggregate(t *testing.T) {
	t.Parallel()
	f := newFlow(t)
	stop := f.handle(chained(func(value int) bool { return value == 5 }))
	f.publish(talliedAggregates * 20)
	f.right(chained(func(value int) bool { return value == 5 }))
	stop()
	mended := chained(nothing)
	f.handle(mended)
	for i := range talliedAggregates {
		n, err := f.rebuild(mended).Aggregate(t.Context(), "device-"+strconv.Itoa(i))
		require.NoError(t, err)
		require.EqualValues(t, 20, n)
	}
	f.right(mended)
	f.publish(talliedAggregates * 5)
	f.right(mended)
	var pending int
	require.NoError(t, f.pool.QueryRow(t.Context(), `SELECT count(*) FROM dlq WHERE status = 'pending'`).Scan(&pending))
	require.Zero(t, pending)
}

func (f *flow) len() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.events)
}
