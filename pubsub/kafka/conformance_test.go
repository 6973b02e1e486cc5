package kafka_test

import (
	"os"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/kafka"
)

// TestConformance runs Watermill's suite.
//
// The suite knows no batches, so each has one record; and no partitions, so order is claimed for one of them only. The
// other tests prove it for batches.
func TestConformance(t *testing.T) {
	if testing.Short() {
		t.Skip("Watermill's suite takes half a minute")
	}
	onEach(t, apache, func(t *testing.T, newBroker newBrokerFunc) {
		for name, partitions := range map[string]int{"one partition": 1, "partitions": 4} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				conform(t, newBroker(t, partitions))
			})
		}
	})
}

func conform(t *testing.T, b *broker) {
	create := func(t *testing.T, group string) (message.Publisher, message.Subscriber) {
		pub, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: b.brokers()})
		require.NoError(t, err)
		sub := kafka.NewSubscriber(kafka.SubscriberConfig{Brokers: b.brokers(), Group: b.named(group), MaxBatch: 1,
			SessionTimeout: 2 * time.Second, CloseTimeout: 500 * time.Millisecond, MaxPause: time.Millisecond})
		t.Cleanup(func() { // TestPublishSubscribeInOrder and others forget some
			require.NoError(t, pub.Close())
			require.NoError(t, sub.Close())
		})
		return &carrierPub{pub}, &initializedSub{sub, b}
	}
	tests.TestPubSub(t, tests.Features{
		ConsumerGroups:  true,
		GuaranteedOrder: b.partitions == 1,
		Persistent:      true,
		ForceShort:      os.Getenv("CI") == "",
	}, func(t *testing.T) (message.Publisher, message.Subscriber) {
		return create(t, t.Name())
	}, create)
}

// carrierPub gives the suite's messages the key that our records have.
type carrierPub struct{ *kafka.Publisher }

func (p *carrierPub) Publish(topic string, msgs ...*message.Message) error {
	keyed := make([]*message.Message, len(msgs))
	for i, m := range msgs {
		keyed[i] = m.Copy()
		keyed[i].Metadata.Set(event.MetaAggregateID, string(m.Payload))
	}
	return p.Publisher.Publish(topic, keyed...)
}

// initializedSub creates the topics of the suite.
type initializedSub struct {
	*kafka.Subscriber
	b *broker
}

func (s *initializedSub) SubscribeInitialize(topic string) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(s.b.brokers()...))
	if err != nil {
		return err
	}
	defer client.Close()
	return kafka.EnsureTopics(s.b.t.Context(), client, kafka.TopicConfig{Partitions: s.b.partitions, Replication: 1}, topic)
}
