package routers

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/handlers"
	"github.com/cornjacket/platform-services/internal/devstack"
	"github.com/cornjacket/platform-services/pubsub/kafka"
	"github.com/cornjacket/platform-services/store"
)

// bus starts a broker with all topics, two partitions each.
func bus(t *testing.T) string {
	t.Helper()
	k, err := devstack.StartKafka(devstack.KafkaConfig{Addr: "127.0.0.1:0", Partitions: 2, Topics: Topics(), Log: quiet})
	require.NoError(t, err)
	t.Cleanup(k.Close)
	return k.Addr()
}

func publisher(t *testing.T, brokers string) *kafka.Publisher {
	t.Helper()
	pub, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: []string{brokers}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, pub.Close()) })
	return pub
}

// publish puts events on the bus as the relay does.
func publish(t *testing.T, pub *kafka.Publisher, events ...event.Envelope) {
	t.Helper()
	var msgs []*message.Message
	for _, e := range events {
		msgs = append(msgs, record(e.ID.String(), e.AggregateID, marshal(t, e)))
	}
	require.NoError(t, pub.Publish(event.TopicSensor, msgs...))
}

func record(id, key string, value []byte) *message.Message {
	m := message.NewMessage(id, value)
	m.Metadata = message.Metadata{event.MetaAggregateID: key, event.MetaEventType: "sensor.reading"}
	return m
}

// counter counts events: what is applied twice or lost shows in its state.
func counter() handlers.Projection {
	return handlers.Projection{
		Type: "count", Topic: event.TopicSensor, Applies: func(string) bool { return true },
		Reduce: func(s handlers.State, e *event.Envelope) (handlers.State, error) {
			if strings.Contains(string(e.Payload), "poison") {
				return s, errors.New("the reducer refuses it")
			}
			n := 0
			if s.Exists() {
				var err error
				if n, err = strconv.Atoi(string(s.Value)); err != nil {
					return s, err
				}
			}
			return handlers.State{Value: jsontext.Value(strconv.Itoa(n + 1)), EventID: e.ID, EventTime: e.Time}, nil
		},
	}
}

// eventhandler runs the router in a group until stop is called or the test ends.
func eventhandler(t *testing.T, pool *pgxpool.Pool, brokers, group string, projections ...handlers.Projection) (stop func()) {
	t.Helper()
	sub := kafka.NewSubscriber(kafka.SubscriberConfig{Brokers: []string{brokers}, Group: group, Window: 100})
	r, err := NewEventhandler(EventhandlerConfig{
		Stack: stack(), Subscriber: sub, Store: store.NewProjections(pool), Projections: projections,
		Letters: deadletter.Writer{DB: pool}, Now: func() time.Time { return t0 }, MaxBatch: 20,
	})
	require.NoError(t, err)
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { ended <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(t, r.Close(context.Background()))
		require.NoError(t, <-ended)
	})
	t.Cleanup(stop)
	return stop
}

// projected returns how to read a projection, and whether there is one.
func projected(t *testing.T, pool *pgxpool.Pool, projectionType, aggregate string) func() (store.Projection, bool) {
	r := store.NewReader(pool, pool)
	return func() (store.Projection, bool) {
		p, err := r.Projection(t.Context(), projectionType, aggregate)
		return p, err == nil
	}
}

func letters(t *testing.T, pool *pgxpool.Pool) []deadletter.Entry {
	t.Helper()
	list, err := deadletter.Unpublished(t.Context(), pool, []string{Eventhandler}, 100, 1<<20)
	require.NoError(t, err)
	return list
}

// Records come again: from the relay after a crash of its own, and to a group that starts from the beginning. Each
// event counts once all the same.
func TestEventsAreAppliedExactlyOnce(t *testing.T) {
	t.Parallel()
	const aggregates, each = 9, 20
	pool, brokers := database(t), bus(t)
	pub := publisher(t, brokers)
	var events []event.Envelope
	for i := range aggregates * each {
		e := envelope7(int64(i + 1))
		e.AggregateID = fmt.Sprintf("device-%d", i%aggregates)
		events = append(events, e)
	}
	publish(t, pub, events[:100]...)
	publish(t, pub, events[40:]...) // the cursor was behind when the relay died

	stop := eventhandler(t, pool, brokers, "first", counter())
	last := func(i int) int64 { return int64(aggregates*(each-1) + i + 1) }
	complete := func() bool {
		for i := range aggregates {
			p, ok := projected(t, pool, "count", fmt.Sprintf("device-%d", i))()
			if !ok || p.Position != last(i) {
				return false
			}
		}
		return true
	}
	require.Eventually(t, complete, soon, 20*time.Millisecond)
	stop()

	// A marker behind all others on each partition shows that the second group has read everything again.
	var markers []event.Envelope
	for i := range aggregates {
		e := envelope7(last(i) + 1000)
		e.AggregateID = fmt.Sprintf("device-%d", i)
		markers = append(markers, e)
	}
	publish(t, pub, markers...)
	eventhandler(t, pool, brokers, "second", counter())
	eventhandler(t, pool, brokers, "third", counter()) // at the same time
	require.Eventually(t, func() bool {
		for i := range aggregates {
			p, ok := projected(t, pool, "count", fmt.Sprintf("device-%d", i))()
			if !ok || p.Position != last(i)+1000 {
				return false
			}
		}
		return true
	}, soon, 20*time.Millisecond)
	for i := range aggregates {
		p, _ := projected(t, pool, "count", fmt.Sprintf("device-%d", i))()
		require.Equal(t, strconv.Itoa(each+1), string(p.State))
		require.Equal(t, int64(each+1), p.EventCount)
	}
	require.Empty(t, letters(t, pool))
}

