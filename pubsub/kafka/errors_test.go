package kafka_test

import (
	"bytes"
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cornjacket/platform-services/pubsub/kafka"
)

// failing returns a broker that answers some of its produce requests with an error: those for which the function returns one.
func failing(t *testing.T, partitions int, fail func(n int32) *kerr.Error) *broker {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(int32(partitions), "t"))
	require.NoError(t, err)
	t.Cleanup(cluster.Close)
	var requests atomic.Int32
	cluster.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		failure := fail(requests.Add(1))
		if failure == nil {
			return nil, nil, false
		}
		req := r.(*kmsg.ProduceRequest)
		resp := req.ResponseKind().(*kmsg.ProduceResponse)
		for _, topic := range req.Topics {
			answer := kmsg.ProduceResponseTopic{Topic: topic.Topic, TopicID: topic.TopicID}
			for _, p := range topic.Partitions {
				refused := kmsg.NewProduceResponseTopicPartition()
				refused.Partition, refused.ErrorCode = p.Partition, failure.Code
				answer.Partitions = append(answer.Partitions, refused)
			}
			resp.Topics = append(resp.Topics, answer)
		}
		return resp, nil, true
	})
	return &broker{t: t, addr: cluster.ListenAddrs()[0], partitions: partitions}
}

// Errors that the client does not try again by itself change no order, and make no dead letters.
func TestPublisherKeepsOrderThroughErrors(t *testing.T) {
	t.Parallel()
	for _, failure := range []*kerr.Error{
		kerr.UnknownServerError, kerr.TopicAuthorizationFailed, kerr.ClusterAuthorizationFailed, kerr.CorruptMessage, kerr.PolicyViolation,
		kerr.InvalidTimestamp, kerr.UnknownTopicID, kerr.NotLeaderForPartition,
	} {
		for name, fail := range map[string]func(int32) *kerr.Error{
			"once":        func(n int32) *kerr.Error { return map[bool]*kerr.Error{true: failure}[n == 1] },
			"second":      func(n int32) *kerr.Error { return map[bool]*kerr.Error{true: failure}[n == 2] },
			"every third": func(n int32) *kerr.Error { return map[bool]*kerr.Error{true: failure}[n%3 == 0] },
		} {
			t.Run(failure.Message+" "+name, func(t *testing.T) {
				t.Parallel()
				b := failing(t, 2, fail)
				p := b.publisher()
				const keys, each, n = 3, 300, 900
				for records := range slices.Chunk(entries("t", keys, n), 150) {
					refused, err := p.PublishAll(t.Context(), records)
					require.NoError(t, err)
					require.Empty(t, refused)
				}
				for key, got := range byKey(t, b.records("t")) {
					require.Equal(t, upTo(each), got, key)
				}
				since, err := p.Failing()
				require.NoError(t, err)
				require.Zero(t, since)
			})
		}
	}
}

// A broker refuses whole batches, for one record of them or none.
func TestPublisherBlamesRecordsAlone(t *testing.T) {
	t.Parallel()
	for _, failure := range []*kerr.Error{kerr.MessageTooLarge, kerr.RecordListTooLarge, kerr.InvalidRecord} {
		t.Run(failure.Message, func(t *testing.T) {
			t.Parallel()
			b := failing(t, 2, func(n int32) *kerr.Error { return map[bool]*kerr.Error{true: failure}[n != 3 && n < 8] })
			refused, err := b.publisher().PublishAll(t.Context(), entries("t", 3, 300))
			require.NoError(t, err)
			require.Empty(t, refused)
			for key, got := range byKey(t, b.records("t")) {
				require.Equal(t, upTo(100), got, key)
			}
		})
	}
}

// A topic takes less at once than the client sends, and one record is more than it takes at all.
func TestPublisherDividesWhatIsTooLarge(t *testing.T) {
	onEach(t, apache, func(t *testing.T, newBroker newBrokerFunc) {
		b := newBroker(t, 2)
		_, err := kadm.NewClient(b.client()).CreateTopic(t.Context(), 2, 1, map[string]*string{"max.message.bytes": kadm.StringPtr("5000")}, b.named("t"))
		require.NoError(t, err)
		records := entries(b.named("t"), 3, 3000)
		records[700].Value = bytes.Repeat([]byte("x"), 8000)
		refused, err := b.publisher().PublishAll(t.Context(), records)
		require.NoError(t, err)
		require.Len(t, refused, 1)
		require.Equal(t, 700, refused[0].Index)
		require.ErrorIs(t, refused[0].Err, kerr.MessageTooLarge)
		all := byKey(t, b.records("t"))
		require.Equal(t, upTo(1000), all["k0"])
		require.Equal(t, slices.Delete(upTo(1000), 233, 234), all["k1"])
		require.Equal(t, upTo(1000), all["k2"])
	})
}

