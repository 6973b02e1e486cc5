package outbox_test

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/outbox"
)

// TestConformance runs Watermill's suite.
//
// An outbox has one topic and takes envelopes, so the suite's messages travel in envelopes and each of its topics is a
// database of its own. The suite knows no batches, so each is of one event. There are no consumer groups: an outbox has
// one reader.
func TestConformance(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("Watermill's suite takes half a minute")
	}
	stores := &storesByTopic{m: map[string]func() *store{}}
	tests.TestPubSub(t, tests.Features{
		GuaranteedOrder: true,
		Persistent:      true,
		ForceShort:      os.Getenv("CI") == "",
	}, func(t *testing.T) (message.Publisher, message.Subscriber) {
		of := func(topic string) *store { return stores.get(t, topic) }
		return &carrierPub{store: of, pubs: map[string]*outbox.Publisher{}}, &carrierSub{t: t, store: of, subs: map[string]*outbox.Subscriber{}}
	}, nil)
}

// storesByTopic gives all publishers and subscribers of a test the same database for a topic.
type storesByTopic struct {
	mu sync.Mutex
	m  map[string]func() *store
}

func (s *storesByTopic) get(t *testing.T, topic string) *store {
	s.mu.Lock()
	key := t.Name() + " " + topic
	if s.m[key] == nil {
		s.m[key] = sync.OnceValue(func() *store { return newStore(t, "") })
	}
	get := s.m[key]
	s.mu.Unlock()
	return get()
}

// carried is a Watermill message as the payload of an event.
type carried struct {
	UUID     string           `json:"uuid"`
	Payload  []byte           `json:"payload"`
	Metadata message.Metadata `json:"metadata"`
}

type carrierPub struct {
	store func(topic string) *store

	mu     sync.Mutex
	pubs   map[string]*outbox.Publisher
	closed bool
}

func (p *carrierPub) of(topic string) (*outbox.Publisher, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, fmt.Errorf("publisher is closed")
	}
	if p.pubs[topic] == nil {
		p.pubs[topic] = outbox.NewPublisher(p.store(topic).pool, outbox.PublisherConfig{})
	}
	return p.pubs[topic], nil
}

func (p *carrierPub) Publish(topic string, msgs ...*message.Message) error {
	pub, err := p.of(topic)
	if err != nil {
		return err
	}
	var packed []*message.Message
	for _, m := range msgs {
		e := newEvent("a", 0)
		e.ID = uuid.MustParse(m.UUID)
		if e.Payload, err = json.Marshal(carried{m.UUID, m.Payload, m.Metadata}); err != nil {
			return err
		}
		em, err := outbox.Message(&e)
		if err != nil {
			return err
		}
		packed = append(packed, em)
	}
	return pub.Publish(topic, packed...)
}

func (p *carrierPub) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, pub := range p.pubs {
		if err := pub.Close(); err != nil {
			return err
		}
	}
	return nil
}

type carrierSub struct {
	t     *testing.T
	store func(topic string) *store

	mu      sync.Mutex
	subs    map[string]*outbox.Subscriber
	running sync.WaitGroup
}

func (s *carrierSub) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	s.mu.Lock()
	sub := s.subs[topic]
	if sub == nil {
		sub = outbox.NewSubscriber(s.store(topic).pool, outbox.SubscriberConfig{
			MaxPause: time.Millisecond,
			Window:   1, Poll: 20 * time.Millisecond, CloseTimeout: 500 * time.Millisecond})
		s.subs[topic] = sub
		s.t.Cleanup(func() { _ = s.Close() }) // TestPublishSubscribeInOrder forgets it
	}
	s.mu.Unlock()
	in, err := sub.Subscribe(ctx, topic)
	if err != nil {
		return nil, err
	}
	out := make(chan *message.Message)
	s.running.Go(func() {
		defer close(out)
		for m := range in {
			unpack(m)
			select {
			case out <- m:
			case <-m.Context().Done():
			}
		}
	})
	return out, nil
}

// unpack changes a message in place, so that its ack is that of the subscriber's. What was refused comes unpacked.
func unpack(m *message.Message) {
	e, err := event.Unmarshal(m.Payload)
	if err != nil {
		return
	}
	var c carried
	if err := json.Unmarshal(e.Payload, &c); err != nil {
		panic(err)
	}
	m.UUID, m.Payload, m.Metadata = c.UUID, c.Payload, c.Metadata
}

func (s *carrierSub) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var closing sync.WaitGroup
	for _, sub := range s.subs {
		closing.Go(func() { _ = sub.Close() }) // never fails
	}
	closing.Wait()
	s.running.Wait()
	return nil
}
