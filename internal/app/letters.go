package app

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	stock "github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/pubsub/kafka"
)

// lazyPublisher is Watermill's own Kafka publisher, for dead letters: there are few, so one at a time is right. It
// connects with the first one, since a process that has none needs no further client.
type lazyPublisher struct {
	brokers  []string
	security kafka.Security
	log      *slog.Logger

	mu  sync.Mutex
	pub message.Publisher
}

// Publish returns once the messages are acknowledged. An error marked [fault.Permanent] says that the bus will never
// take a message.
func (l *lazyPublisher) Publish(topic string, msgs ...*message.Message) error {
	pub, err := l.connect()
	if err != nil {
		return err
	}
	if err := pub.Publish(topic, msgs...); err != nil {
		err = fmt.Errorf("publish to %s: %w", topic, err)
		if refused(err) {
			return fault.Permanent(err)
		}
		return err
	}
	return nil
}

// refused tells that no retry makes the bus take a message: it is over a limit of the client or of the brokers.
func refused(err error) bool {
	var limit sarama.ConfigurationError // how the client says it
	return errors.As(err, &limit) || errors.Is(err, sarama.ErrMessageSizeTooLarge) || errors.Is(err, sarama.ErrInvalidMessage)
}

func (l *lazyPublisher) connect() (message.Publisher, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pub != nil {
		return l.pub, nil
	}
	marshaler := stock.NewWithPartitioningMarshaler(func(_ string, msg *message.Message) (string, error) {
		return msg.Metadata.Get(event.MetaAggregateID), nil
	})
	config, err := saramaConfig(l.security)
	if err != nil {
		return nil, err
	}
	pub, err := stock.NewPublisher(stock.PublisherConfig{Brokers: l.brokers, Marshaler: marshaler, OverwriteSaramaConfig: config},
		watermill.NewSlogLoggerWithLevelMapping(l.log, map[slog.Level]slog.Level{slog.LevelInfo: slog.LevelDebug}))
	if err != nil {
		return nil, fmt.Errorf("connect to the bus for dead letters: %w", err)
	}
	l.pub = pub
	return pub, nil
}

// Close closes the connection, if there is one.
func (l *lazyPublisher) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pub == nil {
		return nil
	}
	if err := l.pub.Close(); err != nil {
		return fmt.Errorf("close dead letter publisher: %w", err)
	}
	l.pub = nil
	return nil
}
