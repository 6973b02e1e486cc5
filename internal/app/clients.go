package app

import (
	"context"
	"crypto/tls"
	"fmt"

	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/internal/tlsconf"
	"github.com/cornjacket/platform-services/pubsub/kafka"
)

// readClients reads how the bus and the MQTT broker are spoken to.
func (p *platform) readClients(context.Context) error {
	var err error
	c := &p.clients
	if c.bus, err = busSecurity(p.cfg.Bus); err != nil {
		return err
	}
	if c.mqtt, err = tlsconf.Client(p.cfg.MQTTTLSCAFile); err != nil {
		return fmt.Errorf("MQTT_TLS_CA_FILE: %w", err)
	}
	if c.bus.Mechanism == "plain" && c.bus.TLS == nil {
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

// clients are how what the platform depends on is spoken to; see readClients.
type clients struct {
	bus  kafka.Security
	mqtt *tls.Config
}
