package kafka_test

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/cornjacket/platform-services/pubsub/batch"
	"github.com/cornjacket/platform-services/pubsub/kafka"
)

// bus is a topic whose records have positions, as those that a relay publishes, and the log that they come from.
type bus struct {
	*broker
	topic     string
	publisher *kafka.Publisher

	mu    sync.Mutex
	log   []batch.Record // by position, from 1
	calls [][]kafka.Place
	err   error         // of CatchUp
	gate  chan struct{} // CatchUp waits for it; nil if not
}

func newBus(t *testing.T, newBroker newBrokerFunc, partitions int) *bus {
	t.Helper()
	b := newBroker(t, partitions, "t")
	return &bus{broker: b, topic: b.named("t"), publisher: b.publisher()}
}

// publish publishes n more events of some keys in turn, in batches of a few.
func (b *bus) publish(n int) {
	b.t.Helper()
	b.mu.Lock()
	first := len(b.log)
	for i := range n {
		key := "k" + strconv.Itoa((first+i)%5)
		b.log = append(b.log, entry(b.topic, key, first+i+1))
	}
	added := slices.Clone(b.log[first:])
	b.mu.Unlock()
	for records := range slices.Chunk(added, 10) {
		refused, err := b.publisher.PublishAll(b.t.Context(), records)
		require.NoError(b.t, err)
		require.Empty(b.t, refused)
	}
}

// setErr sets what CatchUp fails with.
func (b *bus) setErr(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}

// CatchUp implements [kafka.Log].
func (b *bus) CatchUp(ctx context.Context, places []kafka.Place, partitions map[string]int, send func([]batch.Record) bool) (int64, error) {
	b.mu.Lock()
	b.calls = append(b.calls, slices.Clone(places))
	events, err, gate := slices.Clone(b.log), b.err, b.gate
	b.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	from := map[kafka.Partition]int64{}
	for _, p := range places {
		from[p.Partition] = p.Position
	}
	for page := range slices.Chunk(events, 7) {
		var records []batch.Record
		for _, r := range page {
			r.Partition, r.Offset = kafka.PartitionOf(r.Key, partitions[r.Topic]), -1
			if position, wanted := from[kafka.Partition{Topic: r.Topic, Partition: r.Partition}]; wanted && position < positionOf(&r) {
				records = append(records, r)
			}
		}
		if len(records) > 0 && !send(records) {
			return 0, nil
		}
	}
	return int64(len(events)), err
}

func (b *bus) lastCall() []kafka.Place {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.calls) == 0 {
		return nil
	}
	return b.calls[len(b.calls)-1]
}

// drop makes the broker drop what is before an offset of each partition; before -1 it is all.
func (b *bus) drop(before int64) {
	b.t.Helper()
	admin := kadm.NewClient(b.client())
	ends, err := admin.ListEndOffsets(b.t.Context(), b.topic)
	require.NoError(b.t, err)
	var offsets kadm.Offsets
	ends.Each(func(o kadm.ListedOffset) {
		if before < 0 || before > o.Offset {
			offsets.AddOffset(o.Topic, o.Partition, o.Offset, -1)
		} else {
			offsets.AddOffset(o.Topic, o.Partition, before, -1)
		}
	})
	dropped, err := admin.DeleteRecords(b.t.Context(), offsets)
	require.NoError(b.t, err)
	require.NoError(b.t, dropped.Error())
}

func (b *bus) subscriberConfig(c *consumer) kafka.SubscriberConfig {
	cfg := b.config(c.group)
	cfg.Positions, cfg.EventLog, cfg.MaxBatch = c, b, 10
	return cfg
}

func positionOf(r *batch.Record) int64 {
	n, err := strconv.ParseInt(string(r.Value), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// table is where the members of a group keep how far it is, and what it has done.
type table struct {
	mu      sync.Mutex
	rows    map[kafka.Partition]*row
	claims  int
	applied map[string][]int // positions per key
}

type row struct {
	id       uuid.UUID
	position int64
	offset   int64
	owner    *consumer
}

func newTable() *table {
	return &table{rows: map[kafka.Partition]*row{}, applied: map[string][]int{}}
}

// all returns the positions that were applied, sorted.
func (t *table) all() []int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Sorted(func(yield func(int) bool) {
		for _, positions := range t.applied {
			for _, n := range positions {
				if !yield(n) {
					return
				}
			}
		}
	})
}

func (t *table) places() map[kafka.Partition]kafka.Place {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := map[kafka.Partition]kafka.Place{}
	for key, r := range t.rows {
		all[key] = kafka.Place{Partition: key, Position: r.position, Offset: r.offset}
	}
	return all
}

// consumer is one member that applies each event once, as those with positions in a database do.
type consumer struct {
	*table
	group string
	// before, if set, is called before a batch is handled; it reports whether it may be.
	before func(records []batch.Record) bool
}

var errFenced = errors.New("another member has the partition")

// Claim implements [kafka.Positions].
func (c *consumer) Claim(_ context.Context, ids map[string]uuid.UUID, parts []kafka.Partition) ([]kafka.Place, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.claims++
	var places []kafka.Place
	for _, key := range parts {
		r := c.rows[key]
		if r == nil {
			r = &row{id: ids[key.Topic], offset: -1}
			c.rows[key] = r
		}
		if r.id != ids[key.Topic] {
			r.id, r.offset = ids[key.Topic], -1
		}
		r.owner = c
		places = append(places, kafka.Place{Partition: key, Position: r.position, Offset: r.offset})
	}
	return places, nil
}

// Claimed implements [kafka.Positions].
func (c *consumer) Claimed(key kafka.Partition) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rows[key] != nil && c.rows[key].owner == c
}

