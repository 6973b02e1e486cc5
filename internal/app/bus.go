package app

import (
	"context"
	"fmt"
	"sync"

	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/internal/health"
	"github.com/cornjacket/platform-services/internal/tlsconf"
	"github.com/cornjacket/platform-services/pubsub/kafka"
	"github.com/cornjacket/platform-services/routers"
)

// readBus reads how the bus is spoken to.
func (p *platform) readBus() error {
	var err error
	if p.bus, err = busSecurity(p.cfg.Bus); err != nil {
		return err
	}
	if p.bus.Mechanism == "plain" && p.bus.TLS == nil {
		p.log.Warn("the password for the bus travels in the clear: REDPANDA_SASL_MECHANISM is plain, and REDPANDA_TLS is not set")
	}
	return nil
}

func busSecurity(cfg config.Bus) (kafka.Security, error) {
	s := kafka.Security{Username: cfg.RedpandaSASLUsername, Password: cfg.RedpandaSASLPassword}
	if cfg.RedpandaSASLMechanism != config.SASLNone {
		s.Mechanism = cfg.RedpandaSASLMechanism
	}
	if cfg.RedpandaTLS {
		var err error
		if s.TLS, err = tlsconf.Client(cfg.RedpandaTLSCAFile); err != nil {
			return s, fmt.Errorf("REDPANDA_TLS_CA_FILE: %w", err)
		}
	}
	return s, nil
}

// topics is the component that creates the topics, in the background, once a service asks for them.
type topics struct {
	loop
	once  sync.Once
	exist chan struct{} // closed when they do
}

func newTopics(p *platform) *topics {
	t := &topics{exist: make(chan struct{})}
	t.run = func(ctx context.Context) {
		err := kafka.AwaitTopics(ctx, p.cfg.RedpandaBrokers, p.log, p.topicConfig(), routers.Topics()...)
		switch {
		case err == nil:
			close(t.exist)
		case ctx.Err() == nil:
			p.fail(fmt.Errorf("REDPANDA_BROKERS: %w", err))
		}
	}
	return t
}

// topicConfig says how topics are created.
func (p *platform) topicConfig() kafka.TopicConfig {
	return kafka.TopicConfig{
		Partitions: int(p.cfg.TopicPartitions), Replication: int(p.cfg.TopicReplication), Retention: p.cfg.TopicRetention, Security: p.bus,
	}
}

// created returns a channel that is closed when the topics exist.
func (t *topics) created() <-chan struct{} {
	t.once.Do(func() { _ = t.loop.Start(context.Background()) }) // never fails
	return t.exist
}

// Start does nothing: a process that needs no topics leaves the bus alone.
func (t *topics) Start(context.Context) error { return nil }

// busCheck is a round trip to the brokers.
func busCheck(ping func(context.Context) error) health.Check {
	return health.Check{Name: "bus", Probe: func(ctx context.Context) (health.Details, error) {
		if err := ping(ctx); err != nil {
			return nil, plain(ctx, "bus", err)
		}
		return nil, nil
	}}
}
