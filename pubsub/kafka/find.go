package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/ledger"
)

// FinderConfig configures a [Finder].
type FinderConfig struct {
	Brokers  []string
	Security Security
	// Timeout bounds one search; 3 s if zero.
	Timeout time.Duration
	// MaxRecords is the most records that one search reads; 50,000 if zero.
	MaxRecords int
	// Skew is how far the clocks of the relay and of who noted the time of an event may differ; 5 s if zero.
	Skew time.Duration
	// Partitions is that of the publisher, see [PublisherConfig].
	Partitions func(ctx context.Context, topic string, now int) (int, error)
	// Searches is the most searches at once; 4 if zero. Others wait.
	Searches int
	Log      *slog.Logger
}

// Finder finds single records, for people. Each search has connections of its own, so that nothing is held while
// nobody asks. It may be used concurrently.
type Finder struct {
	cfg  FinderConfig
	room chan struct{}
}

// NewFinder returns a finder. It needs no closing.
func NewFinder(cfg FinderConfig) *Finder {
	if cfg.Timeout == 0 {
		cfg.Timeout = 3 * time.Second
	}
	if cfg.MaxRecords == 0 {
		cfg.MaxRecords = 50_000
	}
	if cfg.Skew == 0 {
		cfg.Skew = 5 * time.Second
	}
	if cfg.Searches == 0 {
		cfg.Searches = 4
	}
	return &Finder{cfg: cfg, room: make(chan struct{}, cfg.Searches)}
}

// Find looks for the record of an event in the partition that its key belongs to, from shortly before the given time
// on. The place has no offset if the partition does not hold it, or not among the records that are read. The error
// says that the bus could not be asked.
func (f *Finder) Find(ctx context.Context, id uuid.UUID, topic, key string, notBefore time.Time) (ledger.BusPlace, error) {
	ctx, cancel := context.WithTimeout(ctx, f.cfg.Timeout)
	defer cancel()
	select {
	case f.room <- struct{}{}:
		defer func() { <-f.room }()
	case <-ctx.Done():
		return ledger.BusPlace{}, fmt.Errorf("find event %s on the bus: %w", id, ctx.Err())
	}
	place := ledger.BusPlace{Topic: topic, Offset: -1}
	s := search{id: id.String(), place: &place, left: f.cfg.MaxRecords}
	if err := f.bounds(ctx, &s, key, notBefore.Add(-f.cfg.Skew)); err != nil {
		return ledger.BusPlace{}, fmt.Errorf("find event %s on the bus: %w", id, err)
	}
	if s.from >= s.end {
		return place, nil
	}
	if err := f.read(ctx, &s); err != nil {
		return ledger.BusPlace{}, fmt.Errorf("find event %s on the bus: %w", id, err)
	}
	return place, nil
}

// search is the part of a partition in which an event is looked for.
type search struct {
	id        string
	place     *ledger.BusPlace
	from, end int64
	left      int // records that may be read
}

// bounds asks for the partition of a key, and for the offsets between which the event must be.
func (f *Finder) bounds(ctx context.Context, s *search, key string, from time.Time) error {
	client, err := NewSecureClient(f.cfg.Brokers, f.cfg.Security, f.cfg.Log)
	if err != nil {
		return err
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	topic := s.place.Topic
	starts, err := admin.ListStartOffsets(ctx, topic)
	if err == nil {
		err = starts.Error()
	}
	if errors.Is(err, kerr.UnknownTopicOrPartition) {
		return fmt.Errorf("there is no topic %s: %w", topic, err)
	}
	if err != nil {
		return fmt.Errorf("ask for the partitions of %s: %w", topic, err)
	}
	partitions := len(starts[topic])
	if f.cfg.Partitions != nil {
		if partitions, err = f.cfg.Partitions(ctx, topic, partitions); err != nil {
			return fmt.Errorf("ask how the keys of %s are spread: %w", topic, err)
		}
	}
	s.place.Partition = PartitionOf(key, partitions)
	after, err := admin.ListOffsetsAfterMilli(ctx, from.UnixMilli(), topic)
	if err == nil {
		err = after.Error()
	}
	if err != nil {
		return fmt.Errorf("ask for offsets of %s: %w", topic, err)
	}
	ends, err := admin.ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("ask for the end of %s: %w", topic, err)
	}
	start, _ := starts.Lookup(topic, s.place.Partition)
	end, ok := ends.Lookup(topic, s.place.Partition)
	first, _ := after.Lookup(topic, s.place.Partition)
	if !ok {
		return fmt.Errorf("%s has no partition %d", topic, s.place.Partition)
	}
	s.from, s.end = max(first.Offset, start.Offset), end.Offset
	// Nothing is left of the time before: what was there has been dropped, if there ever was something.
	s.place.Expired = start.Offset > 0 && s.from == start.Offset
	return nil
}

func (f *Finder) read(ctx context.Context, s *search) error {
	client, err := NewSecureClient(f.cfg.Brokers, f.cfg.Security, f.cfg.Log,
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{
			s.place.Topic: {s.place.Partition: kgo.NewOffset().At(s.from)},
		}),
		kgo.FetchMaxBytes(4<<20), kgo.FetchMaxWait(200*time.Millisecond),
	)
	if err != nil {
		return err
	}
	defer client.Close()
	next := s.from
	for next < s.end && s.left > 0 {
		fetches := client.PollRecords(ctx, 1000)
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("read partition %d of %s: %w", s.place.Partition, s.place.Topic, err)
		}
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("read partition %d of %s: %w", s.place.Partition, s.place.Topic, err)
		}
		for _, r := range fetches.Records() {
			next = r.Offset + 1
			s.left--
			if s.matches(r) {
				s.place.Offset, s.place.At, s.place.Expired = r.Offset, r.Timestamp.UTC(), false
				return nil
			}
		}
	}
	return nil
}

func (s *search) matches(r *kgo.Record) bool {
	for _, h := range r.Headers {
		if h.Key == event.MetaEventID {
			return string(h.Value) == s.id
		}
	}
	return false
}
