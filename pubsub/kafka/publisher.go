package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/pubsub/batch"
)

// PublisherConfig configures a [Publisher].
type PublisherConfig struct {
	Brokers  []string
	Security Security
	// Topics says how a topic that is missing is created; without partitions none is, and the publisher waits for it.
	Topics TopicConfig
	// Partitions returns the number of partitions that the keys of a topic are spread over, for a topic that has a number
	// of them now. It returns the same number each time, or else the order of a key ends; see [PartitionOf]. Nil means
	// the number that the topic has when it is first published to.
	Partitions func(ctx context.Context, topic string, now int) (int, error)
	Log        *slog.Logger
}

// Publisher publishes to the Kafka API. A call returns once all in-sync replicas have acknowledged each of its records.
// A record that fails is produced again, before anything behind it in its partition, until it is acknowledged or refused
// for good. It implements [message.Publisher].
type Publisher struct {
	cfg    PublisherConfig
	client *kgo.Client
	ctx    context.Context // of all records: one given up in the middle would break the order of those behind it
	cancel context.CancelFunc

	topics  sync.Map // name → *spread
	outcome atomic.Pointer[outcome]

	placing sync.Mutex // one delivery at a time
	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup // deliveries
	pending *delivery      // of PublishAll
}

// outcome is how the last attempt to produce has ended, or nil while there was none.
type outcome struct {
	since time.Time // when this kind of outcome began
	err   error
}

// ErrClosed says that the publisher or subscriber is closed.
var ErrClosed = errors.New("kafka adapter is closed")

// NewPublisher returns a publisher. It does not wait for the brokers, nor for topics that don't exist yet: what is
// published does. It must be closed.
func NewPublisher(cfg PublisherConfig) (*Publisher, error) {
	secure, err := cfg.Security.options()
	if err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	p := &Publisher{cfg: cfg}
	p.client, err = NewClient(cfg.Brokers, cfg.Log, append(secure,
		kgo.ManualFlushing(), // see produce
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.MaxBufferedRecords(math.MaxInt), // there is one batch at a time, in memory already
		kgo.RecordPartitioner(kgo.BasicConsistentPartitioner(p.partitioner)),
	)...)
	if err != nil {
		return nil, err
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p, nil
}

// Publish returns once all messages are acknowledged. An error marked [fault.Permanent] says that the brokers will
// never take one of them; the others are on the bus. Calls may be concurrent: they take turns.
func (p *Publisher) Publish(topic string, msgs ...*message.Message) error {
	records := make([]*kgo.Record, len(msgs))
	for i, m := range msgs {
		records[i] = record(topic, m)
	}
	p.mu.Lock()
	d, err := p.start(records)
	p.mu.Unlock()
	if err != nil {
		return err
	}
	<-d.done
	switch {
	case d.err != nil:
		return d.err
	case len(d.refused) > 0:
		return fault.Permanent(fmt.Errorf("publish to %s: %w", topic, d.refused[0].Err))
	}
	return nil
}

// PublishAll returns once each record is acknowledged, in the order of its key, or refused for good: those are returned.
// The error says that ctx ended before, or that the publisher is closed; records are on their way then, and a further
// call with the same ones waits for them. Calls must not be concurrent.
func (p *Publisher) PublishAll(ctx context.Context, records []batch.Record) ([]batch.Refusal, error) {
	if len(records) == 0 {
		return nil, nil
	}
	for {
		d, same, err := p.deliver(records)
		if err != nil {
			return nil, err
		}
		select {
		case <-d.done:
		case <-ctx.Done():
			// No deadline in the chain: fewer records at once would not make the bus come back.
			return nil, fmt.Errorf("publish %d records: the bus has not acknowledged all of them: %v", len(records), p.reason(ctx)) //nolint:errorlint // see above
		}
		p.mu.Lock()
		p.pending = nil
		p.mu.Unlock()
		if same {
			return d.refused, d.err
		}
	}
}

// deliver starts to produce records, or returns what is still on its way since an earlier call.
func (p *Publisher) deliver(records []batch.Record) (d *delivery, same bool, err error) {
	id := deliveryID{len(records), records[0].Offset, records[0].ID, records[len(records)-1].ID}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pending == nil {
		if d, err = p.start(toKafka(records)); err != nil {
			return nil, false, err
		}
		d.id, p.pending = id, d
	}
	return p.pending, p.pending.id == id, nil
}

// reason returns why records are not acknowledged.
func (p *Publisher) reason(ctx context.Context) error {
	if _, err := p.Failing(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// Failing returns since when attempts to produce fail, and the error of the last one. While records are on their way and
// none has failed yet, it returns since when that is, without an error. The time is zero if all is well.
func (p *Publisher) Failing() (since time.Time, err error) {
	if o := p.outcome.Load(); o != nil {
		return o.since, o.err
	}
	return time.Time{}, nil
}

// Close waits until what was published is acknowledged.
func (p *Publisher) Close() error { return p.Shutdown(context.Background()) }

// Shutdown is Close that gives up when ctx ends.
func (p *Publisher) Shutdown(ctx context.Context) error {
	p.mu.Lock()
	again := p.closed
	p.closed = true
	p.mu.Unlock()
	if again {
		return nil
	}
	done := make(chan struct{})
	go func() {
		p.running.Wait()
		close(done)
	}()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = fmt.Errorf("flush what was published: %w", ctx.Err())
	}
	p.cancel()
	p.client.Close() // fails what is on its way
	<-done
	return err
}

// Ping asks the brokers for a sign of life.
func (p *Publisher) Ping(ctx context.Context) error {
	if err := p.client.Ping(ctx); err != nil {
		return fmt.Errorf("ping brokers: %w", err)
	}
	return nil
}