// Reached implements [kafka.Positions].
func (c *consumer) Reached(_ context.Context, places []kafka.Place) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range places {
		r := c.rows[p.Partition]
		if r == nil || r.owner != c {
			return errFenced
		}
		r.position, r.offset = p.Position, p.Offset
	}
	return nil
}

// handle applies what a member hands out, until it ends.
func (c *consumer) handle(out <-chan *message.Message) {
	for m := range out {
		if c.apply(batch.From(m).Records()) {
			m.Ack()
		} else {
			m.Nack()
		}
	}
}

func (c *consumer) apply(records []batch.Record) bool {
	if c.before != nil && !c.before(records) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range records {
		if r := c.rows[kafka.Partition{Topic: records[i].Topic, Partition: records[i].Partition}]; r == nil || r.owner != c {
			return false
		}
	}
	for i := range records {
		r := c.rows[kafka.Partition{Topic: records[i].Topic, Partition: records[i].Partition}]
		if n := positionOf(&records[i]); n > r.position {
			r.position = n
			c.applied[records[i].Key] = append(c.applied[records[i].Key], int(n))
		}
		if records[i].Offset >= 0 {
			r.offset = records[i].Offset + 1
		}
	}
	return true
}

// start starts a member, which ends with the test at the latest.
func (b *bus) start(c *consumer) *kafka.Subscriber {
	b.t.Helper()
	return b.startWith(c, b.subscriberConfig(c))
}

func (b *bus) startWith(c *consumer, cfg kafka.SubscriberConfig) *kafka.Subscriber {
	b.t.Helper()
	sub := kafka.NewSubscriber(cfg)
	out, err := sub.Subscribe(context.Background(), b.topic)
	require.NoError(b.t, err)
	var handling sync.WaitGroup
	handling.Go(func() { c.handle(out) })
	b.t.Cleanup(func() {
		require.NoError(b.t, sub.Close())
		handling.Wait()
	})
	return sub
}

// settled waits until all that was ever published is applied, each event once and in order, and nothing is amiss.
func (b *bus) settled(c *table, sub *kafka.Subscriber) {
	b.t.Helper()
	b.mu.Lock()
	want := upTo(len(b.log) + 1)[1:]
	b.mu.Unlock()
	require.Eventually(b.t, func() bool { return len(c.all()) >= len(want) }, soon, tick, "%d of %d", len(c.all()), len(want))
	require.Equal(b.t, want, c.all())
	c.mu.Lock()
	for key, positions := range c.applied {
		require.True(b.t, slices.IsSorted(positions), "%s: %v", key, positions)
	}
	c.mu.Unlock()
	require.Eventually(b.t, func() bool {
		partitions, records := sub.Missed()
		_, err := sub.Trouble()
		return partitions == 0 && records == 0 && err == nil
	}, soon, tick)
}

// established starts a member on an empty topic, and waits until it knows its places there: all is read from the bus then.
func (b *bus) established(c *consumer, cfg kafka.SubscriberConfig) *kafka.Subscriber {
	b.t.Helper()
	sub := b.startWith(c, cfg)
	require.Eventually(b.t, func() bool {
		known := 0
		for _, place := range c.places() {
			if place.Offset >= 0 {
				known++
			}
		}
		partitions, _ := sub.Missed()
		return known == b.partitions && partitions == 0
	}, soon, tick)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls = nil
	return sub
}

// held is what keeps a consumer in a batch until it is let go.
type held struct {
	entered chan []batch.Record // each batch
	release chan struct{}
}

func newHeld() *held { return &held{make(chan []batch.Record, 1000), make(chan struct{})} }

func (h *held) before(records []batch.Record) bool {
	h.entered <- slices.Clone(records)
	<-h.release
	return true
}