func TestAPoisonEventIsADeadLetterAloneAndReachesTheBus(t *testing.T) {
	t.Parallel()
	pool, brokers := database(t), bus(t)
	pub := publisher(t, brokers)
	stop := eventhandler(t, pool, brokers, "g", counter())

	refused, noPosition := envelope7(50), envelope7(0)
	refused.Payload = jsontext.Value(`{"poison":true}`)
	garbage := []byte("\x00\xff{\"not\": an event")
	var msgs []*message.Message
	add := func(id, key string, value []byte) { msgs = append(msgs, record(id, key, value)) }
	for i := range 100 {
		e := envelope7(int64(i + 1))
		e.AggregateID = fmt.Sprintf("device-%d", i%10)
		add(e.ID.String(), e.AggregateID, marshal(t, e))
		switch i {
		case 30:
			add("", "device-3", garbage)
		case 49:
			add(refused.ID.String(), "device-7", marshal(t, refused))
		case 60:
			add(noPosition.ID.String(), "device-7", marshal(t, noPosition))
		}
	}
	require.NoError(t, pub.Publish(event.TopicSensor, msgs...))
	for i := range 10 {
		get := projected(t, pool, "count", fmt.Sprintf("device-%d", i))
		require.Eventually(t, func() bool {
			p, ok := get()
			return ok && string(p.State) == "10"
		}, soon, 20*time.Millisecond, "device-%d", i)
	}
	var list []deadletter.Entry
	require.Eventually(t, func() bool {
		list = letters(t, pool)
		return len(list) == 3
	}, soon, 20*time.Millisecond)
	want := map[string]struct {
		id    uuid.UUID
		value []byte
		key   string
	}{
		"read event":        {uuid.Nil, garbage, "device-3"},
		"refuses it":        {refused.ID, marshal(t, refused), "device-7"},
		"metadata.position": {noPosition.ID, marshal(t, noPosition), "device-7"},
	}
	for reason, w := range want {
		l := withReason(t, list, reason)
		require.Equal(t, w.id, l.EventID, reason)
		require.Equal(t, w.value, l.Payload, "the bytes as they came")
		require.Equal(t, w.key, l.Key)
		require.Equal(t, event.TopicSensor, l.Topic)
		require.Equal(t, "sensor-events.dlq", l.BusTopic)
		require.NotNil(t, l.Partition)
		require.NotNil(t, l.Offset)
		require.NotEmpty(t, l.CorrelationID)
		require.Zero(t, l.RetryCount)
	}
	stop()

	letterPublisher := deadletter.NewPublisher(deadletter.PublisherConfig{DB: pool, Consumers: []string{Eventhandler}, Bus: pub, Log: quiet})
	ctx, cancel := context.WithCancel(t.Context())
	var publishing sync.WaitGroup
	defer publishing.Wait()
	defer cancel()
	publishing.Go(func() { letterPublisher.Run(ctx) })
	records := consume(t, brokers, "sensor-events.dlq", 3)
	for _, l := range list {
		r := records[l.ID.String()]
		require.NotNil(t, r)
		require.Equal(t, l.Payload, r.Value)
		require.Equal(t, l.Key, string(r.Key))
		require.Equal(t, l.Error, header(r, "error_message"))
		require.Equal(t, Eventhandler, header(r, "consumer"))
		require.Equal(t, l.Topic, header(r, "source_topic"))
		require.Equal(t, strconv.Itoa(int(*l.Partition)), header(r, "source_partition"))
		require.Equal(t, strconv.FormatInt(*l.Offset, 10), header(r, "source_offset"))
		require.Equal(t, l.CorrelationID, header(r, event.MetaCorrelationID))
		require.Equal(t, "0", header(r, "retry_count"))
		if l.EventID != uuid.Nil {
			require.Equal(t, l.EventID.String(), header(r, event.MetaEventID))
		}
	}
	require.Eventually(t, func() bool { return len(letters(t, pool)) == 0 }, soon, 20*time.Millisecond)
}

