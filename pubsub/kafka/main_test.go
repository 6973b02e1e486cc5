package kafka_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
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
	"github.com/cornjacket/platform-services/pubsub/kafka"
)

const (
	soon = 20 * time.Second
	tick = 2 * time.Millisecond
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var discard = slog.New(slog.DiscardHandler)

// broker is a Kafka API that can be taken away and brought back, with its data, at the same address.
type broker struct {
	t   *testing.T
	cfg devstack.KafkaConfig

	mu sync.Mutex
	k  *devstack.Kafka
}

func newBroker(t *testing.T, partitions int, topics ...string) *broker {
	t.Helper()
	b := &broker{t: t, cfg: devstack.KafkaConfig{
		Addr: "127.0.0.1:0", Dir: t.TempDir(), Partitions: partitions, Topics: topics, Log: discard}}
	b.start()
	t.Cleanup(b.stop)
	return b
}

func (b *broker) start() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	k, err := devstack.StartKafka(b.cfg)
	require.NoError(b.t, err)
	b.k, b.cfg.Addr = k, k.Addr()
}

func (b *broker) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.k != nil {
		b.k.Close()
		b.k = nil
	}
}

func (b *broker) brokers() []string { return []string{b.cfg.Addr} }

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
	return kafka.SubscriberConfig{Brokers: b.brokers(), Group: group, SessionTimeout: 2 * time.Second, CloseTimeout: 5 * time.Second}
}

// subscribe starts a subscriber that ends with the test at the latest.
func (b *broker) subscribe(cfg kafka.SubscriberConfig, topics string) (*kafka.Subscriber, <-chan *message.Message) {
	b.t.Helper()
	sub := kafka.NewSubscriber(cfg)
	out, err := sub.Subscribe(context.Background(), topics)
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
	offsets, err := kadm.NewClient(client).FetchOffsets(context.Background(), group)
	require.NoError(b.t, err)
	o, ok := offsets.Lookup(topic, partition)
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

func number(t *testing.T, m *message.Message) int {
	t.Helper()
	n, err := strconv.Atoi(string(m.Payload))
	require.NoError(t, err)
	return n
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
