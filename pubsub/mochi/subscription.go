package mochi

import (
	"context"
	"crypto/sha256"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/window"
)

// nackDelay is how long a message that was refused waits before it is handed out again.
const nackDelay = 100 * time.Millisecond

var _ message.Subscriber = (*Broker)(nil)

var errStopping = errors.New("no subscriber, or it is stopping")

// subscription is the one reader of the broker's events.
type subscription struct {
	ctx      context.Context // what messages' contexts are derived from; never ends
	out      chan *message.Message
	stopping chan struct{} // closed: hand nothing more out
	abandon  chan struct{} // closed: wait no longer for what was handed out
	ended    chan struct{} // closed: out is closed
	stop     sync.Once
	inflight sync.WaitGroup // added to under the broker's mutex before stopping is closed
}

// delivery is one publish on its way. Its outcome is valid once done is closed.
type delivery struct {
	id   uint16
	sum  [sha256.Size]byte
	done chan struct{}
	err  error
}

// Subscribe returns a channel of what clients publish on devices/+/events/# and on events, which is all that the
// broker hands out: the topic is ignored. Messages of one client come one after another, each after the one before
// has been acknowledged; those of different clients come concurrently. A message that is refused comes again, as a
// copy, after 100 ms.
//
// When ctx ends nothing more is handed out and the channel is closed after what is in flight has been acknowledged, at
// most after 10 s or [Config.Handoff] if that is less. The contexts of the messages outlive ctx. The errors are ErrSubscribed, while there is
// a subscription, and ErrClosed.
func (b *Broker) Subscribe(ctx context.Context, _ string) (<-chan *message.Message, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, ErrClosed
	}
	if b.sub != nil {
		return nil, ErrSubscribed
	}
	sub := &subscription{
		ctx:      context.WithoutCancel(ctx),
		out:      make(chan *message.Message),
		stopping: make(chan struct{}),
		abandon:  make(chan struct{}),
		ended:    make(chan struct{}),
	}
	b.sub = sub
	go b.run(ctx, sub)
	return sub.out, nil
}

// end starts the end of a subscription.
func (s *subscription) end() { s.stop.Do(func() { close(s.stopping) }) }

func (s *subscription) isStopping() bool {
	select {
	case <-s.stopping:
		return true
	default:
		return false
	}
}

// run sees a subscription to its end.
func (b *Broker) run(ctx context.Context, sub *subscription) {
	select {
	case <-ctx.Done():
		sub.end()
	case <-sub.stopping:
	}
	b.mu.Lock()   // whoever holds the lock after this sees that it is stopping
	b.mu.Unlock() //nolint:staticcheck // the empty section is the point

	patience := time.AfterFunc(min(b.cfg.Handoff, maxDrain), func() { close(sub.abandon) })
	sub.inflight.Wait()
	patience.Stop()
	b.mu.Lock()
	b.sub = nil
	b.mu.Unlock()
	close(sub.out)
	close(sub.ended)
}

// take starts to deliver a publish, or returns the delivery that a client repeats because it did not live to see the
// acknowledgement. It returns false when there is nobody to deliver to. If waits is set the client gets its
// acknowledgement, and Close waits until [Broker.acknowledged] has been called.
func (b *Broker) take(cl *mqtt.Client, pk packets.Packet, waits bool) (*delivery, bool) {
	d := &delivery{id: pk.PacketID, done: make(chan struct{})}
	if pk.FixedHeader.Qos > 0 {
		d.sum = fingerprint(pk)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	sub := b.sub
	if sub == nil || sub.isStopping() {
		return nil, false
	}
	if waits {
		b.acking[cl] = struct{}{}
		b.acks.Add(1)
	}
	if pk.FixedHeader.Qos > 0 {
		if was := b.last[cl.ID]; pk.FixedHeader.Dup && was != nil && was.id == d.id && was.sum == d.sum && !was.failed() {
			return was, true
		}
		b.last[cl.ID] = d
	}
	sub.inflight.Add(1)
	go func() {
		defer sub.inflight.Done()
		d.err = sub.deliver(newMessage(pk), source(pk.TopicName))
		close(d.done)
	}()
	return d, true
}

// acknowledged says that a client has its acknowledgement, or never will.
func (b *Broker) acknowledged(cl *mqtt.Client) {
	b.mu.Lock()
	_, ok := b.acking[cl]
	delete(b.acking, cl)
	b.mu.Unlock()
	if ok {
		b.acks.Done()
	}
}

// forget drops what is kept for a session that has ended.
func (b *Broker) forget(client string) {
	b.mu.Lock()
	delete(b.last, client)
	b.mu.Unlock()
}

// failed tells whether a delivery has ended without its event becoming durable.
func (d *delivery) failed() bool {
	select {
	case <-d.done:
		return d.err != nil
	default:
		return false
	}
}

// deliver hands a message out until it is acknowledged.
func (s *subscription) deliver(msg *message.Message, src window.Source) error {
	for {
		msg.SetContext(window.WithSource(s.ctx, src))
		select {
		case s.out <- msg:
		case <-s.stopping:
			return errStopping
		}
		select {
		case <-msg.Acked():
			return nil
		case <-s.abandon:
			return errStopping
		case <-msg.Nacked():
		}
		select {
		case <-time.After(nackDelay):
		case <-s.stopping:
			return errStopping
		}
		msg = msg.Copy()
	}
}

// isEvent tells whether a topic carries events: events and devices/+/events/#. The latter also matches what is not
// quite an event topic, so that a mistaken device ends up in the dead letters and not nowhere.
func isEvent(topic string) bool {
	if topic == "events" {
		return true
	}
	level := strings.SplitN(topic, "/", 4)
	return len(level) >= 3 && level[0] == "devices" && level[2] == "events"
}

// source says where a publish came from. Its key is the device, if the topic names one.
func source(topic string) window.Source {
	src := window.Source{Topic: topic, Partition: -1, Offset: -1}
	if level := strings.SplitN(topic, "/", 3); len(level) == 3 {
		src.Key = level[1]
	}
	return src
}

func newMessage(pk packets.Packet) *message.Message {
	payload := make([]byte, len(pk.Payload)) // the packet's buffer goes on to the broker's own subscribers
	copy(payload, pk.Payload)
	msg := message.NewMessage(watermill.NewUUID(), payload)
	for _, p := range pk.Properties.User {
		switch p.Key {
		case event.MetaEventID, event.MetaEventTime, event.MetaCorrelationID, event.MetaTraceparent:
			if msg.Metadata.Get(p.Key) == "" { // a property given twice: the first counts
				msg.Metadata.Set(p.Key, p.Val)
			}
		}
	}
	msg.Metadata.Set(event.MetaMQTTTopic, pk.TopicName)
	return msg
}

func fingerprint(pk packets.Packet) [sha256.Size]byte {
	h := sha256.New()
	h.Write([]byte(pk.TopicName))
	h.Write([]byte{0}) // no topic contains it (MQTT-1.5.4-2)
	h.Write(pk.Payload)
	return [sha256.Size]byte(h.Sum(nil))
}
