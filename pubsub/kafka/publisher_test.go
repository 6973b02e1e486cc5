package kafka_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/pubsub/batch"
	"github.com/cornjacket/platform-services/pubsub/kafka"
)

func TestRecordsOnTheBus(t *testing.T) {
	onEach(t, apache, func(t *testing.T, newBroker newBrokerFunc) {
		b := newBroker(t, 1, "t")
		p := b.publisher()
		require.NoError(t, p.Ping(t.Context()))
		require.NoError(t, p.Publish(b.named("t")))
		m := message.NewMessage("id-1", []byte(`{"a":1}`))
		m.Metadata = message.Metadata{
			event.MetaAggregateID: "device-1", event.MetaEventType: "sensor.reading", event.MetaCorrelationID: "c-1", event.MetaTraceparent: "00-1",
		}
		require.NoError(t, p.Publish(b.named("t"), m, message.NewMessage("id-2", nil)))
		all := b.records("t")
		require.Len(t, all, 2)
		require.Equal(t, "device-1", string(all[0].Key))
		require.Equal(t, `{"a":1}`, string(all[0].Value))
		var headers []string
		for _, h := range all[0].Headers {
			headers = append(headers, h.Key+"="+string(h.Value))
		}
		require.Equal(t, []string{"event_id=id-1", "correlation_id=c-1", "event_type=sensor.reading", "traceparent=00-1"}, headers)
		require.Nil(t, all[1].Key)

		refused, err := p.PublishAll(t.Context(), []batch.Record{{
			Topic: b.named("t"), Partition: -1, Offset: 4711, Key: "device-1", ID: "id-3", Value: []byte(`{}`),
			Headers: []batch.Header{{Key: event.MetaCorrelationID, Value: "c-1"}, {Key: event.MetaEventType, Value: "sensor.reading"}},
		}})
		require.NoError(t, err)
		require.Empty(t, refused)
		last := b.records("t")[2]
		require.Equal(t, "device-1 {} event_id=id-3 correlation_id=c-1 event_type=sensor.reading", fmt.Sprintf("%s %s %s=%s %s=%s %s=%s", last.Key, last.Value,
			last.Headers[0].Key, last.Headers[0].Value, last.Headers[1].Key, last.Headers[1].Value, last.Headers[2].Key, last.Headers[2].Value))
	})
}

// entry returns a record of an aggregate; its value is its number.
func entry(topic, key string, n int) batch.Record {
	return batch.Record{Topic: topic, Partition: -1, Offset: int64(n), Key: key, ID: fmt.Sprintf("%s-%d", key, n), Value: []byte(strconv.Itoa(n))}
}

// entries returns n records of some keys in turn.
func entries(topic string, keys, n int) []batch.Record {
	all := make([]batch.Record, n)
	for i := range all {
		all[i] = entry(topic, fmt.Sprint("k", i%keys), i/keys)
	}
	return all
}

// order publishes n records of some keys in batches, and does something when a quarter of them is on the bus.
func order(t *testing.T, b *broker, keys, n int, during func()) {
	t.Helper()
	p := b.publisher()
	var meanwhile sync.WaitGroup
	done := 0
	for records := range slices.Chunk(entries(b.named("t"), keys, n), 500) {
		refused, err := p.PublishAll(t.Context(), records)
		require.NoError(t, err)
		require.Empty(t, refused)
		if done += len(records); done == n/4 {
			meanwhile.Go(during)
		}
	}
	meanwhile.Wait()
}

func TestPublisherKeepsOrder(t *testing.T) {
	onEach(t, apache, func(t *testing.T, newBroker newBrokerFunc) {
		b := newBroker(t, 8, "t")
		order(t, b, 10, 20_000, func() {})
		all := byKey(t, b.records("t"))
		require.Len(t, all, 10)
		for key, got := range all {
			require.Equal(t, upTo(2000), got, key)
		}
	})
}

// The broker goes and comes back, more than once, while messages are on their way: none that was acknowledged is
// missing. Where the broker remembers its producers none comes twice; else a batch that was stored when its
// acknowledgement got lost may do so, but never out of order.
func TestPublisherSurvivesRestarts(t *testing.T) {
	onEach(t, ownApache, func(t *testing.T, newBroker newBrokerFunc) {
		b := newBroker(t, 4, "t")
		order(t, b, 10, 20_000, func() {
			for _, end := range []func(){b.stop, b.kill} {
				end()
				b.start()
			}
		})
		all := byKey(t, b.records("t"))
		require.Len(t, all, 10)
		for key, got := range all {
			if !b.exact {
				got = firsts(got)
			}
			require.Equal(t, upTo(2000), got, key)
		}
	})
}

