package mqtt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/eclipse/paho.golang/paho"
	"github.com/stretchr/testify/require"
)

// TestConformance runs Watermill's suite, for which a batch is one message: the suite knows no others.
//
// A session has one subscriber at a time, and what one session has taken no other gets, so a single instance is
// required. Consumer groups exist, but with a session each; the suite makes a new subscriber with the name of a group and
// expects the session of the former, which is what the client ID is for.
func TestConformance(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("Watermill's suite takes half a minute")
	}
	b := newBroker(t, "")
	create := func(group string) (message.Publisher, message.Subscriber) {
		sub, err := NewSubscriber(Config{URL: b.url(), Group: group, Batch: 1,
			CloseTimeout: time.Second, MaxPause: time.Millisecond, Log: slog.New(slog.DiscardHandler)})
		require.NoError(t, err)
		return &carrierPub{addr: b.addr()}, &carrierSub{Subscriber: sub}
	}
	tests.TestPubSub(t, tests.Features{
		ConsumerGroups:                      true,
		GuaranteedOrder:                     true,
		GuaranteedOrderWithSingleSubscriber: true,
		Persistent:                          true,
		RequireSingleInstance:               true,
		ForceShort:                          os.Getenv("CI") == "",
	}, func(*testing.T) (message.Publisher, message.Subscriber) {
		return create("ingestion")
	}, func(_ *testing.T, group string) (message.Publisher, message.Subscriber) {
		return create(group)
	})
}

// carried is a Watermill message as the body of an MQTT message: MQTT has no place for its UUID, and the subscriber
// takes over four user properties only.
type carried struct {
	UUID     string           `json:"uuid"`
	Payload  []byte           `json:"payload"`
	Metadata message.Metadata `json:"metadata"`
}

type carrierPub struct {
	addr   string
	mu     sync.Mutex
	client *paho.Client
	closed bool
}

func (p *carrierPub) Publish(topic string, msgs ...*message.Message) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errors.New("publisher is closed")
	}
	if p.client == nil {
		conn, err := net.Dial("tcp", p.addr)
		if err != nil {
			return err
		}
		p.client = paho.NewClient(paho.ClientConfig{Conn: conn})
		if _, err := p.client.Connect(context.Background(), &paho.Connect{CleanStart: true, KeepAlive: 30}); err != nil {
			return err
		}
	}
	for _, m := range msgs {
		body, err := json.Marshal(carried{UUID: m.UUID, Payload: m.Payload, Metadata: m.Metadata})
		if err != nil {
			return err
		}
		if _, err := p.client.Publish(context.Background(), &paho.Publish{Topic: topic, QoS: 1, Payload: append([]byte("carried "), body...)}); err != nil {
			return fmt.Errorf("publish: %w", err)
		}
	}
	return nil
}

func (p *carrierPub) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.client != nil {
		_ = p.client.Disconnect(&paho.Disconnect{})
		p.client = nil
	}
	return nil
}

type carrierSub struct {
	*Subscriber
	wg sync.WaitGroup
}

func (s *carrierSub) Close() error {
	defer s.wg.Wait()
	return s.Subscriber.Close()
}

// SubscribeInitialize makes sure that the session of a topic exists on the broker.
func (s *carrierSub) SubscribeInitialize(topic string) error {
	up := make(chan Granted, 1)
	cfg := s.cfg
	cfg.OnUp = func(g Granted) { up <- g }
	sub, err := NewSubscriber(cfg)
	if err != nil {
		return err
	}
	if _, err := sub.Subscribe(context.Background(), topic); err != nil {
		return err
	}
	<-up
	return sub.Close()
}

func (s *carrierSub) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	in, err := s.Subscriber.Subscribe(ctx, topic)
	if err != nil {
		return nil, err
	}
	out := make(chan *message.Message)
	s.wg.Go(func() {
		defer close(out)
		for m := range in {
			// In place, so that the ack is that of the subscriber's message. A copy after a nack is unpacked already.
			if body, packed := strings.CutPrefix(string(m.Payload), "carried "); packed {
				var c carried
				if err := json.Unmarshal([]byte(body), &c); err != nil {
					panic(err)
				}
				m.UUID, m.Payload, m.Metadata = c.UUID, c.Payload, c.Metadata
			}
			select {
			case out <- m:
			case <-m.Context().Done():
			}
		}
	})
	return out, nil
}
