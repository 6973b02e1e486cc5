package kafka_test

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/batch"
	"github.com/cornjacket/platform-services/pubsub/kafka"
)

func publish(t *testing.T, p *kafka.Publisher, topic, key string, from, to int) {
	t.Helper()
	var msgs []*message.Message
	for i := from; i < to; i++ {
		msgs = append(msgs, keyed(key, i))
	}
	require.NoError(t, p.Publish(topic, msgs...))
}

// One batch is in flight at a time, of no more records than MaxBatch.
func TestSubscriberHandsOutBatches(t *testing.T) {
	onEach(t, apache, func(t *testing.T, newBroker newBrokerFunc) {
		b := newBroker(t, 1, "t")
		publish(t, b.publisher(), b.named("t"), "k", 0, 20)
		cfg := b.config("g")
		cfg.MaxBatch = 5
		sub, out := b.subscribe(cfg, "t")
		var first *message.Message
		for from := 0; from < 20; from += 5 {
			m := next(t, out)
			require.Equal(t, upTo(from + 5)[from:], numbers(t, m))
			require.Equal(t, fmt.Sprint("k-", from), m.UUID)
			require.Empty(t, m.Payload, "which of them it would be")
			if from == 0 {
				first = m
				r := batch.From(m).Records()[3]
				require.Equal(t, batch.Record{Topic: b.named("t"), Partition: 0, Offset: 3, Key: "k", ID: "k-3", At: r.At, Value: []byte("3"),
					Headers: []batch.Header{{Key: event.MetaEventType, Value: "sensor.reading"}, {Key: event.MetaEventID, Value: "k-3"}}}, r)
				require.WithinDuration(t, time.Now(), r.At, soon)
				require.True(t, sub.Joined())
				require.Equal(t, 1, sub.Assigned())
				require.NoError(t, sub.Ping(t.Context()))
				require.False(t, sub.Oldest().IsZero())
				select {
				case m := <-out:
					require.FailNow(t, "a second batch is in flight", "%s", m.UUID)
				case <-time.After(100 * time.Millisecond):
				}
			}
			m.Ack()
		}
		require.Eventually(t, func() bool { return sub.Oldest().IsZero() }, soon, tick)
		select {
		case <-first.Context().Done():
		case <-time.After(soon):
			require.FailNow(t, "the context of a message ends when it is done")
		}
	})
}

// A record that comes alone is the message, for handlers that know no batches.
func TestSubscriberHandsOutSingleRecords(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1, "t")
	publish(t, b.publisher(), "t", "k", 0, 2)
	cfg := b.config("g")
	cfg.MaxBatch = 1
	_, out := b.subscribe(cfg, "t")
	for i := range 2 {
		m := next(t, out)
		require.Equal(t, fmt.Sprint(i), string(m.Payload))
		require.Equal(t, fmt.Sprint("k-", i), m.UUID)
		require.Equal(t, message.Metadata{event.MetaEventID: m.UUID, event.MetaEventType: "sensor.reading"}, m.Metadata)
		m.Ack()
	}
}

// A subscriber that dies leaves what it has not acknowledged to the next one.
func TestSubscriberCommitsWhatIsDone(t *testing.T) {
	onEach(t, apache, func(t *testing.T, newBroker newBrokerFunc) {
		b := newBroker(t, 1, "t")
		publish(t, b.publisher(), b.named("t"), "k", 0, 20)
		cfg := b.config("g")
		cfg.SessionTimeout, cfg.CloseTimeout, cfg.MaxBatch = 600*time.Millisecond, 10*time.Millisecond, 7
		sub, out := b.subscribe(cfg, "t")
		next(t, out).Ack()
		next(t, out) // is never answered
		client := b.client()
		require.Eventually(t, func() bool { return b.committed(client, "g", "t", 0) == 7 }, soon, tick, "while it runs")
		require.NoError(t, sub.Close())
		_, open := <-out
		require.False(t, open)
		require.EqualValues(t, 7, b.committed(client, "g", "t", 0))
		_, out = b.subscribe(b.config("g"), "t")
		expect(t, out, 7, 20)
	})
}

