package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cornjacket/platform-services/event"
)

// History reads the events that topics hold, for whoever has to know what was published. Each call has connections of
// its own. It may be used concurrently.
type History struct {
	Brokers  []string
	Security Security
	Topics   []string // one that does not exist holds nothing
	Log      *slog.Logger
}

const (
	// newestRecords is how many records at the end of a partition are looked at: the last ones may be repeats of older
	// events, or not be events at all.
	newestRecords = 64
	// historySilence is how long a read may bring nothing.
	historySilence = 10 * time.Second
)

// Newest returns the greatest position among the newest records of all partitions, 0 if there is none.
func (h *History) Newest(ctx context.Context) (position int64, err error) {
	err = h.read(ctx, func(_ context.Context, _ *kadm.Client, starts, ends kadm.ListedOffsets) (kadm.ListedOffsets, error) {
		ends.Each(func(end kadm.ListedOffset) {
			start := starts[end.Topic][end.Partition]
			start.Offset = max(start.Offset, end.Offset-newestRecords)
			starts[end.Topic][end.Partition] = start
		})
		return starts, nil
	}, func(events []event.Envelope) error {
		for i := range events {
			position = max(position, events[i].Metadata.Position)
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("look for the newest event on the bus: %w", err)
	}
	return position, nil
}

// Since calls handle with the events that were published from a time on, or all if it is zero, in the order of each
// partition. Records that are no events of the log are left out.
func (h *History) Since(ctx context.Context, from time.Time, handle func([]event.Envelope) error) error {
	err := h.read(ctx, func(ctx context.Context, admin *kadm.Client, starts, _ kadm.ListedOffsets) (kadm.ListedOffsets, error) {
		if from.IsZero() {
			return starts, nil
		}
		after, err := admin.ListOffsetsAfterMilli(ctx, from.UnixMilli(), h.Topics...)
		return existing(after, err)
	}, handle)
	if err != nil {
		return fmt.Errorf("read the events on the bus: %w", err)
	}
	return nil
}

// read reads each partition from where begin says to where it ends now.
func (h *History) read(ctx context.Context, begin func(ctx context.Context, admin *kadm.Client, starts, ends kadm.ListedOffsets) (kadm.ListedOffsets, error),
	handle func([]event.Envelope) error,
) error {
	starts, ends, err := h.bounds(ctx, begin)
	if err != nil {
		return err
	}
	left, from := make(map[Partition]int64), make(map[string]map[int32]kgo.Offset)
	ends.Each(func(end kadm.ListedOffset) {
		start, ok := starts.Lookup(end.Topic, end.Partition)
		if !ok || start.Offset >= end.Offset {
			return
		}
		if from[end.Topic] == nil {
			from[end.Topic] = make(map[int32]kgo.Offset)
		}
		from[end.Topic][end.Partition] = kgo.NewOffset().At(start.Offset)
		left[Partition{end.Topic, end.Partition}] = end.Offset
	})
	if len(left) == 0 {
		return nil
	}
	client, err := NewSecureClient(h.Brokers, h.Security, h.Log, kgo.ConsumePartitions(from), kgo.KeepControlRecords(),
		kgo.FetchMaxWait(200*time.Millisecond), kgo.FetchMaxBytes(16<<20))
	if err != nil {
		return err
	}
	defer client.Close()
	return poll(ctx, client, left, handle)
}

// bounds asks where to begin in each partition, and where it ends.
func (h *History) bounds(ctx context.Context, begin func(ctx context.Context, admin *kadm.Client, starts, ends kadm.ListedOffsets) (kadm.ListedOffsets, error)) (
	from, ends kadm.ListedOffsets, err error,
) {
	client, err := NewSecureClient(h.Brokers, h.Security, h.Log)
	if err != nil {
		return nil, nil, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, historySilence)
	defer cancel()
	if err := client.Ping(ctx); err != nil {
		return nil, nil, fmt.Errorf("ping brokers: %w", err)
	}
	admin := kadm.NewClient(client)
	starts, err := existing(admin.ListStartOffsets(ctx, h.Topics...))
	if err != nil {
		return nil, nil, fmt.Errorf("ask where partitions begin: %w", err)
	}
	if ends, err = existing(admin.ListEndOffsets(ctx, h.Topics...)); err != nil {
		return nil, nil, fmt.Errorf("ask where partitions end: %w", err)
	}
	if from, err = begin(ctx, admin, starts, ends); err != nil {
		return nil, nil, fmt.Errorf("ask where to begin: %w", err)
	}
	return from, ends, nil
}

// poll hands out events until all partitions are read up to where they are left.
func poll(ctx context.Context, client *kgo.Client, left map[Partition]int64, handle func([]event.Envelope) error) error {
	for len(left) > 0 {
		pollCtx, cancel := context.WithTimeout(ctx, historySilence)
		fetches := client.PollRecords(pollCtx, 2000)
		cancel()
		if err := fetches.Err(); err != nil {
			return err
		}
		var events []event.Envelope
		fetches.EachRecord(func(r *kgo.Record) {
			key := Partition{r.Topic, r.Partition}
			if end, ok := left[key]; ok && r.Offset >= end-1 {
				delete(left, key)
			}
			e, err := event.Unmarshal(r.Value)
			if err == nil && e.Metadata.Position > 0 && event.Topic(e.Type) == r.Topic {
				events = append(events, e)
			}
		})
		if len(events) == 0 {
			continue
		}
		if err := handle(events); err != nil {
			return err
		}
	}
	return nil
}

// existing leaves out topics that don't exist.
func existing(offsets kadm.ListedOffsets, err error) (kadm.ListedOffsets, error) {
	if err != nil {
		return nil, err
	}
	var failed error
	for topic, partitions := range offsets {
		for _, o := range partitions {
			if errors.Is(o.Err, kerr.UnknownTopicOrPartition) {
				delete(offsets, topic)
				break
			}
			if o.Err != nil {
				failed = fmt.Errorf("partition %d of %s: %w", o.Partition, o.Topic, o.Err)
			}
		}
	}
	return offsets, failed
}
