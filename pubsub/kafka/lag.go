package kafka

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Lag is how far a subscriber is behind the end of its partitions.
type Lag struct {
	Events int64     // not acknowledged yet
	Oldest time.Time // when the oldest of them was published, to about 100 ms; zero if none is, or none was fetched yet
	Acked  int64     // grows with each message that is acknowledged, and changes with the partitions
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
		if time.Since(m.refreshed) >= refreshEvery {
			if err := m.refresh(ctx); err != nil {
				return Lag{}, fmt.Errorf("ask for the ends of partitions: %w", err)
			}
			m.refreshed = time.Now()
		}
		committed := m.client.CommittedOffsets()
		m.mu.Lock()
		for key, p := range m.parts {
			events, oldest, acked := p.lag(m.ends[key], committed[key.topic][key.partition])
			sum.Events += events
			sum.Acked += acked
			if !oldest.IsZero() && (sum.Oldest.IsZero() || oldest.Before(sum.Oldest)) {
				sum.Oldest = oldest
			}
		}
		m.mu.Unlock()
	}
	return sum, nil
}

func (m *member) refresh(ctx context.Context) error {
	admin := kadm.NewClient(m.client)
	starts, err := admin.ListStartOffsets(ctx, m.topics...)
	if err != nil {
		return err
	}
	ends, err := admin.ListEndOffsets(ctx, m.topics...)
	if err != nil {
		return err
	}
	fresh := make(map[tp]bounds)
	ends.Each(func(o kadm.ListedOffset) {
		start, ok := starts.Lookup(o.Topic, o.Partition)
		if o.Err == nil && ok && start.Err == nil {
			fresh[tp{o.Topic, o.Partition}] = bounds{start.Offset, o.Offset}
		}
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ends = fresh
	return nil
}

// stamp says when the record at an offset, and about those after it up to the next stamp, were published.
type stamp struct {
	offset int64
	at     time.Time
}

const (
	stampEvery = 100 * time.Millisecond
	maxStamps  = 1024
)

// seen notes fetched records and how far the partition reached then. It is called with the lock held.
func (p *partition) seen(records []*kgo.Record) {
	for _, r := range records {
		if n := len(p.stamps); n > 0 && r.Timestamp.Sub(p.stamps[n-1].at) < stampEvery {
			continue
		}
		if len(p.stamps) >= maxStamps {
			p.forget()
		}
		if len(p.stamps) < maxStamps {
			p.stamps = append(p.stamps, stamp{r.Offset, r.Timestamp})
		}
	}
}

// forget drops stamps that end before the first record that is not acknowledged.
func (p *partition) forget() {
	next := p.next.Load()
	for len(p.stamps) > 1 && p.stamps[1].offset <= next {
		p.stamps = p.stamps[1:]
	}
	if len(p.stamps) == 1 && len(p.queue) == 0 && p.fetched.Load() <= next {
		p.stamps = nil
	}
}

// lag returns how many records are not acknowledged, when the oldest was published, and the offset of the next one.
func (p *partition) lag(b bounds, committed kgo.EpochOffset) (events int64, oldest time.Time, next int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	next = p.next.Load()
	if next < 0 { // nothing was acknowledged since it was assigned
		next = max(b.start, committed.Offset)
	}
	events = max(0, max(b.end, p.end.Load())-next)
	p.forget()
	if events > 0 && len(p.stamps) > 0 {
		oldest = p.stamps[0].at
	}
	return events, oldest, next
}
