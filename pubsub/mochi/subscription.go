package mochi

import (
	"context"
	"hash/maphash"
	"slices"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/batch"
)

var _ message.Subscriber = (*Broker)(nil)

// subscription is the one reader of the broker's events. The broker's lock guards it.
type subscription struct {
	ctx     context.Context // ends when nothing more is to be taken or handed out
	end     context.CancelFunc
	sender  *batch.Sender
	arrived chan struct{} // signalled when something waits
	waiting []*delivery
	ended   chan struct{} // closed: the channel of messages is closed
}

// delivery is the event of a publish on its way. Whether it is stored is valid once done is closed.
type delivery struct {
	session *session // nil with QoS 0
	id      uint16
	sum     uint64
	record  batch.Record
	done    chan struct{}
	stored  bool
}

// session is what is known of the publishes of a client with QoS above 0, by packet identifier, so that one which is
// repeated is not taken for another event. The broker's lock guards it.
type session struct {
	pending      map[uint16]*delivery
	stored, less map[uint16]uint64 // fingerprints of the newest that are stored, and of those before
}

// remembered is how many fingerprints of a session are kept, at least, and up to twice as many.
const remembered = 256

// Subscribe returns a channel of what clients publish on devices/+/events/# and on events, which is all that the
// broker hands out: the topic is ignored. Each message is a [batch.Batch] of what has come from all clients, and comes
// after the one before is done; what is left of one that is nacked is handed out again.
//
// When ctx ends nothing more is handed out and the channel is closed after what is in flight has been acknowledged, at
// most after 10 s or [Config.Handoff] if that is less. The contexts of the messages outlive ctx. The errors are
// ErrSubscribed, while there is a subscription, and ErrClosed.
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
		sender:  batch.NewSender(min(b.cfg.Handoff, maxDrain)),
		arrived: make(chan struct{}, 1),
		ended:   make(chan struct{}),
	}
	sub.ctx, sub.end = context.WithCancel(ctx)
	b.sub = sub
	go b.run(sub)
	return sub.sender.Out(), nil
}

// Oldest returns since when the batch in flight has been handed out; zero if none is.
func (b *Broker) Oldest() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sub == nil {
		return time.Time{}
	}
	return b.sub.sender.Oldest()
}

// run sees a subscription to its end. A batch is what has come while the one before was handled: nothing gathers for
// longer, since the devices wait for their acknowledgements before they send more.
func (b *Broker) run(sub *subscription) {
	for taken := b.next(sub); len(taken) > 0; taken = b.next(sub) {
		records := make([]batch.Record, len(taken))
		for i, d := range taken {
			records[i] = d.record
		}
		b.settle(taken, sub.sender.Send(sub.ctx, records).Done)
	}
	b.mu.Lock()
	b.sub = nil
	rest := sub.waiting
	b.mu.Unlock()
	b.settle(rest, 0)
	sub.end()
	close(sub.sender.Out())
	close(sub.ended)
}

// next waits for publishes and returns those of the next batch; none when the subscription ends.
func (b *Broker) next(sub *subscription) []*delivery {
	for sub.ctx.Err() == nil {
		b.mu.Lock()
		n := min(len(sub.waiting), b.cfg.Batch)
		taken := slices.Clone(sub.waiting[:n])
		sub.waiting = slices.Delete(sub.waiting, 0, n)
		b.mu.Unlock()
		if n > 0 {
			return taken
		}
		select {
		case <-sub.arrived:
		case <-sub.ctx.Done():
		}
	}
	return nil
}

// settle says that of deliveries the first are stored, and the others will not be.
func (b *Broker) settle(all []*delivery, stored int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, d := range all {
		d.stored, d.record = i < stored, batch.Record{}
		if s := d.session; s != nil {
			s.settled(d)
		}
		close(d.done)
	}
}

func (s *session) settled(d *delivery) {
	if s.pending[d.id] != d {
		return
	}
	delete(s.pending, d.id)
	if !d.stored {
		return
	}
	if len(s.stored) >= remembered {
		s.stored, s.less = make(map[uint16]uint64), s.stored
	}
	s.stored[d.id] = d.sum
}

// again returns the delivery of a publish that a client repeats because it did not live to see the acknowledgement; nil
// if there is none.
func (s *session) again(id uint16, sum uint64) *delivery {
	if d := s.pending[id]; d != nil && d.sum == sum {
		return d
	}
	for _, stored := range []map[uint16]uint64{s.stored, s.less} {
		if was, ok := stored[id]; ok {
			if was == sum {
				return settledDelivery(true)
			}
			return nil
		}
	}
	return nil
}

