package mqtt

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/eclipse/paho.golang/paho"
)

// ErrClosed says that the subscriber has been closed.
var ErrClosed = errors.New("MQTT subscriber is closed")

// Subscriber is a windowed Watermill subscriber. Its methods may be called concurrently.
type Subscriber struct {
	cfg Config
	url *url.URL

	dropped atomic.Uint64

	mu     sync.Mutex
	closed bool
	subs   map[string]*subscription // by client ID
}

var (
	_ message.Subscriber           = (*Subscriber)(nil)
	_ message.SubscribeInitializer = (*Subscriber)(nil)
)

// NewSubscriber returns a subscriber that connects when [Subscriber.Subscribe] is called. The error is about cfg.
func NewSubscriber(cfg Config) (*Subscriber, error) {
	cfg, u, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Subscriber{cfg: cfg, url: u, subs: make(map[string]*subscription)}, nil
}

// Subscribe hands out what is published on a topic: [AllTopics], or one MQTT topic filter. It returns at once and
// connects, and connects again, in the background, for as long as it takes.
//
// Many messages may be in flight at once; a message that is nacked is handed out again. Each carries its
// [window.Source] and its turn among those of its aggregate. When ctx ends, or on Close, nothing more is handed out;
// what is in flight may still be acked for [Config.CloseTimeout], then the channel is closed and the contexts of the
// messages end. The session stays on the broker and gathers what is published meanwhile.
//
// Each subscription is a session of its own: AllTopics has the configured client ID, others add their topic to it. A
// second subscription to the same topic at the same time adds a number, and shares the messages with the first.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("subscribe to %s: %w", topic, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	base := s.clientID(topic)
	id := base
	for n := 2; s.subs[id] != nil; n++ {
		id = base + "-" + strconv.Itoa(n)
	}
	sub := &subscription{
		cfg: &s.cfg, url: s.url, clientID: id, filters: s.filters(topic),
		log:     s.cfg.Log.With("client_id", id),
		out:     make(chan *message.Message),
		stopped: make(chan struct{}),
		dropped: &s.dropped,
		release: func() {
			s.mu.Lock()
			delete(s.subs, id)
			s.mu.Unlock()
		},
	}
	if err := sub.start(ctx); err != nil {
		return nil, err
	}
	s.subs[id] = sub
	go func() {
		select {
		case <-ctx.Done():
			sub.stop()
		case <-sub.stopped:
		}
	}()
	return sub.out, nil
}

// SubscribeInitialize makes sure that the session of a topic exists on the broker, so that what is published before
// the first Subscribe is kept for it.
func (s *Subscriber) SubscribeInitialize(topic string) error {
	if isWebsocket(s.url) {
		return errors.New("initialize MQTT session: not possible over a websocket, subscribe instead")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*s.cfg.ConnectTimeout)
	defer cancel()
	conn, err := Dial(ctx, s.url, s.cfg.TLS, s.cfg.ConnectTimeout)
	if err != nil {
		return fmt.Errorf("initialize MQTT session: %w", err)
	}
	client := paho.NewClient(paho.ClientConfig{
		Conn: conn, PacketTimeout: s.cfg.ConnectTimeout,
		EnableManualAcknowledgment: true, // and none is given: what arrives now is repeated to the subscription
		OnPublishReceived:          []func(paho.PublishReceived) (bool, error){func(paho.PublishReceived) (bool, error) { return true, nil }},
	})
	expiry := s.cfg.expirySeconds()
	connect := &paho.Connect{
		ClientID: s.clientID(topic), KeepAlive: uint16(keepAlive / time.Second),
		Username: s.cfg.Username, UsernameFlag: s.cfg.Username != "",
		Password: []byte(s.cfg.Password), PasswordFlag: s.cfg.Password != "",
		Properties: &paho.ConnectProperties{SessionExpiryInterval: &expiry},
	}
	if _, err := client.Connect(ctx, connect); err != nil {
		return fmt.Errorf("initialize MQTT session: %w", err)
	}
	packet := subscribePacket(s.filters(topic))
	ack, err := client.Subscribe(ctx, packet)
	err = checkSuback(packet, ack, err)
	_ = client.Disconnect(&paho.Disconnect{}) // a courtesy: the broker has answered already
	if err != nil {
		return fmt.Errorf("initialize MQTT session: %w", err)
	}
	return nil
}

// Close stops all subscriptions as the end of their contexts would, and waits until they have.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, sub := range s.all() {
		wg.Go(sub.stop)
	}
	wg.Wait()
	return nil
}

// Connected tells whether there is a subscription and each is granted and has heard of the broker within seconds.
func (s *Subscriber) Connected() bool {
	subs := s.all()
	return len(subs) > 0 && !slices.ContainsFunc(subs, func(sub *subscription) bool { return !sub.healthy() })
}

// LastError returns why the connection is down, nil if it is up.
func (s *Subscriber) LastError() error {
	for _, sub := range s.all() {
		sub.mu.Lock()
		up, err := sub.up, sub.lastErr
		sub.mu.Unlock()
		switch {
		case err != nil:
			return err
		case !up:
			return errors.New("not connected to the MQTT broker yet")
		}
		if silence := sub.pinger.silence(); silence >= silentFor {
			return fmt.Errorf("MQTT broker has been silent for %s", silence.Round(time.Second))
		}
	}
	return nil
}

// Oldest returns when the oldest message in flight was handed out, zero if none is.
func (s *Subscriber) Oldest() time.Time {
	var oldest time.Time
	for _, sub := range s.all() {
		oldest = earlier(oldest, sub.oldest())
	}
	return oldest
}

// Dropped returns how many messages with QoS 0 were lost, because they came faster than they could be handled or were
// in memory when a connection was lost. Messages with QoS 1 or 2 are never dropped.
func (s *Subscriber) Dropped() uint64 { return s.dropped.Load() }

func (s *Subscriber) all() []*subscription {
	s.mu.Lock()
	defer s.mu.Unlock()
	subs := make([]*subscription, 0, len(s.subs))
	for _, sub := range s.subs {
		subs = append(subs, sub)
	}
	return subs
}

func (s *Subscriber) clientID(topic string) string {
	if topic == AllTopics {
		return s.cfg.ClientID
	}
	return s.cfg.ClientID + ":" + topic
}

func (s *Subscriber) filters(topic string) []string {
	topics := s.cfg.Topics
	if topic != AllTopics {
		topics = []string{topic}
	}
	filters := make([]string, len(topics))
	for i, t := range topics {
		filters[i] = "$share/" + s.cfg.Group + "/" + t
	}
	return filters
}
