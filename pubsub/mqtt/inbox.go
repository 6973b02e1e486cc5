package mqtt

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/paho"
	"github.com/google/uuid"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/batch"
)

// inbox holds what a session has received and not handed out, bounded in bytes.
type inbox struct {
	limit, qos0Limit int // bytes
	max              int // messages of one batch
	window           int // unacknowledged messages after which the broker sends no more
	pause            func(on bool)

	arrived chan struct{} // signalled when there is a message, and when a batch need not gather any longer
	room    chan struct{} // signalled when there is room again

	mu      sync.Mutex
	waiting []arrival
	held    int  // bytes of what waits
	qos0    int  // of these, those of QoS 0
	blocked bool // a message waits for room
}

// arrival is a message that has been received.
type arrival struct {
	link   *link // may be acknowledged here only
	id     uint16
	qos    byte
	dup    bool // the broker may have sent it before
	size   int
	record batch.Record
}

func newArrival(l *link, p *paho.Publish) arrival {
	a := arrival{link: l, id: p.PacketID, qos: p.QoS, dup: p.Duplicate(), size: len(p.Payload) + 1024} // about what it takes
	a.record = batch.Record{
		Topic: p.Topic, Partition: -1, Offset: -1, Key: orderKey(p.Topic),
		ID: uuid.Must(uuid.NewV7()).String(), At: time.Now(), Value: p.Payload,
	}
	if p.Retain && len(p.Payload) == 0 {
		a.record.Headers = append(a.record.Headers, batch.Header{Key: event.MetaRetain, Value: "true"})
	}
	if p.Properties == nil {
		return a
	}
	for _, u := range p.Properties.User {
		switch u.Key {
		case event.MetaEventID, event.MetaEventTime, event.MetaCorrelationID, event.MetaTraceparent:
			if a.record.Header(u.Key) == "" { // a property given twice: the first counts, as with the embedded broker
				a.record.Headers = append(a.record.Headers, batch.Header{Key: u.Key, Value: u.Value})
			}
		}
	}
	return a
}

// recall makes a message that the broker repeats the record that it was on an earlier connection, so that it becomes the
// same event. Source of the packet identifier's being the same: MQTT 5.0 §4.4.
func (a *arrival) recall(earlier []arrival) {
	for i := 0; a.dup && i < len(earlier); i++ {
		if e := &earlier[i]; e.id == a.id && e.qos > 0 && e.record.Topic == a.record.Topic && bytes.Equal(e.record.Value, a.record.Value) {
			a.record.ID, a.record.At = e.record.ID, e.record.At
			return
		}
	}
}

// orderKey is the aggregate of a device's topic. The topic "events" carries the aggregate in its body, which is not
// read here.
func orderKey(topic string) string {
	if aggregate, _, err := event.SplitMQTTTopic(topic); err == nil {
		return aggregate
	}
	return topic
}

// put takes a message in. While too much waits already it blocks, and nothing is read from the broker, until half of
// that is left: the broker's window bounds messages, not bytes, and Mosquitto 2.0.11 sends a window more with each
// PUBACK. It returns false if it does not take the message: its connection is lost, the session is ending, or QoS 0 has
// come faster than it is handled.
func (b *inbox) put(ctx context.Context, a arrival) bool {
	if a.qos > 0 && !b.awaitRoom(ctx, a) {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if a.link.ctx.Err() != nil {
		return false
	}
	if a.qos == 0 {
		if b.qos0+a.size > b.qos0Limit {
			return false
		}
		b.qos0 += a.size
	}
	b.held += a.size
	b.waiting = append(b.waiting, a)
	if len(b.waiting) == 1 || b.full() {
		signal(b.arrived)
	}
	return true
}

func (b *inbox) awaitRoom(ctx context.Context, a arrival) bool {
	if b.hasRoom(a.size, b.limit) {
		return true
	}
	b.pause(true) // the client will not see the answers to its pings, which is not the broker's silence
	defer b.pause(false)
	for {
		select {
		case <-b.room:
			if b.hasRoom(a.size, b.limit/2) {
				return true
			}
		case <-a.link.ctx.Done():
			return false
		case <-ctx.Done():
			return false
		}
	}
}

func (b *inbox) hasRoom(size, limit int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.blocked = b.held > 0 && b.held+size > limit
	if b.blocked {
		signal(b.arrived)
	}
	return !b.blocked
}

// full reports whether what waits need not gather any longer.
func (b *inbox) full() bool { return b.blocked || len(b.waiting) >= min(b.max, b.window) }

// take waits for messages and returns those of the next batch, all of one connection; none if ctx ends. They gather for
// a while, unless they are enough before.
func (b *inbox) take(ctx context.Context, gather time.Duration) []arrival {
	late := time.After(gather)
	for waited := gather <= 0; ctx.Err() == nil; {
		if taken := b.cut(waited); len(taken) > 0 {
			return taken
		}
		select {
		case <-b.arrived:
		case <-late:
			waited = true
		case <-ctx.Done():
		}
	}
	return nil
}

// cut takes a batch off, if there is enough for one, or something and it may be less.
func (b *inbox) cut(less bool) []arrival {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !less && !b.full() {
		return nil
	}
	n, size := 0, 0
	for n < len(b.waiting) && n < b.max && (n == 0 || size+b.waiting[n].size <= b.limit) {
		a := &b.waiting[n]
		size += a.size
		if a.qos == 0 {
			b.qos0 -= a.size
		}
		n++
	}
	taken := slices.Clone(b.waiting[:n])
	b.waiting = slices.Delete(b.waiting, 0, n)
	b.held -= size
	signal(b.room)
	return taken
}

// clear forgets what waits and returns how much of that the broker will not repeat.
func (b *inbox) clear() (lost uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	lost = countQoS0(b.waiting)
	b.waiting, b.held, b.qos0, b.blocked = nil, 0, 0, false
	signal(b.room)
	return lost
}

func countQoS0(all []arrival) (n uint64) {
	for i := range all {
		if all[i].qos == 0 {
			n++
		}
	}
	return n
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