func TestSubscriberHandsOutAgain(t *testing.T) {
	onEach(t, apache, func(t *testing.T, newBroker newBrokerFunc) {
		b := newBroker(t, 1, "t")
		publish(t, b.publisher(), b.named("t"), "k", 0, 5)
		_, out := b.subscribe(b.config("g"), "t")
		for range 3 {
			m := next(t, out)
			require.Equal(t, upTo(5), numbers(t, m))
			m.Nack()
		}
		m := next(t, out)
		batch.From(m).Done(2)
		m.Nack()
		m = next(t, out)
		require.Equal(t, upTo(5)[2:], numbers(t, m), "what is done is not handed out again")
		client := b.client()
		require.Less(t, b.committed(client, "g", "t", 0), int64(3))
		m.Ack()
		require.Eventually(t, func() bool { return b.committed(client, "g", "t", 0) == 5 }, soon, tick)
	})
}

func TestSubscriberCloseDrains(t *testing.T) {
	onEach(t, apache, func(t *testing.T, newBroker newBrokerFunc) {
		b := newBroker(t, 2, "t")
		publish(t, b.publisher(), b.named("t"), "a", 0, 10)
		sub, out := b.subscribe(b.config("g"), "t")
		held := next(t, out)
		require.Equal(t, upTo(10), numbers(t, held))
		closed := make(chan error, 1)
		go func() { closed <- sub.Close() }()
		require.Eventually(t, func() bool {
			_, err := sub.Subscribe(t.Context(), "t")
			return err != nil
		}, soon, tick)
		require.Empty(t, closed)
		held.Ack()
		require.NoError(t, <-closed)
		_, open := <-out
		require.False(t, open)
		require.False(t, sub.Joined())
		client := b.client()
		require.EqualValues(t, 10, b.committed(client, "g", "t", 0)+b.committed(client, "g", "t", 1)+1, "one partition has all, the other none")
	})
}

// What is fetched ahead is bounded in bytes while a batch is in flight, whatever waits on the brokers.
func TestSubscriberFetchesAheadBoundedBytes(t *testing.T) {
	onEach(t, apache, func(t *testing.T, newBroker newBrokerFunc) {
		b := newBroker(t, 2, "t")
		client := b.client(kgo.ProducerBatchMaxBytes(50_000), kgo.ProducerBatchCompression(kgo.NoCompression()))
		const total, size, bound = 600, 10_000, 200_000
		var records []*kgo.Record
		for i := range total {
			records = append(records, &kgo.Record{Topic: b.named("t"), Key: []byte(fmt.Sprint("k", i%10)), Value: fmt.Appendf(nil, "%0*d", size, i)})
		}
		require.NoError(t, client.ProduceSync(t.Context(), records...).FirstErr())
		cfg := b.config("g")
		cfg.MaxBatch, cfg.MaxBytes = 10, bound
		sub, out := b.subscribe(cfg, "t")
		last := map[string]int{}
		for seen := 0; seen < total; {
			m := next(t, out)
			require.LessOrEqual(t, sub.Buffered(), int64(2*bound))
			for _, r := range batch.From(m).Records() {
				n, err := strconv.Atoi(string(r.Value))
				require.NoError(t, err)
				before, ok := last[r.Key]
				require.True(t, !ok || n == before+10, "%s: %d after %d", r.Key, n, before)
				last[r.Key] = n
				seen++
			}
			m.Ack()
		}
	})
}

