package routers

import (
	"context"

	"github.com/google/uuid"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/batch"
	"github.com/cornjacket/platform-services/pubsub/kafka"
	"github.com/cornjacket/platform-services/store"
)

// BusPositions are the positions of a consumer as the bus knows them.
type BusPositions struct{ Positions *store.Positions }

// Claim implements [kafka.Positions].
func (b BusPositions) Claim(ctx context.Context, ids map[string]uuid.UUID, parts []kafka.Partition) ([]kafka.Place, error) {
	own := make([]store.Partition, len(parts))
	for i, p := range parts {
		own[i] = store.Partition(p)
	}
	places, err := b.Positions.Claim(ctx, ids, own)
	found := make([]kafka.Place, len(places))
	for i, p := range places {
		found[i] = kafka.Place{Partition: kafka.Partition(p.Partition), Position: p.Position, Offset: p.Offset}
	}
	return found, err
}

// Claimed implements [kafka.Positions].
func (b BusPositions) Claimed(part kafka.Partition) bool {
	return b.Positions.Claimed(store.Partition(part))
}

// Reached implements [kafka.Positions].
func (b BusPositions) Reached(ctx context.Context, places []kafka.Place) error {
	moves := make([]store.Move, len(places))
	for i, p := range places {
		moves[i] = store.Move{Partition: store.Partition(p.Partition), Position: p.Position, Offset: p.Offset}
	}
	return b.Positions.Move(ctx, moves)
}

// Spread returns over how many partitions the keys of a topic are spread that has so many now. It may have got more since.
type Spread func(ctx context.Context, topic string, now int) (int, error)

// over returns the numbers of partitions over which keys are spread.
func (s Spread) over(ctx context.Context, counts map[string]int) (map[string]int, error) {
	if s == nil {
		return counts, nil
	}
	spread := make(map[string]int, len(counts))
	for topic, now := range counts {
		n, err := s(ctx, topic, now)
		if err != nil {
			return nil, err
		}
		spread[topic] = n
	}
	return spread, nil
}

// BusLog is the event log as a consumer of the bus catches up with it.
type BusLog struct{ Log *store.Log }

// CatchUp implements [kafka.Log].
func (b BusLog) CatchUp(ctx context.Context, places []kafka.Place, partitions map[string]int, send func([]batch.Record) bool) (int64, error) {
	upTo, err := b.Log.Published(ctx)
	if err != nil || upTo == 0 {
		return 0, err
	}
	from, low := make(map[kafka.Partition]int64, len(places)), upTo
	for _, p := range places {
		from[p.Partition], low = p.Position, min(low, p.Position)
	}
	err = b.Log.Each(ctx, low, upTo, func(events []event.Envelope) bool {
		records := make([]batch.Record, 0, len(events))
		for i := range events {
			r := record(&events[i], partitions)
			if position, wanted := from[kafka.Partition{Topic: r.Topic, Partition: r.Partition}]; wanted && events[i].Metadata.Position > position {
				records = append(records, r)
			}
		}
		return len(records) == 0 || send(records)
	})
	return upTo, err
}

// record returns an event of the log as a record of the bus, in the partition that the bus has it in.
func record(e *event.Envelope, partitions map[string]int) batch.Record {
	topic := event.Topic(e.Type)
	return batch.Record{
		Topic: topic, Partition: kafka.PartitionOf(e.AggregateID, partitions[topic]), Offset: -1,
		Key: e.AggregateID, ID: e.ID.String(), At: e.IngestedAt, Event: e,
	}
}
