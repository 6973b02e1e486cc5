package routers_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	stockkafka "github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	stocksql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/batch"
	"github.com/cornjacket/platform-services/routers"
)

// endpoint is something outside that is called with each record.
type endpoint struct {
	mu    sync.Mutex
	calls map[string]int // by ID
	fail  func(id string, call int) error
}

func (e *endpoint) handle(_ context.Context, r *batch.Record) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.calls[r.ID]++
	return e.fail(r.ID, e.calls[r.ID])
}

func (e *endpoint) of(id string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.calls[id]
}

// outbound runs a router on a subscriber until the test ends.
func outbound(t *testing.T, pool *pgxpool.Pool, sub message.Subscriber, topic string, policy routers.Policy, e *endpoint) {
	t.Helper()
	e.calls = make(map[string]int)
	router, err := routers.NewOutbound(routers.OutboundConfig{
		Stack: routers.Stack{RetryMax: 1, RetryInterval: time.Millisecond, Timeout: 10 * time.Second, CloseTimeout: 10 * time.Second, Log: quiet},
		Name:  "actions", Policy: policy, Topic: topic, Subscriber: sub, Letters: deadletter.Writer{DB: pool}, Now: time.Now,
	}, e.handle)
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- router.Run(context.Background()) }()
	t.Cleanup(func() {
		require.NoError(t, router.Close(context.Background()))
		require.NoError(t, <-ended)
	})
}

// flaky fails the first calls with what is passing, and those with "bad" in their ID always.
func flaky(calls int) func(id string, call int) error {
	return func(id string, call int) error {
		if id[:3] == "bad" || call <= calls {
			return fmt.Errorf("endpoint of %s answers 503", id)
		}
		return nil
	}
}

// A router on Watermill's own subscribers has the policies: what passes within its retries is done, and what does not is a
// dead letter that holds up no other.
func TestOutboundRoutersOnStockSubscribers(t *testing.T) {
	t.Parallel()
	policy := routers.Policy{Outage: routers.DeadLetter, Retries: 2, Interval: time.Millisecond}
	publish := func(t *testing.T, pub message.Publisher, topic string) {
		t.Helper()
		for _, id := range []string{"first", "bad", "last"} {
			require.NoError(t, pub.Publish(topic, message.NewMessage(id, []byte(`{}`))))
		}
	}
	for name, stock := range map[string]func(t *testing.T, f *flow) (message.Publisher, message.Subscriber, string){
		"watermill-kafka": func(t *testing.T, f *flow) (message.Publisher, message.Subscriber, string) {
			t.Helper()
			sub, err := stockkafka.NewSubscriber(stockkafka.SubscriberConfig{
				Brokers: []string{f.broker}, Unmarshaler: stockkafka.DefaultMarshaler{}, ConsumerGroup: "actions",
				OverwriteSaramaConfig: fromTheStart(),
			}, watermill.NopLogger{})
			require.NoError(t, err)
			pub, err := stockkafka.NewPublisher(stockkafka.PublisherConfig{Brokers: []string{f.broker}, Marshaler: stockkafka.DefaultMarshaler{}}, watermill.NopLogger{})
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, pub.Close()) })
			return pub, sub, event.TopicSystem
		},
		"watermill-sql": func(t *testing.T, f *flow) (message.Publisher, message.Subscriber, string) {
			t.Helper()
			db := stdlib.OpenDBFromPool(f.pool)
			t.Cleanup(func() { require.NoError(t, db.Close()) })
			sub, err := stocksql.NewSubscriber(db, stocksql.SubscriberConfig{
				SchemaAdapter: stocksql.DefaultPostgreSQLSchema{}, OffsetsAdapter: stocksql.DefaultPostgreSQLOffsetsAdapter{},
				InitializeSchema: true, PollInterval: 10 * time.Millisecond,
			}, watermill.NopLogger{})
			require.NoError(t, err)
			require.NoError(t, sub.SubscribeInitialize("deliveries"))
			pub, err := stocksql.NewPublisher(db, stocksql.PublisherConfig{SchemaAdapter: stocksql.DefaultPostgreSQLSchema{}}, watermill.NopLogger{})
			require.NoError(t, err)
			return pub, sub, "deliveries"
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFlow(t)
			pub, sub, topic := stock(t, f)
			publish(t, pub, topic)
			e := &endpoint{fail: flaky(2)}
			outbound(t, f.pool, sub, topic, policy, e)
			var list []deadletter.Entry
			require.Eventually(t, func() bool {
				var err error
				list, err = deadletter.Unpublished(t.Context(), f.pool, []string{"actions"}, 10, 1<<20)
				require.NoError(t, err)
				return len(list) == 1 && e.of("last") == 3 && e.of("first") == 3
			}, soon, every)
			require.Equal(t, 3, e.of("bad"), "two retries")
			require.Equal(t, topic, list[0].Topic)
			require.Equal(t, 2, list[0].RetryCount)
			require.Contains(t, list[0].Error, "endpoint of bad answers 503")
		})
	}
}