func TestSubscriberTakesForeignRecords(t *testing.T) {
	onEach(t, apache, func(t *testing.T, newBroker newBrokerFunc) {
		b := newBroker(t, 1, "t", "u")
		client := b.client()
		require.NoError(t, client.ProduceSync(t.Context(),
			&kgo.Record{Topic: b.named("t"), Value: []byte("not ours")},
			&kgo.Record{Topic: b.named("t")},
			&kgo.Record{Topic: b.named("t"), Key: []byte("k\xff"), Headers: []kgo.RecordHeader{{Key: "x"}, {Key: "event_id"}}},
		).FirstErr())
		cfg := b.config("g")
		cfg.MaxBatch = 1
		_, out := b.subscribe(cfg, "t,u")
		m := next(t, out)
		require.Equal(t, "not ours", string(m.Payload))
		require.Equal(t, b.named("t/0/0"), m.UUID)
		require.Empty(t, m.Metadata)
		m.Ack()
		m = next(t, out)
		require.Empty(t, m.Payload)
		m.Ack()
		m = next(t, out)
		require.Equal(t, b.named("t/0/2"), m.UUID)
		require.Equal(t, message.Metadata{"x": ""}, m.Metadata)
		require.Equal(t, "k\xff", batch.From(m).Records()[0].Key)
		m.Ack()
		require.NoError(t, client.ProduceSync(t.Context(), &kgo.Record{Topic: b.named("u"), Value: []byte("u")}).FirstErr())
		m = next(t, out)
		require.Equal(t, b.named("u/0/0"), m.UUID)
		m.Ack()
	})
}

// Goroutines are per connection, not per record.
func TestSubscriberGoroutines(t *testing.T) { //nolint:paralleltest // counts the goroutines of the process
	b := newBroker(t, 4, "t")
	p := b.publisher()
	publish(t, p, b.named("t"), "warm", 0, 1)
	_, out := b.subscribe(b.config("g"), "t")
	next(t, out).Ack()
	before := runtime.NumGoroutine()
	for k := range 8 {
		publish(t, p, b.named("t"), fmt.Sprint("k", k), 0, 50)
	}
	for seen := 0; seen < 400; {
		m := next(t, out)
		require.Less(t, runtime.NumGoroutine(), before+20)
		seen += len(numbers(t, m))
		m.Ack()
	}
}

func TestSubscriberJoinsWithoutPartitions(t *testing.T) {
	onEach(t, apache, func(t *testing.T, newBroker newBrokerFunc) {
		b := newBroker(t, 1, "t")
		first, _ := b.subscribe(b.config("g"), "t")
		require.Eventually(t, first.Joined, soon, tick)
		second, _ := b.subscribe(b.config("g"), "t")
		require.Eventually(t, second.Joined, soon, tick)
		require.Equal(t, 1, first.Assigned()+second.Assigned())
	})
}

func TestSubscriberKeepsPlaceAsStaticMember(t *testing.T) {
	onEach(t, apache, func(t *testing.T, newBroker newBrokerFunc) {
		b := newBroker(t, 2, "t")
		p := b.publisher()
		cfg := b.config("g")
		cfg.InstanceID, cfg.SessionTimeout = "one", time.Minute
		sub, out := b.subscribe(cfg, "t")
		publish(t, p, b.named("t"), "k", 0, 3)
		expect(t, out, 0, 3)
		drain(t, sub, out)
		publish(t, p, b.named("t"), "k", 3, 4)
		_, out = b.subscribe(cfg, "t")
		expect(t, out, 3, 4) // at once, not after the session timeout
	})
}

func TestEnsureTopics(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1, "old")
	client := b.client()
	cfg := kafka.TopicConfig{Partitions: 3, Replication: -1, Retention: time.Hour}
	require.NoError(t, kafka.EnsureTopics(t.Context(), client, cfg, "old", "new"))
	require.NoError(t, kafka.EnsureTopics(t.Context(), client, cfg, "old", "new"), "again")
	copies := kafka.TopicConfig{Partitions: 1, Replication: 5}
	require.ErrorContains(t, kafka.EnsureTopics(t.Context(), client, copies, "copied"), "copied")
	sub, _ := b.subscribe(b.config("g"), strings.Join([]string{"old", "new"}, ","))
	require.Eventually(t, func() bool { return sub.Assigned() == 4 }, soon, tick)

	b.stop()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, kafka.AwaitTopics(ctx, b.brokers(), discard, cfg, "later"), context.DeadlineExceeded)
	b.start()
	require.NoError(t, kafka.AwaitTopics(t.Context(), b.brokers(), discard, cfg, "later"))
}
