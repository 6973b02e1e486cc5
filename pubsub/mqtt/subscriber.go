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
)

// ErrClosed says that the subscriber has been closed.
var ErrClosed = errors.New("MQTT subscriber is closed")

// Subscriber is a Watermill subscriber that hands out batches. Its methods may be called concurrently.
type Subscriber struct {
	cfg Config
	url *url.URL

	dropped atomic.Uint64

	mu     sync.Mutex
	closed bool
	subs   map[string]*subscription // by client ID
}

var _ message.Subscriber = (*Subscriber)(nil)

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
// Each Watermill message is a [batch.Batch] of what has come in, and comes after the one before is done; what is left of
// one that is nacked is handed out again. When ctx ends, or on Close, nothing more is handed out; what is in flight may
// still be acked for [Config.CloseTimeout], then the channel is closed and the context of the message ends. The session
// stays on the broker and gathers what is published meanwhile.
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
		ended:   make(chan struct{}),
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
	return sub.sender.Out(), nil
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

// Connected reports whether there is a subscription and each is granted and has heard of the broker within seconds.
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

// Oldest returns since when the oldest batch in flight has been handed out, zero if none is.
func (s *Subscriber) Oldest() time.Time {
	var oldest time.Time
	for _, sub := range s.all() {
		if at := sub.sender.Oldest(); oldest.IsZero() || !at.IsZero() && at.Before(oldest) {
			oldest = at
		}
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
