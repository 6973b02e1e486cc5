package mqtt

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/window"
)

// link is one connection: what came in on it may be acknowledged on it only. When it is lost, the broker repeats on
// the next one what has not been acknowledged.
//
// A message passes inbox → pump → lane → forward → the subscription's channel; its acknowledgement passes
// lane → advance → acker → PUBACK.
type link struct {
	s       *subscription
	conn    io.Writer
	started time.Time

	ctx    context.Context // ends with the connection
	cancel context.CancelCauseFunc
	msgCtx context.Context // parent of the messages' contexts; outlives the connection, since handlers may be at work
	retire context.CancelFunc

	lane     *window.Lane[uint64]
	feed     chan *message.Message // from the lane
	intake   context.Context       // ends when nothing more is to be handed out
	drain    context.CancelFunc
	pumped   chan struct{} // closed when the pump has ended
	refused  chan struct{} // the lane's head was refused while draining
	ackWake  chan struct{}
	ackStop  chan struct{}
	ackEnded chan struct{}

	mu       sync.Mutex
	wake     chan struct{}
	inbox    []*paho.Publish
	room     chan struct{} // signalled when held has become less
	held     int           // bytes received and not handed to the lane
	qos0     int           // of these, those of QoS 0
	sent     []sentMessage
	puback   []byte // encoded PUBACKs to write
	seq      uint64
	spareAck []byte // owned by the acker
}

type sentMessage struct {
	seq uint64
	msg *message.Message // as first handed out
	id  uint16
	qos byte
}

func newLink(s *subscription, conn io.Writer) *link {
	l := &link{
		s: s, conn: conn, started: time.Now(),
		feed:     make(chan *message.Message),
		wake:     make(chan struct{}, 1),
		room:     make(chan struct{}, 1),
		pumped:   make(chan struct{}),
		refused:  make(chan struct{}, 1),
		ackWake:  make(chan struct{}, 1),
		ackStop:  make(chan struct{}),
		ackEnded: make(chan struct{}),
	}
	l.ctx, l.cancel = context.WithCancelCause(context.Background())
	l.intake, l.drain = context.WithCancel(l.ctx)
	l.msgCtx, l.retire = context.WithCancel(s.msgCtx)
	l.lane = window.NewLane(l.ctx, l.feed, window.LaneConfig[uint64]{Size: s.cfg.Window, Advance: l.advance})
	s.wg.Go(l.pump)
	s.wg.Go(l.forward)
	s.wg.Go(l.acker)
	return l
}

// receive takes a message from the client's callback. It returns false if it did not take it. The client asks for no
// topic aliases, and gives each packet a body of its own.
func (l *link) receive(p *paho.Publish) bool {
	size := sizeOf(p)
	if p.QoS > 0 && !l.awaitRoom(size) {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx.Err() != nil {
		return false
	}
	if p.QoS == 0 {
		if l.qos0+size > l.s.cfg.QoS0Buffer {
			return false
		}
		l.qos0 += size
	}
	l.held += size
	l.inbox = append(l.inbox, p)
	signal(l.wake)
	return true
}

// awaitRoom stops reading from the broker while too much is held already, until half of that is left. Its window bounds
// messages, not bytes, and Mosquitto 2.0.11 sends a window more with each PUBACK. While it waits the client does not see
// the answers to its pings, which is not the broker's silence. It returns false if the link ends.
func (l *link) awaitRoom(size int) bool {
	if l.hasRoom(size, l.s.cfg.Buffer) {
		return true
	}
	l.s.pinger.pause(true)
	defer l.s.pinger.pause(false)
	for {
		select {
		case <-l.room:
			if l.hasRoom(size, l.s.cfg.Buffer/2) {
				return true
			}
		case <-l.intake.Done():
			return false
		}
	}
}

func (l *link) hasRoom(size, limit int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held == 0 || l.held+size <= limit
}

// sizeOf is about what a waiting message takes.
func sizeOf(p *paho.Publish) int { return len(p.Payload) + 1024 }

// abandon forgets what has not been handed to the lane and returns how much of that the broker will not repeat.
func (l *link) abandon() (lost uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.inbox {
		if p.QoS == 0 {
			lost++
		}
	}
	l.inbox = nil
	return lost
}

// pump hands the inbox to the lane. It begins when every message of earlier connections has been acked or nacked:
// the broker repeats those that are in flight, and their copies must neither overtake nor be overtaken by them, or an
// older reading could be sequenced behind a newer one. The router settles every message, so the wait ends.
func (l *link) pump() {
	defer close(l.pumped)
	if !l.s.settleEarlier(l.intake) {
		return
	}
	for {
		select {
		case <-l.wake:
		case <-l.intake.Done():
			return
		}
		l.mu.Lock()
		batch := l.inbox
		l.inbox = nil
		l.mu.Unlock()
		for _, p := range batch {
			if l.intake.Err() != nil || !l.send(p) {
				return
			}
		}
	}
}

func (l *link) send(p *paho.Publish) bool {
	msg := newMessage(p)
	l.mu.Lock()
	l.seq++
	seq := l.seq
	l.sent = append(l.sent, sentMessage{seq: seq, msg: msg, id: p.PacketID, qos: p.QoS})
	l.mu.Unlock()
	defer l.release(p)
	return l.lane.Send(l.intake, l.msgCtx, msg, seq, window.Source{
		Topic: p.Topic, Partition: -1, Offset: -1, Key: orderKey(p.Topic),
	})
}

// release notes that a message is not held any more.
func (l *link) release(p *paho.Publish) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held -= sizeOf(p)
	if p.QoS == 0 {
		l.qos0 -= sizeOf(p)
	}
	signal(l.room)
}

