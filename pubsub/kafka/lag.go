package kafka

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
)

// Lag is how far a subscriber is behind the end of its partitions.
type Lag struct {
	Events int64     // not acknowledged yet
	Oldest time.Time // when the oldest of those in flight was published; zero if none is
	Acked  int64     // grows with each record that is acknowledged, and changes with the partitions
}

// bounds is where a partition begins and ends.
type bounds struct{ start, end int64 }

// refreshEvery is how often the brokers are asked for the ends of partitions. In between they are known from what is fetched.
const refreshEvery = 5 * time.Second

// Lag returns how far the subscriber is behind. The error says that the brokers were asked and did not answer. It must
// not be called concurrently.
func (s *Subscriber) Lag(ctx context.Context) (Lag, error) {
	var sum Lag
	for _, m := range s.members() {
		m.mu.Lock()
		due := time.Since(m.refreshed) >= refreshEvery
		m.mu.Unlock()
		if due {
			if err := m.refresh(ctx); err != nil {
				return Lag{}, err
			}
		}
		committed := m.client.CommittedOffsets()
		m.mu.Lock()
		for key, p := range m.parts {
			b, next := m.ends[key], p.next
			if next < 0 { // nothing was fetched since it was assigned
				next = max(b.start, committed[key.Topic][key.Partition].Offset)
			}
			sum.Events += max(0, max(b.end, p.end)-next)
			sum.Acked += next
			if !p.oldest.IsZero() && (sum.Oldest.IsZero() || p.oldest.Before(sum.Oldest)) {
				sum.Oldest = p.oldest
			}
		}
		m.mu.Unlock()
	}
	return sum, nil
}

// refresh asks for the bounds of the partitions and keeps them.
func (m *member) refresh(ctx context.Context) error {
	found, err := m.bounds(ctx)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ends, m.refreshed = found, time.Now()
	return nil
}

// bounds asks where the partitions of the topics begin and end. A partition that the brokers can't say that of is an error
// if it is ours.
func (m *member) bounds(ctx context.Context) (map[Partition]bounds, error) {
	admin := kadm.NewClient(m.client)
	starts, err := admin.ListStartOffsets(ctx, m.topics...)
	if err != nil {
		return nil, fmt.Errorf("ask for the beginnings of partitions: %w", err)
	}
	ends, err := admin.ListEndOffsets(ctx, m.topics...)
	if err != nil {
		return nil, fmt.Errorf("ask for the ends of partitions: %w", err)
	}
	found := make(map[Partition]bounds)
	var failed error
	ends.Each(func(o kadm.ListedOffset) {
		start, _ := starts.Lookup(o.Topic, o.Partition)
		err := o.Err
		if err == nil {
			err = start.Err
		}
		if err != nil {
			failed = fmt.Errorf("ask for the end of partition %d of %s: %w", o.Partition, o.Topic, err)
			return
		}
		found[Partition{o.Topic, o.Partition}] = bounds{start.Offset, o.Offset}
	})
	return found, failed
}

// partitions returns over how many partitions the keys of each topic are spread.
func (m *member) partitions(ctx context.Context) (map[string]int, error) {
	topics, err := kadm.NewClient(m.client).ListTopics(ctx, m.topics...)
	if err != nil {
		return nil, fmt.Errorf("ask for the topics %v: %w", m.topics, err)
	}
	counts := make(map[string]int)
	for name, t := range topics {
		has := len(t.Partitions)
		counts[name] = has
		if m.cfg.Partitions == nil {
			continue
		}
		over, err := m.cfg.Partitions(ctx, name, has)
		if err != nil {
			return nil, fmt.Errorf("ask how the keys of %s are spread: %w", name, err)
		}
		counts[name] = min(over, has)
	}
	return counts, nil
}
