package app

import (
	"context"
	"fmt"

	"github.com/IBM/sarama"
	stock "github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/twmb/franz-go/pkg/sasl"

	"github.com/cornjacket/platform-services/pubsub/kafka"
)

// saramaConfig returns the settings of Watermill's own publisher, with the same security as the other clients of the bus.
func saramaConfig(s kafka.Security) (*sarama.Config, error) {
	c := stock.DefaultSaramaSyncPublisherConfig()
	if s.TLS != nil {
		c.Net.TLS.Enable, c.Net.TLS.Config = true, s.TLS.Clone()
	}
	mechanism, err := s.SASL()
	if err != nil || mechanism == nil {
		return c, err
	}
	c.Net.SASL.Enable = true
	c.Net.SASL.Mechanism = sarama.SASLMechanism(mechanism.Name())
	c.Net.SASL.User, c.Net.SASL.Password = s.Username, s.Password
	c.Net.SASL.SCRAMClientGeneratorFunc = func() sarama.SCRAMClient { return &scramClient{mechanism: mechanism} }
	return c, nil
}

// scramClient lets sarama log in with the mechanism of the other client library, since it has no SCRAM of its own.
type scramClient struct {
	mechanism sasl.Mechanism // knows user and password
	session   sasl.Session
	first     []byte // what opens the exchange; sent with the first step
	done      bool
}

// Begin starts an exchange.
func (c *scramClient) Begin(string, string, string) (err error) {
	c.done = false
	c.session, c.first, err = c.mechanism.Authenticate(context.Background(), "")
	if err != nil {
		return fmt.Errorf("begin to log in at the bus: %w", err)
	}
	return nil
}

// Step answers a challenge; that of the first step is empty.
func (c *scramClient) Step(challenge string) (string, error) {
	if first := c.first; first != nil {
		c.first = nil
		return string(first), nil
	}
	done, answer, err := c.session.Challenge([]byte(challenge))
	if err != nil {
		return "", fmt.Errorf("log in at the bus: %w", err)
	}
	c.done = done
	return string(answer), nil
}

// Done tells whether the exchange is over.
func (c *scramClient) Done() bool { return c.done }
