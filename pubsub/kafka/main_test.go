package kafka_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/devstack"
	"github.com/cornjacket/platform-services/internal/kafkatest"
	"github.com/cornjacket/platform-services/pubsub/batch"
	"github.com/cornjacket/platform-services/pubsub/kafka"
)

const (
	soon = 20 * time.Second
	tick = 2 * time.Millisecond
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, kafkatest.IgnoreServer()) }

var discard = slog.New(slog.DiscardHandler)

// broker is a Kafka API that can be taken away and brought back, with its data, at the same address.
type broker struct {
	t          *testing.T
	addr       string
	partitions int
	prefix     string // of topics and groups, on a broker that tests share
	exact      bool   // remembers producers through restarts
	start      func()
	stop       func()
	kill       func() // at once, as kill -9 does
}

// named returns the name of a topic or group of this test.
func (b *broker) named(name string) string { return b.prefix + name }

func (b *broker) brokers() []string { return []string{b.addr} }

// newBroker returns a broker in this process.
func newBroker(t *testing.T, partitions int, topics ...string) *broker {
	t.Helper()
	cfg := devstack.KafkaConfig{Addr: "127.0.0.1:0", Dir: t.TempDir(), Partitions: partitions, Topics: topics, Log: discard}
	var mu sync.Mutex
	var running *devstack.Kafka
	b := &broker{t: t, partitions: partitions}
	b.start = func() {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		k, err := devstack.StartKafka(cfg)
		require.NoError(t, err)
		running, cfg.Addr = k, k.Addr()
	}
	b.stop = func() {
		mu.Lock()
		defer mu.Unlock()
		if running != nil {
			running.Close()
			running = nil
		}
	}
	b.kill = b.stop
	b.start()
	b.addr = cfg.Addr
	t.Cleanup(b.stop)
	return b
}

// kinds of brokers.
type newBrokerFunc func(t *testing.T, partitions int, topics ...string) *broker

// apache returns the Apache Kafka that the tests of this package share. It can't be stopped.
func apache(t *testing.T, partitions int, topics ...string) *broker {
	t.Helper()
	b := &broker{t: t, addr: kafkatest.Shared(t), partitions: partitions, prefix: rand.Text() + "-", exact: true}
	b.create(topics...)
	return b
}

// ownApache returns an Apache Kafka of the test's own.
func ownApache(t *testing.T, partitions int, topics ...string) *broker {
	t.Helper()
	k := kafkatest.Start(t)
	b := &broker{t: t, addr: k.Addr(), partitions: partitions, exact: true,
		start: func() { k.Restart(t) }, stop: func() { k.Stop(t) }, kill: func() { k.Kill(t) }}
	b.create(topics...)
	return b
}

func (b *broker) create(topics ...string) {
	b.t.Helper()
	if len(topics) == 0 {
		return
	}
	for i := range topics {
		topics[i] = b.named(topics[i])
	}
	cfg := kafka.TopicConfig{Partitions: b.partitions, Replication: 1}
	require.NoError(b.t, kafka.EnsureTopics(b.t.Context(), b.client(), cfg, topics...))
}

// onEach runs a test on a broker in this process and on Apache Kafka, or on one of its own where it stops the broker.
func onEach(t *testing.T, real newBrokerFunc, test func(t *testing.T, newBroker newBrokerFunc)) {
	t.Parallel()
	for name, kind := range map[string]newBrokerFunc{"kfake": newBroker, "Apache Kafka": real} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, kind)
		})
	}
}

func (b *broker) publisher() *kafka.Publisher {
	b.t.Helper()
	p, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: b.brokers()})
	require.NoError(b.t, err)
	b.t.Cleanup(func() { require.NoError(b.t, p.Close()) })
	return p
}

// client is one of no adapter of ours.
func (b *broker) client(opts ...kgo.Opt) *kgo.Client {
	b.t.Helper()
	c, err := kafka.NewClient(b.brokers(), nil, opts...)
	require.NoError(b.t, err)
	b.t.Cleanup(c.Close)
	return c
}

