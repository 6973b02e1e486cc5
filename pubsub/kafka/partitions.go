package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// hash is Kafka's own partitioner. It keeps no state for records that have a key.
var hash = kgo.StickyKeyPartitioner(nil).ForTopic("")

// PartitionOf returns the partition of a key in a topic whose keys are spread over so many partitions: Kafka's murmur2.
// Records without a key are in the partition of the empty one.
func PartitionOf(key string, partitions int) int32 { return partitionOf([]byte(key), partitions) }

func partitionOf(key []byte, partitions int) int32 {
	if partitions < 2 {
		return 0
	}
	if key == nil {
		key = []byte{}
	}
	return int32(hash.Partition(&kgo.Record{Key: key}, partitions)) //nolint:gosec // below the number of partitions
}

// partitioner puts records of a topic where their keys belong, however many partitions it has been given since.
func (p *Publisher) partitioner(topic string) func(*kgo.Record, int) int {
	return func(r *kgo.Record, partitions int) int {
		if s := p.spreadOf(topic); s != nil {
			partitions = min(s.partitions, partitions)
		}
		return int(partitionOf(r.Key, partitions))
	}
}

// spread is what the publisher knows of a topic.
type spread struct {
	partitions int  // that the keys are spread over
	used       bool // the client has produced to it; of whoever places records
}

// spreadOf returns nil for a topic that nothing is known of.
func (p *Publisher) spreadOf(topic string) *spread {
	s, _ := p.topics.Load(topic)
	found, _ := s.(*spread)
	return found
}

// know finds out what must be known of the topics of records. It reports whether the client has never produced to one.
func (p *Publisher) know(records []attempt) (fresh bool, err error) {
	last := ""
	for _, a := range records {
		topic := a.record.Topic
		if topic == last {
			continue
		}
		last = topic
		if p.spreadOf(topic) == nil {
			ctx, cancel := context.WithTimeout(p.ctx, askTimeout)
			err := p.learn(ctx, topic)
			cancel()
			if err != nil {
				return false, err
			}
		}
		fresh = fresh || !p.spreadOf(topic).used
	}
	return fresh, nil
}

// askTimeout bounds one look at a topic.
const askTimeout = 5 * time.Second

// learn asks for the partitions of a topic, and creates it if it is missing and may be created.
func (p *Publisher) learn(ctx context.Context, topic string) error {
	admin := kadm.NewClient(p.client)
	found, err := admin.ListTopics(ctx, topic)
	if err == nil {
		err = found.Error()
	}
	if errors.Is(err, kerr.UnknownTopicOrPartition) && p.cfg.Topics.Partitions > 0 {
		if err := EnsureTopics(ctx, p.client, p.cfg.Topics, topic); err != nil {
			return err
		}
		p.cfg.Log.Warn("a topic was missing on the bus, created it", "topic", topic)
	}
	if err != nil {
		return fmt.Errorf("ask for the partitions of %s: %w", topic, err)
	}
	has := len(found[topic].Partitions)
	over := has
	if p.cfg.Partitions != nil && has > 0 {
		if over, err = p.cfg.Partitions(ctx, topic, has); err != nil {
			return fmt.Errorf("ask how the keys of %s are spread: %w", topic, err)
		}
	}
	if over < 1 || has < 1 {
		return fmt.Errorf("topic %s has no partitions: %w", topic, kerr.UnknownTopicOrPartition)
	}
	if over != has {
		p.cfg.Log.Warn("a topic has another number of partitions than its keys are spread over", "topic", topic, "partitions", has, "spread_over", over)
	}
	p.topics.Store(topic, &spread{partitions: min(over, has)})
	return nil
}
