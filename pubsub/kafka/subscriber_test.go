package kafka_test

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/kafka"
	"github.com/cornjacket/platform-services/pubsub/window"
)

func publish(t *testing.T, p *kafka.Publisher, topic, key string, from, to int) {
	t.Helper()
	var msgs []*message.Message
	for i := from; i < to; i++ {
		msgs = append(msgs, keyed(key, i))
	}
	require.NoError(t, p.Publish(topic, msgs...))
}

func TestSubscriberHandsOutAWindow(t *testing.T) {
	onEach(t, apache, func(t *testing.T, newBroker newBrokerFunc) {
		b := newBroker(t, 1, "t")
		p := b.publisher()
		cfg := b.config("g")
		cfg.Window = 5
		sub, out := b.subscribe(cfg, "t")
		publish(t, p, b.named("t"), "k", 0, 20)
		var held []*message.Message
		for i := range 5 {
			m := next(t, out)
			require.Equal(t, i, number(t, m))
			require.Equal(t, fmt.Sprint("k-", i), m.UUID)
			require.Equal(t, message.Metadata{event.MetaAggregateID: "k", event.MetaEventType: "sensor.reading"}, m.Metadata)
			src, ok := window.SourceFrom(m.Context())
			require.True(t, ok)
			require.Equal(t, window.Source{Topic: b.named("t"), Partition: 0, Offset: int64(i), Key: "k"}, src)
			held = append(held, m)
		}
		select {
		case m := <-out:
			require.FailNow(t, "window of 5 overrun", "%s", m.UUID)
		case <-time.After(100 * time.Millisecond):
		}
		require.True(t, sub.Joined())
		require.Equal(t, 1, sub.Assigned())
		require.NoError(t, sub.Ping(t.Context()))
		require.False(t, sub.Oldest().IsZero())
		last, err := sub.LastPoll()
		require.NoError(t, err)
		require.False(t, last.IsZero())
		for _, m := range held {
			m.Ack()
		}
		for i := 5; i < 20; i++ {
			m := next(t, out)
			require.Equal(t, i, number(t, m))
			m.Ack()
		}
		require.Eventually(t, func() bool { return sub.Oldest().IsZero() }, soon, tick)
		select {
		case <-held[0].Context().Done():
		case <-time.After(soon):
			require.FailNow(t, "the context of a message ends when it is done")
		}
	})
}

// A subscriber that dies leaves what it has not acknowledged, and what is behind such a gap, to the next one.
func TestSubscriberCommitsThePrefix(t *testing.T) {
	onEach(t, apache, func(t *testing.T, newBroker newBrokerFunc) {
		b := newBroker(t, 1, "t")
		p := b.publisher()
		cfg := b.config("g")
		cfg.SessionTimeout, cfg.CloseTimeout = 600*time.Millisecond, 10*time.Millisecond
		sub, out := b.subscribe(cfg, "t")
		publish(t, p, b.named("t"), "k", 0, 20)
		for i := range 20 {
			if m := next(t, out); i != 7 {
				m.Ack()
			}
		}
		client := b.client()
		require.Eventually(t, func() bool { return b.committed(client, "g", "t", 0) == 7 }, soon, tick, "while it runs")
		require.NoError(t, sub.Close())
		_, open := <-out
		require.False(t, open)
		require.EqualValues(t, 7, b.committed(client, "g", "t", 0))
		_, out = b.subscribe(b.config("g"), "t")
		for i := 7; i < 20; i++ {
			m := next(t, out)
			require.Equal(t, i, number(t, m))
			m.Ack()
		}
	})
}

func TestSubscriberHandsOutAgain(t *testing.T) {
	onEach(t, apache, func(t *testing.T, newBroker newBrokerFunc) {
		b := newBroker(t, 1, "t")
		p := b.publisher()
		_, out := b.subscribe(b.config("g"), "t")
		publish(t, p, b.named("t"), "k", 0, 2)
		publish(t, p, b.named("t"), "other", 2, 3)
		first, second, third := next(t, out), next(t, out), next(t, out)
		batcher := window.NewBatcher(window.BatcherConfig[int]{MaxBatch: 10, Flush: func(context.Context, []int) error { return nil }})
		defer func() { require.NoError(t, batcher.Close(context.Background())) }()
		later := make(chan error, 1)
		go func() { later <- batcher.Do(second.Context(), 1) }()
		require.NoError(t, batcher.Do(third.Context(), 2), "another key does not wait")
		for range 3 {
			first.Nack()
			first = next(t, out)
			require.Equal(t, 0, number(t, first))
			require.Empty(t, later, "its successor waits")
		}
		require.NoError(t, batcher.Do(first.Context(), 0))
		require.NoError(t, <-later)
		first.Ack()
		second.Ack()
		third.Ack()
		client := b.client()
		require.Eventually(t, func() bool { return b.committed(client, "g", "t", 0) == 3 }, soon, tick)
	})
}