func (b *broker) config(group string) kafka.SubscriberConfig {
	return kafka.SubscriberConfig{Brokers: b.brokers(), Group: b.named(group), SessionTimeout: 2 * time.Second, CloseTimeout: 5 * time.Second}
}

// subscribe starts a subscriber that ends with the test at the latest.
func (b *broker) subscribe(cfg kafka.SubscriberConfig, topics string) (*kafka.Subscriber, <-chan *message.Message) {
	b.t.Helper()
	sub := kafka.NewSubscriber(cfg)
	all := strings.Split(topics, ",")
	for i := range all {
		all[i] = b.named(all[i])
	}
	out, err := sub.Subscribe(context.Background(), strings.Join(all, ","))
	require.NoError(b.t, err)
	b.t.Cleanup(func() { drain(b.t, sub, out) })
	return sub, out
}

// drain closes a subscriber, acknowledging what it still hands out.
func drain(t *testing.T, sub *kafka.Subscriber, out <-chan *message.Message) {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		for m := range out {
			m.Ack()
		}
	})
	require.NoError(t, sub.Close())
	wg.Wait()
}

// committed returns the offset of a group in a partition, -1 if it has none.
func (b *broker) committed(client *kgo.Client, group, topic string, partition int32) int64 {
	b.t.Helper()
	offsets, err := kadm.NewClient(client).FetchOffsets(context.Background(), b.named(group))
	require.NoError(b.t, err)
	o, ok := offsets.Lookup(b.named(topic), partition)
	if !ok {
		return -1
	}
	return o.At
}

// keyed returns a message of an aggregate; its payload is its number.
func keyed(key string, n int) *message.Message {
	m := message.NewMessage(fmt.Sprintf("%s-%d", key, n), []byte(strconv.Itoa(n)))
	m.Metadata.Set(event.MetaAggregateID, key)
	m.Metadata.Set(event.MetaEventType, "sensor.reading")
	return m
}

// numbers returns the payloads of the records that a message has yet to do.
func numbers(t *testing.T, m *message.Message) []int {
	t.Helper()
	var all []int
	for _, r := range batch.From(m).Records() {
		n, err := strconv.Atoi(string(r.Value))
		require.NoError(t, err)
		all = append(all, n)
	}
	return all
}

// expect acknowledges messages until numbers from one up to another have come, in order.
func expect(t *testing.T, out <-chan *message.Message, from, to int) {
	t.Helper()
	var got []int
	for len(got) < to-from {
		m := next(t, out)
		got = append(got, numbers(t, m)...)
		m.Ack()
	}
	require.Equal(t, upTo(to)[from:], got)
}

func next(t *testing.T, out <-chan *message.Message) *message.Message {
	t.Helper()
	select {
	case m, ok := <-out:
		require.True(t, ok, "the subscription has ended")
		return m
	case <-time.After(soon):
		require.FailNow(t, "no message")
		return nil
	}
}

// records reads a topic without a group until each partition has been read to its end.
func (b *broker) records(topic string) []*kgo.Record {
	b.t.Helper()
	topic = b.named(topic)
	client := b.client(kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, topic)
	require.NoError(b.t, err)
	left := 0
	ends.Each(func(o kadm.ListedOffset) { left += int(o.Offset) })
	var all []*kgo.Record
	for len(all) < left {
		fetches := client.PollFetches(ctx)
		require.NoError(b.t, fetches.Err())
		all = append(all, fetches.Records()...)
	}
	return all
}

// byKey returns the payloads of records per key, in order.
func byKey(t *testing.T, records []*kgo.Record) map[string][]int {
	t.Helper()
	all := map[string][]int{}
	for _, r := range records {
		n, err := strconv.Atoi(string(r.Value))
		require.NoError(t, err)
		all[string(r.Key)] = append(all[string(r.Key)], n)
	}
	return all
}

func upTo(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

// firsts removes repetitions: what is left is when each number came first.
func firsts(numbers []int) []int {
	seen := map[int]bool{}
	return slices.DeleteFunc(slices.Clone(numbers), func(n int) bool {
		defer func() { seen[n] = true }()
		return seen[n]
	})
}