// orderKey is the aggregate of a device's topic. The topic "events" carries the aggregate in its body, which is not
// read here, so its messages keep the order among themselves.
func orderKey(topic string) string {
	if aggregate, _, err := event.SplitMQTTTopic(topic); err == nil {
		return aggregate
	}
	return topic
}

func newMessage(p *paho.Publish) *message.Message {
	msg := message.NewMessage(watermill.NewUUID(), p.Payload)
	msg.Metadata.Set(event.MetaMQTTTopic, p.Topic)
	if p.Properties == nil {
		return msg
	}
	for _, u := range p.Properties.User {
		switch u.Key {
		case event.MetaEventID, event.MetaEventTime, event.MetaCorrelationID, event.MetaTraceparent:
			if msg.Metadata.Get(u.Key) == "" { // a property given twice: the first counts, as with the embedded broker
				msg.Metadata.Set(u.Key, u.Value)
			}
		}
	}
	return msg
}

// forward hands out what the lane gives: new messages, and the head of the lane again after it was nacked.
func (l *link) forward() {
	for {
		var msg *message.Message
		select {
		case msg = <-l.feed:
		case <-l.ctx.Done():
			return
		}
		if l.intake.Err() == nil {
			l.s.inflight.add(msg)
			select {
			case l.s.out <- msg:
				continue
			case <-l.intake.Done():
			}
		}
		msg.Nack() // nobody has it
		if !l.isOriginal(msg) {
			// A copy comes from the lane's collector, which offers its head again. All before the head has been
			// acknowledged, and the head will not be.
			signal(l.refused)
		}
	}
}

func (l *link) isOriginal(msg *message.Message) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.sent, func(m sentMessage) bool { return m.msg == msg })
}

// advance acknowledges everything up to the mark.
func (l *link) advance(mark uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for ; n < len(l.sent) && l.sent[n].seq <= mark; n++ {
		m := &l.sent[n]
		if m.qos > 0 {
			// Without reason code and properties: success. Source: MQTT 5.0 §3.4.2.1.
			l.puback = append(l.puback, packets.PUBACK<<4, 2, byte(m.id>>8), byte(m.id))
		}
	}
	clear(l.sent[:n])
	l.sent = l.sent[n:]
	signal(l.ackWake)
}

// acker writes the PUBACKs that have gathered while it wrote the ones before.
func (l *link) acker() {
	defer close(l.ackEnded)
	for {
		select {
		case <-l.ackWake:
			l.flush()
		case <-l.ackStop:
			l.flush()
			return
		case <-l.ctx.Done():
			return
		}
	}
}

func (l *link) flush() {
	l.mu.Lock()
	data := l.puback
	l.puback = l.spareAck[:0]
	l.mu.Unlock()
	l.spareAck = data
	if len(data) == 0 {
		return
	}
	if err := l.write(data); err != nil {
		l.fail(fmt.Errorf("send PUBACK: %w", err))
		return
	}
	l.s.pinger.PacketSent()
}

func (l *link) write(data []byte) error {
	if lock, ok := l.conn.(sync.Locker); ok {
		lock.Lock()
		defer lock.Unlock()
	}
	_, err := l.conn.Write(data)
	return err
}

// fail ends the connection because of err; a new one is made.
func (l *link) fail(err error) {
	if l.ctx.Err() != nil {
		return
	}
	l.cancel(err)
	l.bye()
	if c, ok := l.conn.(io.Closer); ok {
		_ = c.Close() // it is being given up, with a cause of its own
	}
}

// bye sends a DISCONNECT, as a courtesy: the session stays either way.
func (l *link) bye() {
	if c, ok := l.conn.(net.Conn); ok {
		_ = c.SetWriteDeadline(time.Now().Add(time.Second))
	}
	// Without reason code and properties: normal disconnection, and the session expiry of the CONNECT stays.
	_ = l.write([]byte{packets.DISCONNECT << 4, 0})
}

// finish hands out nothing more, waits for what is in flight until ctx ends, and sends the last acknowledgements.
func (l *link) finish(ctx context.Context) {
	l.drain()
	<-l.pumped
	l.lane.Close()
	select {
	case <-l.lane.Done():
	case <-l.refused:
	case <-l.ctx.Done():
		return
	case <-ctx.Done():
	}
	close(l.ackStop)
	select {
	case <-l.ackEnded:
	case <-l.ctx.Done():
		return
	case <-time.After(time.Second): // the broker does not read
	}
	// The broker closes the connection on a DISCONNECT. Waiting for that, while the client goes on reading, makes
	// sure that it has read the PUBACKs: closing with unread data would reset the connection.
	l.bye()
	select {
	case <-l.ctx.Done():
	case <-time.After(time.Second):
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