// settledDelivery returns one that is stored, or never will be.
func settledDelivery(stored bool) *delivery {
	d := &delivery{done: make(chan struct{}), stored: stored}
	close(d.done)
	return d
}

// take starts to deliver a publish, or returns the delivery that a client repeats.
func (b *Broker) take(cl *mqtt.Client, pk packets.Packet) *delivery {
	d := &delivery{id: pk.PacketID, record: newRecord(pk), done: make(chan struct{})}
	b.mu.Lock()
	defer b.mu.Unlock()
	sub := b.sub
	if sub == nil || sub.ctx.Err() != nil {
		return settledDelivery(false)
	}
	if pk.FixedHeader.Qos > 0 {
		if d.session = b.sessions[cl.ID]; d.session == nil {
			d.session = &session{pending: make(map[uint16]*delivery), stored: make(map[uint16]uint64)}
			b.sessions[cl.ID] = d.session
		}
		d.sum = fingerprint(pk)
		if pk.FixedHeader.Dup {
			if was := d.session.again(d.id, d.sum); was != nil {
				return was
			}
		}
		d.session.pending[d.id] = d
	}
	sub.waiting = append(sub.waiting, d)
	select {
	case sub.arrived <- struct{}{}:
	default:
	}
	return d
}

// await waits for the outcome of a delivery; if the event is not stored it returns what to tell the client, and why.
func (d *delivery) await(patience time.Duration) (code packets.Code, why string) {
	select {
	case <-d.done:
	default:
		timer := time.NewTimer(patience)
		defer timer.Stop()
		select {
		case <-d.done:
		case <-timer.C:
			return packets.ErrServerBusy, "not stored in time"
		}
	}
	if !d.stored {
		return packets.ErrServerShuttingDown, "no subscriber, or it is stopping"
	}
	return packets.CodeSuccess, ""
}

func (d *delivery) isSettled() bool {
	select {
	case <-d.done:
		return true
	default:
		return false
	}
}

// pipe returns the pipe of a client.
func (b *Broker) pipe(cl *mqtt.Client) *pipe {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.clients[cl]
	if p == nil {
		p = newPipe(b, cl)
		b.clients[cl] = p
	}
	return p
}

// disconnected drops what is kept for a connection.
func (b *Broker) disconnected(cl *mqtt.Client) {
	b.mu.Lock()
	delete(b.clients, cl)
	b.mu.Unlock()
}

// forget drops what is kept for a session that has ended.
func (b *Broker) forget(client string) {
	b.mu.Lock()
	delete(b.sessions, client)
	b.mu.Unlock()
}

// isEvent reports whether a topic carries events: events and devices/+/events/#. The latter also matches what is not
// quite an event topic, so that a mistaken device ends up in the dead letters and not nowhere.
func isEvent(topic string) bool {
	if topic == event.MQTTEvents {
		return true
	}
	level := strings.SplitN(topic, "/", 4)
	return len(level) >= 3 && level[0] == "devices" && level[2] == "events"
}

// newRecord returns a publish as it is handed out. Its key is the device, if the topic names one.
func newRecord(pk packets.Packet) batch.Record {
	r := batch.Record{
		Topic: pk.TopicName, Partition: -1, Offset: -1, ID: uuid.Must(uuid.NewV7()).String(), At: time.Now(),
		Value: slices.Clone(pk.Payload), // the packet's buffer goes on to the broker's own subscribers
	}
	if pk.FixedHeader.Retain && len(pk.Payload) == 0 {
		r.Headers = append(r.Headers, batch.Header{Key: event.MetaRetain, Value: "true"})
	}
	if level := strings.SplitN(pk.TopicName, "/", 3); len(level) == 3 {
		r.Key = level[1]
	}
	for _, p := range pk.Properties.User {
		switch p.Key {
		case event.MetaEventID, event.MetaEventTime, event.MetaCorrelationID, event.MetaTraceparent:
			if r.Header(p.Key) == "" { // a property given twice: the first counts
				r.Headers = append(r.Headers, batch.Header{Key: p.Key, Value: p.Val})
			}
		}
	}
	return r
}

var seed = maphash.MakeSeed()

// fingerprint tells publishes with the same packet identifier apart.
func fingerprint(pk packets.Packet) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	_, _ = h.WriteString(pk.TopicName) // it never fails
	_ = h.WriteByte(0)                 // no topic contains it (MQTT-1.5.4-2)
	_, _ = h.Write(pk.Payload)
	return h.Sum64()
}