func TestSubscriberCloseDrains(t *testing.T) {
	onEach(t, apache, func(t *testing.T, newBroker newBrokerFunc) {
		b := newBroker(t, 2, "t")
		p := b.publisher()
		sub, out := b.subscribe(b.config("g"), "t")
		publish(t, p, b.named("t"), "a", 0, 10)
		var held []*message.Message
		for range 10 {
			held = append(held, next(t, out))
		}
		closed := make(chan error, 1)
		go func() { closed <- sub.Close() }()
		require.Eventually(t, func() bool {
			_, err := sub.Subscribe(t.Context(), "t")
			return err != nil
		}, soon, tick)
		for _, m := range held[1:] {
			m.Ack()
		}
		require.Empty(t, closed)
		held[0].Ack()
		require.NoError(t, <-closed)
		_, open := <-out
		require.False(t, open)
		require.False(t, sub.Joined())
		client := b.client()
		require.EqualValues(t, 10, b.committed(client, "g", "t", 0)+b.committed(client, "g", "t", 1)+1, "one partition has all, the other none")
	})
}

// One partition that is stuck holds up neither the others nor the memory: its fetching is paused.
func TestSubscriberFullPartitionHoldsUpNoOther(t *testing.T) {
	onEach(t, apache, func(t *testing.T, newBroker newBrokerFunc) {
		b := newBroker(t, 2, "t")
		cfg := b.config("g")
		cfg.Window = 10
		_, out := b.subscribe(cfg, "t")
		client := b.client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
		const total = 5000
		produce := func(partition int32) {
			var records []*kgo.Record
			for i := range total {
				records = append(records, &kgo.Record{Topic: b.named("t"), Partition: partition, Key: []byte(fmt.Sprint("p", partition)), Value: []byte(fmt.Sprint(i))})
			}
			require.NoError(t, client.ProduceSync(t.Context(), records...).FirstErr())
		}
		produce(0)
		var held []*message.Message
		for range 10 {
			held = append(held, next(t, out))
		}
		produce(1)
		for i := range total {
			m := next(t, out)
			require.Equal(t, "p1", m.Metadata.Get(event.MetaAggregateID))
			require.Equal(t, i, number(t, m))
			m.Ack()
		}
		for _, m := range held {
			m.Ack()
		}
		for i := 10; i < total; i++ {
			m := next(t, out)
			require.Equal(t, "p0", m.Metadata.Get(event.MetaAggregateID))
			require.Equal(t, i, number(t, m), "what was fetched when it was paused is neither lost nor repeated")
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
		_, out := b.subscribe(b.config("g"), "t,u")
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
		require.Equal(t, message.Metadata{"x": "", event.MetaAggregateID: "k\xff"}, m.Metadata)
		m.Ack()
		require.NoError(t, client.ProduceSync(t.Context(), &kgo.Record{Topic: b.named("u"), Value: []byte("u")}).FirstErr())
		m = next(t, out)
		require.Equal(t, b.named("u/0/0"), m.UUID)
		m.Ack()
	})
}

// Goroutines are per partition, not per message.
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
	var held []*message.Message
	for range 400 {
		held = append(held, next(t, out))
	}
	require.Less(t, runtime.NumGoroutine(), before+40, "with 400 messages in flight")
	for _, m := range held {
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
		for range 3 {
			next(t, out).Ack()
		}
		drain(t, sub, out)
		publish(t, p, b.named("t"), "k", 3, 4)
		_, out = b.subscribe(cfg, "t")
		m := next(t, out)
		require.Equal(t, 3, number(t, m), "at once, not after the session timeout")
		m.Ack()
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