// While attempts fail the publisher says so, and a call that is given up is gone on with by the next one.
func TestPublisherTellsThatItFails(t *testing.T) {
	t.Parallel()
	var healed atomic.Bool
	b := failing(t, 1, func(int32) *kerr.Error {
		if healed.Load() {
			return nil
		}
		return kerr.TopicAuthorizationFailed
	})
	p := b.publisher()
	records := entries("t", 1, 50)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := p.PublishAll(ctx, records)
	require.ErrorContains(t, err, kerr.TopicAuthorizationFailed.Message)
	require.NotErrorIs(t, err, context.DeadlineExceeded, "fewer at once would not help")
	since, err := p.Failing()
	require.ErrorIs(t, err, kerr.TopicAuthorizationFailed)
	require.WithinRange(t, since, time.Now().Add(-soon), time.Now())
	healed.Store(true)
	_, err = p.PublishAll(t.Context(), records)
	require.NoError(t, err)
	_, err = p.Failing()
	require.NoError(t, err)
	require.Equal(t, upTo(50), byKey(t, b.records("t"))["k0"], "once each")

	t.Run("then with another batch", func(t *testing.T) {
		healed.Store(false)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		more := entries("t", 1, 70)
		_, err := p.PublishAll(ctx, more[50:60])
		require.Error(t, err)
		healed.Store(true)
		_, err = p.PublishAll(t.Context(), more[60:])
		require.NoError(t, err)
		require.Equal(t, upTo(70), byKey(t, b.records("t"))["k0"])
	})
}

// A topic that is deleted, and made anew by the publisher or by somebody else, is published to again.
func TestPublisherFindsATopicMadeAnew(t *testing.T) {
	for name, anew := range map[string]int{"by somebody else": 0, "by the publisher": 3} {
		t.Run(name, func(t *testing.T) {
			onEach(t, apache, func(t *testing.T, newBroker newBrokerFunc) {
				b := newBroker(t, 3, "t")
				p, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: b.brokers(), Topics: kafka.TopicConfig{Partitions: anew, Replication: 1}})
				require.NoError(t, err)
				defer func() { require.NoError(t, p.Close()) }()
				_, err = p.PublishAll(t.Context(), entries(b.named("t"), 5, 50))
				require.NoError(t, err)
				admin := kadm.NewClient(b.client())
				_, err = admin.DeleteTopics(t.Context(), b.named("t"))
				require.NoError(t, err)
				require.Eventually(t, func() bool {
					found, err := admin.ListTopics(t.Context(), b.named("t"))
					return err == nil && found[b.named("t")].Err != nil
				}, soon, 50*time.Millisecond)
				if anew == 0 {
					require.NoError(t, kafka.EnsureTopics(t.Context(), b.client(), kafka.TopicConfig{Partitions: 2, Replication: 1}, b.named("t")))
				}
				_, err = p.PublishAll(t.Context(), entries(b.named("t"), 4, 40))
				require.NoError(t, err)
				all := byKey(t, b.records("t"))
				require.Len(t, all, 4)
				for key, got := range all {
					require.Equal(t, upTo(10), got, key)
				}
			})
		})
	}
}

// Keys stay in their partitions when a topic is given more of them.
func TestPublisherKeepsPartitions(t *testing.T) {
	onEach(t, apache, func(t *testing.T, newBroker newBrokerFunc) {
		b := newBroker(t, 3, "t")
		remembered := map[string]int{}
		publish := func(from, to int) {
			p, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: b.brokers(), Partitions: func(_ context.Context, topic string, now int) (int, error) {
				if remembered[topic] == 0 {
					remembered[topic] = now
				}
				return remembered[topic], nil
			}})
			require.NoError(t, err)
			defer func() { require.NoError(t, p.Close()) }()
			_, err = p.PublishAll(t.Context(), entries(b.named("t"), 20, to*20)[from*20:])
			require.NoError(t, err)
		}
		publish(0, 10)
		_, err := kadm.NewClient(b.client()).CreatePartitions(t.Context(), 5, b.named("t"))
		require.NoError(t, err)
		publish(10, 20)
		where := map[string]int32{}
		for _, r := range b.records("t") {
			if before, ok := where[string(r.Key)]; ok {
				require.Equal(t, before, r.Partition, "%s", r.Key)
			}
			where[string(r.Key)] = r.Partition
			require.Equal(t, kafka.PartitionOf(string(r.Key), 3), r.Partition)
		}
		for key, got := range byKey(t, b.records("t")) {
			require.Equal(t, upTo(20), got, key)
		}
	})
}