func TestPublisherWaitsForBrokerAndTopic(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1)
	p := b.publisher()
	b.stop()
	answer := make(chan error, 1)
	go func() { answer <- p.Publish("new", keyed("k", 0)) }()
	select {
	case err := <-answer:
		require.FailNow(t, "must wait", "%v", err)
	case <-time.After(100 * time.Millisecond):
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	require.Error(t, p.Ping(ctx))
	b.start()
	require.NoError(t, kafka.AwaitTopics(t.Context(), b.brokers(), discard, kafka.TopicConfig{Partitions: 1, Replication: 1}, "new"))
	require.NoError(t, <-answer)
	require.Len(t, b.records("new"), 1)
}

func TestPublisherRefusesForGood(t *testing.T) {
	onEach(t, apache, func(t *testing.T, newBroker newBrokerFunc) {
		b := newBroker(t, 1, "t")
		p := b.publisher()
		large := message.NewMessage("large", bytes.Repeat([]byte("x"), 2<<20))
		err := p.Publish(b.named("t"), keyed("k", 0), large, keyed("k", 1))
		require.True(t, fault.IsPermanent(err), "%v", err)
		require.Equal(t, map[string][]int{"k": {0, 1}}, byKey(t, b.records("t")))

		records := entries(b.named("t"), 1, 100)
		records[40].Value = large.Payload
		refused, err := p.PublishAll(t.Context(), records)
		require.NoError(t, err)
		require.Len(t, refused, 1)
		require.Equal(t, 40, refused[0].Index)
		require.Equal(t, slices.Delete(upTo(100), 40, 41), byKey(t, b.records("t"))["k0"])
	})
}

func TestPublisherClose(t *testing.T) {
	onEach(t, apache, func(t *testing.T, newBroker newBrokerFunc) {
		b := newBroker(t, 1, "t")
		p := b.publisher()
		answers := make(chan error, 100)
		for i := range 100 {
			go func() { answers <- p.Publish(b.named("t"), keyed("k", i)) }()
		}
		acknowledged := 0
		require.NoError(t, <-answers)
		acknowledged++
		require.NoError(t, p.Close())
		require.NoError(t, p.Close(), "again")
		for range 99 {
			if err := <-answers; err == nil {
				acknowledged++
			} else {
				require.ErrorIs(t, err, kafka.ErrClosed)
			}
		}
		require.GreaterOrEqual(t, len(b.records("t")), acknowledged)
		require.ErrorIs(t, p.Publish(b.named("t"), keyed("k", 0)), kafka.ErrClosed)
	})
}

func TestPublisherShutdownGivesUp(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1, "t")
	p, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: b.brokers()})
	require.NoError(t, err)
	require.NoError(t, p.Publish(b.named("t"), keyed("k", 0)))
	b.stop()
	answer := make(chan error, 1)
	go func() { answer <- p.Publish(b.named("t"), keyed("k", 1)) }()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	select {
	case err := <-answer:
		require.FailNow(t, "must wait", "%v", err)
	case <-time.After(50 * time.Millisecond):
	}
	require.ErrorIs(t, p.Shutdown(ctx), context.DeadlineExceeded)
	require.ErrorIs(t, <-answer, kafka.ErrClosed)
}

// A broker that dies or starts cuts connections off before it has answered anything: that is waited out too.
func TestPublisherWaitsThroughCutConnections(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1, "t")
	p := b.publisher()
	b.stop()
	door, err := net.Listen("tcp", b.addr)
	require.NoError(t, err)
	answer := make(chan error, 1)
	go func() { answer <- p.Publish("t", keyed("k", 0)) }()
	for range 5 {
		conn, err := door.Accept()
		require.NoError(t, err)
		_, err = conn.Read(make([]byte, 64<<10)) // all that the client says, or it would be a reset
		require.NoError(t, err)
		require.NoError(t, conn.Close())
	}
	require.NoError(t, door.Close())
	require.Empty(t, answer)
	b.start()
	require.NoError(t, <-answer)
	require.Equal(t, upTo(1), byKey(t, b.records("t"))["k"])
}
