package kafka

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/cornjacket/platform-services/pubsub/batch"
)

// gap says that the bus does not have all records of a partition.
type gap struct{ dropped int64 } // at least

// gap notes that the bus does not have all records of a partition. The lock is held.
func (m *member) gap(key Partition, dropped int64) {
	if m.cfg.EventLog != nil {
		m.behind[key] = &gap{dropped: max(0, dropped)}
	}
}

// dropped notes that the bus has dropped records of a partition, or that what it has is not what it was. The lock is held.
func (m *member) dropped(key Partition, expected, found int64) {
	m.gap(key, found-expected)
	m.cfg.Logger.Error("the bus has dropped records before they were read; they are read from the event log", "group", m.cfg.Group,
		"topic", key.Topic, "partition", key.Partition, "expected_offset", expected, "offset", found)
}

// catchUp hands out from the log what the bus does not have, until nothing is missing or ctx ends. It is the same
// consumer that gets it, and nothing else meanwhile: positions say what it has handled.
func (m *member) catchUp(ctx context.Context) {
	for ctx.Err() == nil {
		m.mu.Lock()
		gaps := maps.Clone(m.behind)
		m.mu.Unlock()
		if len(gaps) == 0 {
			return
		}
		m.client.AllowRebalance() // it may take long
		if err := m.fill(ctx, gaps); err != nil && ctx.Err() == nil {
			m.fail(err)
			batch.Sleep(ctx, time.Second)
		}
	}
}

// fill hands out what is missing in partitions.
func (m *member) fill(ctx context.Context, gaps map[Partition]*gap) error {
	places, err := m.claimPlaces(ctx, slices.Collect(maps.Keys(gaps))) // says how far the consumer is by now, too
	if err != nil {
		return err
	}
	counts, err := m.partitions(ctx)
	if err != nil {
		return err
	}
	held := m.holding(gaps)
	began, events, whole := time.Now(), 0, true
	upTo, err := m.cfg.EventLog.CatchUp(ctx, places, counts, func(records []batch.Record) bool {
		whole, _ = m.send(ctx, records, held)
		events += len(records)
		return whole
	})
	if err == nil && whole {
		err = m.reached(ctx, places, held, upTo)
	}
	if err != nil || !whole {
		return err
	}
	m.mu.Lock()
	for key, g := range gaps {
		if m.behind[key] == g { // it may have come back with another one
			delete(m.behind, key)
		}
	}
	m.mu.Unlock()
	m.trouble.Store(nil)
	if events > 0 {
		m.cfg.Logger.Info("caught up with the event log", "group", m.cfg.Group, "events", events, "partitions", len(gaps),
			"seconds", time.Since(began).Round(time.Millisecond).Seconds())
	}
	return nil
}

// reached notes that partitions are handled up to a position, whether they had any events or not, and are read on from
// where the bus begins: a restart does not look again.
func (m *member) reached(ctx context.Context, places []Place, held held, upTo int64) error {
	m.mu.Lock()
	reached := make([]Place, 0, len(places))
	for _, place := range places {
		if p := m.parts[place.Partition]; p != nil && p == held[place.Partition] {
			reached = append(reached, Place{Partition: place.Partition, Position: max(upTo, place.Position), Offset: p.next})
		}
	}
	m.mu.Unlock()
	return m.cfg.Positions.Reached(ctx, reached)
}

// holding returns the assignments of partitions.
func (m *member) holding(gaps map[Partition]*gap) held {
	m.mu.Lock()
	defer m.mu.Unlock()
	held := make(held)
	for key := range gaps {
		held[key] = m.parts[key]
	}
	return held
}

// owned returns the records of partitions that are still assigned as they were.
func (m *member) owned(records []batch.Record, held held) []batch.Record {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.DeleteFunc(records, func(r batch.Record) bool {
		key := Partition{r.Topic, r.Partition}
		return m.parts[key] == nil || m.parts[key] != held[key]
	})
}