// Skip lets go after the retries; a breaker keeps what waits from using up its retries.
func TestOutboundPolicies(t *testing.T) {
	t.Parallel()
	f := newFlow(t)
	letters := func() (n int) {
		require.NoError(t, f.pool.QueryRow(t.Context(), `SELECT count(*) FROM dlq`).Scan(&n))
		return n
	}
	t.Run("skip", func(t *testing.T) {
		sub := &fixed{ids: []string{"bad-1", "good"}}
		e := &endpoint{fail: flaky(0)}
		outbound(t, f.pool, sub, "skip", routers.Policy{Outage: routers.Skip, Retries: 1, Interval: time.Millisecond}, e)
		require.Eventually(t, func() bool { return e.of("good") == 1 }, soon, every)
		require.Equal(t, 2, e.of("bad-1"))
		require.Zero(t, letters())
	})
	t.Run("breaker", func(t *testing.T) {
		var mended sync.Once
		healthy := make(chan struct{})
		e := &endpoint{fail: func(string, int) error {
			select {
			case <-healthy:
				return nil
			default:
				return errors.New("away")
			}
		}}
		outbound(t, f.pool, &fixed{ids: []string{"a", "b", "c"}}, "breaker", routers.Policy{
			Outage: routers.DeadLetter, Retries: 100, Interval: time.Millisecond, Breaker: routers.Breaker{Failures: 3, Pause: 50 * time.Millisecond},
		}, e)
		require.Eventually(t, func() bool { return e.of("a") >= 5 }, soon, every, "one is let through now and then")
		mended.Do(func() { close(healthy) })
		require.Eventually(t, func() bool { return e.of("c") == 1 }, soon, every)
		require.Less(t, e.of("a"), 60, "the endpoint was left alone meanwhile")
		require.Zero(t, letters(), "nothing has used up its retries")
	})
}

// fixed hands out a message for each ID, in batches of all that is left.
type fixed struct {
	ids  []string
	done chan struct{}
}

func (s *fixed) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	sender := batch.NewSender(time.Second)
	s.done = make(chan struct{})
	records := make([]batch.Record, len(s.ids))
	for i, id := range s.ids {
		records[i] = batch.Record{Topic: topic, Partition: -1, Offset: -1, ID: id, Value: []byte(`{}`)}
	}
	go func() {
		defer close(s.done)
		defer close(sender.Out())
		sender.Send(ctx, records)
		<-ctx.Done()
	}()
	return sender.Out(), nil
}

func (s *fixed) Close() error { return nil }

func fromTheStart() *sarama.Config {
	c := stockkafka.DefaultSaramaSubscriberConfig()
	c.Consumer.Offsets.Initial = sarama.OffsetOldest
	return c
}
