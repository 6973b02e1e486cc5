package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/pubsub/window"
)

// PublisherConfig configures a [Publisher].
type PublisherConfig struct {
	Brokers  []string
	Security Security
	Log      *slog.Logger
}

// Publisher publishes to the Kafka API. Calls from many goroutines are pipelined: each waits for the acknowledgement
// of its own messages by all in-sync replicas, none for another's, and messages with the same key arrive in the order
// of the calls, and of their turns. While the brokers are away calls wait. It implements [message.Publisher].
type Publisher struct {
	client  *kgo.Client
	ctx     context.Context // of all records: a record given up in the middle would break the order of those behind it
	cancel  context.CancelFunc
	batcher *window.Batcher[*outgoing]

	closing atomic.Bool
}

// outgoing are the records of one call.
type outgoing struct {
	records []*kgo.Record
	err     error // of the first record that failed
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
	client, err := NewClient(cfg.Brokers, cfg.Log, append(secure,
		kgo.ProducerLinger(0),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.UnknownTopicRetries(-1),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.MaxBufferedRecords(20_000),
	)...)
	if err != nil {
		return nil, err
	}
	p := &Publisher{client: client}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.batcher = window.NewBatcher(window.BatcherConfig[*outgoing]{
		MaxBatch: 2000,
		Weigh:    weigh,
		Flush:    func(_ context.Context, batch []*outgoing) error { p.produce(batch); return nil },
	})
	return p, nil
}

// weigh counts records, and large ones for what they take.
func weigh(o *outgoing) int {
	n := len(o.records)
	for _, r := range o.records {
		n += len(r.Value) >> 12
	}
	return n
}

// Publish returns once all messages are acknowledged. An error marked [fault.Permanent] says that the brokers will
// never take a message. Messages of one call have the turn of the first.
func (p *Publisher) Publish(topic string, msgs ...*message.Message) error {
	if p.closing.Load() {
		return ErrClosed
	}
	if len(msgs) == 0 {
		return nil
	}
	o := &outgoing{records: make([]*kgo.Record, len(msgs))}
	for i, m := range msgs {
		o.records[i] = record(topic, m)
	}
	err := p.batcher.Do(msgs[0].Context(), o)
	switch {
	case errors.Is(err, window.ErrClosed):
		return ErrClosed
	case err != nil:
		return fmt.Errorf("publish to %s: %w", topic, err)
	case o.err != nil:
		return p.explain(topic, o.err)
	}
	return nil
}

// produce hands a batch to the client in order and waits until all of it is acknowledged; what waits meanwhile is the
// next batch. It is one goroutine's work, because the client needs more stack than a new goroutine has, and growing it
// for each message costs more than the rest.
func (p *Publisher) produce(batch []*outgoing) {
	var acks sync.WaitGroup
	for _, o := range batch {
		acks.Add(len(o.records))
		for _, r := range o.records {
			p.client.Produce(p.ctx, r, func(_ *kgo.Record, err error) { // promises run one at a time
				if err != nil && o.err == nil {
					o.err = err
				}
				acks.Done()
			})
		}
	}
	acks.Wait()
}

func (p *Publisher) explain(topic string, err error) error {
	wrapped := fmt.Errorf("publish to %s: %w", topic, err)
	switch {
	case p.ctx.Err() != nil:
		return ErrClosed
	case errors.Is(err, kerr.MessageTooLarge), errors.Is(err, kerr.InvalidRecord), errors.Is(err, kerr.RecordListTooLarge):
		return fault.Permanent(wrapped)
	}
	return wrapped
}

// Close waits until what was published is acknowledged.
func (p *Publisher) Close() error { return p.Shutdown(context.Background()) }

// Shutdown is Close that gives up when ctx ends.
func (p *Publisher) Shutdown(ctx context.Context) error {
	if p.closing.Swap(true) {
		return nil
	}
	closeClient := sync.OnceFunc(func() {
		p.cancel()
		p.client.Close()
	})
	// What is on its way then fails, and the batcher can end. Ending the context of the records is not enough: the client
	// keeps those that it may have sent.
	defer context.AfterFunc(ctx, closeClient)()
	err := p.batcher.Close(ctx)
	closeClient()
	if err != nil {
		return fmt.Errorf("flush what was published: %w", err)
	}
	return nil
}

// Ping asks the brokers for a sign of life.
func (p *Publisher) Ping(ctx context.Context) error {
	if err := p.client.Ping(ctx); err != nil {
		return fmt.Errorf("ping brokers: %w", err)
	}
	return nil
}
