// Package kafka is the Watermill adapter of the hot path for the Kafka API: a pipelined publisher that keeps the order
// of each key, and a subscriber that hands out one batch at a time.
package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/batch"
)

// record returns a message as a record: key is the aggregate, the UUID and the metadata are headers.
func record(topic string, m *message.Message) *kgo.Record {
	r := &kgo.Record{
		Topic:   topic,
		Value:   m.Payload,
		Headers: make([]kgo.RecordHeader, 1, len(m.Metadata)+1),
	}
	r.Headers[0] = kgo.RecordHeader{Key: event.MetaEventID, Value: []byte(m.UUID)}
	for k, v := range m.Metadata {
		if k == event.MetaAggregateID {
			r.Key = []byte(v)
			continue
		}
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: k, Value: []byte(v)})
	}
	// One order, whatever the map's is. There are two or three.
	slices.SortFunc(r.Headers[1:], func(a, b kgo.RecordHeader) int { return strings.Compare(a.Key, b.Key) })
	if m.UUID == "" { // a dead letter of something that has no ID
		r.Headers = r.Headers[1:]
	}
	return r
}

// toKafka returns records of a batch as those of Kafka.
func toKafka(records []batch.Record) []*kgo.Record {
	all := make([]*kgo.Record, len(records))
	for i := range records {
		r := &records[i]
		k := &kgo.Record{Topic: r.Topic, Key: []byte(r.Key), Value: r.Value, Headers: make([]kgo.RecordHeader, 1, 1+len(r.Headers))}
		k.Headers[0] = kgo.RecordHeader{Key: event.MetaEventID, Value: []byte(r.ID)}
		for _, h := range r.Headers {
			k.Headers = append(k.Headers, kgo.RecordHeader{Key: h.Key, Value: []byte(h.Value)})
		}
		all[i] = k
	}
	return all
}

// TopicConfig says how topics are created.
type TopicConfig struct {
	Partitions  int           // of a new topic
	Replication int           // copies of each partition; -1 means the broker's default
	Retention   time.Duration // zero means the broker's default
	Security    Security      // used by AwaitTopics
}

// EnsureTopics creates the topics that the broker lacks; those it has are left as they are.
func EnsureTopics(ctx context.Context, client *kgo.Client, cfg TopicConfig, topics ...string) error {
	admin := kadm.NewClient(client)
	// The time of a record is the broker's: retention must not go by a clock that may be wrong.
	configs := map[string]*string{"message.timestamp.type": kadm.StringPtr("LogAppendTime")}
	if cfg.Retention > 0 {
		configs["retention.ms"] = kadm.StringPtr(strconv.FormatInt(cfg.Retention.Milliseconds(), 10))
	}
	created, err := admin.CreateTopics(ctx, int32(cfg.Partitions), int16(cfg.Replication), configs, topics...)
	if err != nil {
		return fmt.Errorf("create topics: %w", err)
	}
	var copied []string // on three brokers or more
	for _, t := range created.Sorted() {
		switch {
		case t.Err == nil && t.ReplicationFactor >= 3:
			copied = append(copied, t.Topic)
		case t.Err != nil && !errors.Is(t.Err, kerr.TopicAlreadyExists):
			return fmt.Errorf("create topic %s: %w", t.Topic, t.Err)
		}
	}
	if len(copied) == 0 {
		return nil
	}
	// What is acknowledged by one broker alone is lost with it.
	altered, err := admin.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Name: "min.insync.replicas", Value: kadm.StringPtr("2")}}, copied...)
	if err != nil {
		return fmt.Errorf("set min.insync.replicas: %w", err)
	}
	for _, t := range altered {
		if t.Err != nil {
			return fmt.Errorf("set min.insync.replicas of topic %s: %w", t.Name, t.Err)
		}
	}
	return nil
}

// AwaitTopics is EnsureTopics that tries until it succeeds or ctx ends.
func AwaitTopics(ctx context.Context, brokers []string, log *slog.Logger, cfg TopicConfig, topics ...string) error {
	secure, err := cfg.Security.options()
	if err != nil {
		return err
	}
	client, err := NewClient(brokers, log, secure...)
	if err != nil {
		return err
	}
	defer client.Close()
	warned := false
	for {
		attemptCtx, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := EnsureTopics(attemptCtx, client, cfg, topics...)
		cancel()
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		if !warned {
			log.Warn("topics can't be created yet, trying again", "brokers", brokers, "error", err)
			warned = true
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// NewClient returns a client that outlives any outage of the brokers. Options are added to those it needs.
func NewClient(brokers []string, log *slog.Logger, opts ...kgo.Opt) (*kgo.Client, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	base := []kgo.Opt{
		kgo.SeedBrokers(brokers...),
		kgo.ClientID("cornjacket"),
		kgo.WithLogger(logger{log}),
		kgo.MetadataMinAge(250 * time.Millisecond), // a broker that comes back is found fast
		kgo.RetryBackoffFn(func(tries int) time.Duration {
			return min(50*time.Millisecond<<min(tries, 5), time.Second)
		}),
		kgo.DialTimeout(3 * time.Second),
		kgo.RequestTimeoutOverhead(5 * time.Second),
		// A broker that is killed or starts may end a new connection before its first answer. Taking that for a wrong
		// configuration would fail what is being published, and what is behind it would overtake it.
		kgo.AlwaysRetryEOF(),
	}
	client, err := kgo.NewClient(append(base, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("create Kafka client: %w", err)
	}
	return client, nil
}

// logger passes franz-go's log on; what it tells at info and below is of use only when debugging.
type logger struct{ log *slog.Logger }

func (l logger) Level() kgo.LogLevel {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		return kgo.LogLevelInfo
	}
	return kgo.LogLevelWarn
}

func (l logger) Log(level kgo.LogLevel, msg string, keyvals ...any) {
	to := slog.LevelDebug
	if level <= kgo.LogLevelError {
		to = slog.LevelWarn
	}
	l.log.Log(context.Background(), to, "kafka: "+msg, keyvals...)
}
