package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/window"
)

// PublisherConfig configures a [Publisher].
type PublisherConfig struct {
	Brokers []string
	Log     *slog.Logger
}

// Publisher publishes to the Kafka API. Calls from many goroutines are pipelined: each waits for the acknowledgement
// of its own messages by all in-sync replicas, none for another's, and messages with the same key arrive in the order
// of the calls, and of their turns. While the brokers are away calls wait. It implements [message.Publisher].
type Publisher struct {
	client *kgo.Client
	ctx    context.Context // of all records: a record given up in the middle would break the order of those behind it
	cancel context.CancelFunc

	closing atomic.Bool
}

// ErrClosed says that the publisher or subscriber is closed.
var ErrClosed = errors.New("kafka adapter is closed")

// NewPublisher returns a publisher. It does not wait for the brokers, nor for topics that don't exist yet: what is
// published does. It must be closed.
func NewPublisher(cfg PublisherConfig) (*Publisher, error) {
	client, err := NewClient(cfg.Brokers, cfg.Log,
		kgo.ProducerLinger(0),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.UnknownTopicRetries(-1),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.MaxBufferedRecords(20_000),
	)
	if err != nil {
		return nil, err
	}
	p := &Publisher{client: client}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p, nil
}

// Publish returns once all messages are acknowledged. An error marked [event.Permanent] says that the brokers will
// never take the message. A message whose context ends before its turn has come is given up with the cause of that; one
// that is on its way is waited for.
func (p *Publisher) Publish(topic string, msgs ...*message.Message) error {
	if p.closing.Load() {
		return ErrClosed
	}
	sent := make([]*sending, len(msgs))
	for i, m := range msgs {
		s := &sending{result: make(chan error, 1)}
		sent[i] = s
		r := record(topic, m)
		// Should the turn come after the message was given up, the record goes out all the same: what has the later
		// turns would overtake it otherwise, and its repetition would come out of order.
		window.TurnFrom(m.Context()).Do(func() {
			s.started.Store(true)
			p.client.Produce(p.ctx, r, func(_ *kgo.Record, err error) { s.result <- err })
		})
	}
	var first error
	for i, s := range sent {
		if err := s.wait(msgs[i].Context()); err != nil && first == nil {
			first = p.explain(topic, err)
		}
	}
	return first
}

// sending is one record from the call to its acknowledgement.
type sending struct {
	started atomic.Bool // its turn has come
	result  chan error
}

func (s *sending) wait(ctx context.Context) error {
	select {
	case err := <-s.result:
		return err
	case <-ctx.Done():
	}
	if s.started.Load() {
		return <-s.result
	}
	return fmt.Errorf("wait for the turn of the message: %w", context.Cause(ctx))
}

func (p *Publisher) explain(topic string, err error) error {
	wrapped := fmt.Errorf("publish to %s: %w", topic, err)
	switch {
	case p.ctx.Err() != nil:
		return ErrClosed
	case errors.Is(err, kerr.MessageTooLarge), errors.Is(err, kerr.InvalidRecord), errors.Is(err, kerr.RecordListTooLarge):
		return event.Permanent(wrapped)
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
	err := p.client.Flush(ctx)
	p.cancel()
	p.client.Close()
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
