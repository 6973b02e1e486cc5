package app

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/cornjacket/platform-services/internal/health"
	"github.com/cornjacket/platform-services/internal/tlsconf"
	"github.com/cornjacket/platform-services/pubsub/mochi"
	"github.com/cornjacket/platform-services/pubsub/mqtt"
)

// readMQTT reads how the MQTT broker is spoken to.
func (p *platform) readMQTT() error {
	var err error
	if p.mqttTLS, err = tlsconf.Client(p.cfg.MQTTTLSCAFile); err != nil {
		return fmt.Errorf("MQTT_TLS_CA_FILE: %w", err)
	}
	return nil
}

// embeddedBroker is the component of the embedded MQTT broker. Until ingestion takes from it, it turns clients away.
type embeddedBroker struct{ *platform }

// Start listens and serves.
func (b *embeddedBroker) Start(context.Context) error {
	addr, err := b.cfg.EmbeddedMQTTAddr()
	if err != nil {
		return err
	}
	users, err := readMQTTUsers(b.cfg.EmbeddedMQTTUsers)
	if err != nil {
		return err
	}
	broker, err := mochi.Listen(mochi.Config{
		Addr: addr, Username: b.cfg.MQTTUsername, Password: b.cfg.MQTTPassword, Users: users, Batch: b.cfg.BatchSize, MaxClients: b.cfg.MaxConnections, Log: b.log,
	})
	if err != nil {
		return fmt.Errorf("embedded MQTT broker: %w", err)
	}
	if bound, err := netip.ParseAddrPort(broker.Addr()); err == nil && !bound.Addr().IsLoopback() && b.cfg.MQTTUsername == "" && users == nil {
		b.log.Warn("everyone who reaches the embedded MQTT broker may publish (neither MQTT_USERNAME nor EMBEDDED_MQTT_USERS is set)", "address", broker.Addr())
	}
	b.broker = broker
	return nil
}

// Stop closes the broker, which the router that takes from it has done if there was one.
func (b *embeddedBroker) Stop(context.Context) error {
	if b.broker == nil {
		return nil
	}
	return b.broker.Close()
}

// readMQTTUsers reads the users of the embedded MQTT broker; nil, which lets everyone in, if there is no file.
func readMQTTUsers(path string) (*mochi.Users, error) {
	if path == "" {
		return nil, nil //nolint:nilnil // the broker's own notion of everyone
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("EMBEDDED_MQTT_USERS: %w", err)
	}
	defer file.Close() //nolint:errcheck // nothing was written
	users, err := mochi.ReadUsers(file)
	if err != nil {
		return nil, fmt.Errorf("EMBEDDED_MQTT_USERS: %s: %w", path, err)
	}
	return users, nil
}

// mqttSource is where MQTT messages come from, and what health needs to know of it.
type mqttSource struct {
	message.Subscriber
	oldest func() time.Time // when the oldest message in flight was handed out, zero if none is
	check  health.Check
}

// mqttSource returns the embedded broker, or a client of the one that is configured.
func (p *platform) mqttSource() (mqttSource, error) {
	if p.broker != nil {
		return mqttSource{
			p.broker, p.broker.Oldest,
			health.Check{Name: "mqtt", Probe: func(context.Context) (health.Details, error) {
				return health.Details{"broker": "embedded"}, nil
			}},
		}, nil
	}
	sub, err := mqtt.NewSubscriber(mqtt.Config{
		URL: p.cfg.MQTTURL, Username: p.cfg.MQTTUsername, Password: p.cfg.MQTTPassword, ClientID: p.cfg.MQTTClientID, TLS: p.mqttTLS,
		Window: p.cfg.Window, Batch: p.cfg.BatchSize, CloseTimeout: p.cfg.ShutdownTimeout / 3, Log: p.log,
	})
	if err != nil {
		return mqttSource{}, fmt.Errorf("MQTT_URL: %w", err)
	}
	return mqttSource{sub, sub.Oldest, mqttCheck(sub)}, nil
}

// mqttCheck fails while the client is not connected.
func mqttCheck(sub *mqtt.Subscriber) health.Check {
	return health.Check{Name: "mqtt", Every: 500 * time.Millisecond, Probe: func(context.Context) (health.Details, error) {
		if sub.Connected() {
			return nil, nil
		}
		if err := sub.LastError(); err != nil {
			return nil, fmt.Errorf("not connected: %w", err)
		}
		return nil, errors.New("not connected yet")
	}}
}