func withReason(t *testing.T, list []deadletter.Entry, reason string) deadletter.Entry {
	t.Helper()
	for _, l := range list {
		if strings.Contains(l.Error, reason) {
			return l
		}
	}
	require.Fail(t, "no dead letter says "+reason)
	return deadletter.Entry{}
}

// consume reads n records of a topic, by the ID of their dead letter.
func consume(t *testing.T, brokers, topic string, n int) map[string]*kgo.Record {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers), kgo.ConsumeTopics(topic))
	require.NoError(t, err)
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	records := make(map[string]*kgo.Record)
	for len(records) < n {
		fetches := client.PollFetches(ctx)
		require.NoError(t, ctx.Err(), "%d of %d records came", len(records), n)
		fetches.EachRecord(func(r *kgo.Record) { records[header(r, "dlq_id")] = r })
	}
	return records
}

func header(r *kgo.Record, key string) string {
	for _, h := range r.Headers {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}

// The projections of the platform are the newest event's payload, whatever order events arrive in.
func TestTheProjectionsOfThePlatform(t *testing.T) {
	t.Parallel()
	pool, brokers := database(t), bus(t)
	pub := publisher(t, brokers)
	eventhandler(t, pool, brokers, "g")
	var events []event.Envelope
	for i := range 12 {
		e := envelope7(0)
		e.Time = t0.Add(time.Duration(i) * time.Second)
		e.Payload = jsontext.Value(fmt.Sprintf(`{"value":%d}`, i))
		events = append(events, e)
	}
	newest := events[11]
	rand.Shuffle(len(events), func(i, j int) { events[i], events[j] = events[j], events[i] })
	for i := range events {
		events[i].Metadata.Position = int64(i + 1)
	}
	publish(t, pub, events...)
	login := envelope7(13)
	login.Type, login.AggregateID, login.Payload = "user.login", "user-1", jsontext.Value(`{"user_id":"u","ip":"::1"}`)
	require.NoError(t, pub.Publish(event.TopicUser, record(login.ID.String(), login.AggregateID, marshal(t, login))))

	get := projected(t, pool, "sensor_state", "device-7")
	require.Eventually(t, func() bool {
		p, ok := get()
		return ok && p.Position == 12
	}, soon, 20*time.Millisecond)
	p, _ := get()
	require.Equal(t, int64(12), p.EventCount, "also those that are older than the state")
	require.JSONEq(t, `{"value":11}`, string(p.State))
	require.Equal(t, newest.ID, p.LastEventID)
	require.Equal(t, newest.Time, p.LastEventTimestamp)
	session := projected(t, pool, "user_session", "user-1")
	require.Eventually(t, func() bool { _, ok := session(); return ok }, soon, 20*time.Millisecond)
}

// An event of no projection is done with, also one on a topic of projections.
func TestAnEventOfNoProjectionIsAcknowledged(t *testing.T) {
	t.Parallel()
	src, box := newSource(), &letterBox{}
	r, err := NewEventhandler(EventhandlerConfig{Stack: stack(), Subscriber: src, Letters: box, Now: time.Now,
		Projections: []handlers.Projection{{Type: "none", Topic: "x", Applies: func(string) bool { return false }}}})
	require.NoError(t, err)
	start(t, r)
	src.send(message.NewMessage("", marshal(t, envelope7(1))), place)
	require.Eventually(t, func() bool { return src.hasAcked(42) }, soon, tick)
	require.Empty(t, box.all())
}

// A reducer that panics fails its own event only.
func TestAReducerThatPanicsIsADeadLetter(t *testing.T) {
	t.Parallel()
	pool, src := database(t), newSource()
	p := counter()
	reduce := p.Reduce
	p.Reduce = func(s handlers.State, e *event.Envelope) (handlers.State, error) {
		if e.AggregateID == "cursed" {
			panic("a bug")
		}
		return reduce(s, e)
	}
	box := &letterBox{}
	r, err := NewEventhandler(EventhandlerConfig{Stack: stack(), Subscriber: src, Store: store.NewProjections(pool),
		Projections: []handlers.Projection{p}, Letters: box, Now: time.Now})
	require.NoError(t, err)
	start(t, r)
	for i, aggregate := range []string{"a", "cursed", "b"} {
		e := envelope7(int64(i + 1))
		e.AggregateID = aggregate
		at := place
		at.Key, at.Offset = aggregate, int64(i)
		src.send(message.NewMessage("", marshal(t, e)), at)
	}
	require.Eventually(t, func() bool { return src.hasAcked(0, 1, 2) }, soon, tick)
	require.Len(t, box.all(), 1)
	require.Contains(t, box.all()[0].Error, "a bug")
	for _, aggregate := range []string{"a", "b"} {
		_, ok := projected(t, pool, "count", aggregate)()
		require.True(t, ok, aggregate)
	}
}
