package mochi

import (
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// Bounds on the publishes of one client that are not acknowledged: beyond them nothing is read from it.
const (
	maxPipelined      = 1024 // as its CONNACK says
	maxPipelinedBytes = 256 << 10
)

// pipe is the publishes of one client that are not acknowledged, in their order.
type pipe struct {
	b  *Broker
	cl *mqtt.Client

	mu     sync.Mutex
	less   sync.Cond // there is less in the queue
	queue  []*piped
	size   int  // bytes
	failed bool // the client has been disconnected
}

// piped is a publish with what becomes of it.
type piped struct {
	pk packets.Packet
	d  *delivery
	at time.Time
}

func newPipe(b *Broker, cl *mqtt.Client) *pipe {
	p := &pipe{b: b, cl: cl}
	p.less.L = &p.mu
	return p
}

// push adds a publish, waiting for room. It returns false if that is needless: its outcome is known, and all that came
// before it is acknowledged.
func (p *pipe) push(pk packets.Packet, d *delivery) bool {
	next, size := &piped{pk: pk, d: d, at: time.Now()}, len(pk.Payload)
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.failed && len(p.queue) > 0 && (len(p.queue) >= maxPipelined || p.size+size > maxPipelinedBytes) {
		p.less.Wait()
	}
	if p.failed {
		return true // with its client
	}
	if len(p.queue) == 0 && d.isSettled() {
		return false
	}
	p.queue = append(p.queue, next)
	p.size += size
	if len(p.queue) == 1 {
		go p.drain()
	}
	return true
}

// awaitEmpty waits until all that the client has published is acknowledged, or never will be.
func (p *pipe) awaitEmpty() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.queue) > 0 {
		p.less.Wait()
	}
}

// drain acknowledges publishes until there are none.
func (p *pipe) drain() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.queue) > 0 {
		head := p.queue[0]
		p.mu.Unlock()
		ok := p.b.finish(p.cl, head)
		p.mu.Lock()
		p.queue[0] = nil
		p.queue = p.queue[1:]
		p.size -= len(head.pk.Payload)
		if !ok {
			p.failed, p.queue = true, nil
		}
		p.less.Broadcast()
	}
}

// finish waits for the outcome of a publish. If its event is stored it acknowledges it and passes it on, else it
// disconnects the client: a negative acknowledgement would tell an MQTT 5 client never to send it again, and 3.1.1 does
// not know any.
func (b *Broker) finish(cl *mqtt.Client, next *piped) bool {
	code, why := next.d.await(time.Until(next.at.Add(b.cfg.Handoff)))
	if why != "" {
		b.refuse(cl, next.pk, code, why)
		return false
	}
	pk := next.pk
	if pk.FixedHeader.Qos > 0 {
		ack := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: pk.PacketID}
		if err := cl.WritePacket(ack); err != nil {
			return true // it is gone, and will send it again
		}
	}
	// The client of its own keeps mochi from acknowledging it, and from working on the client's state beside the
	// goroutine that reads from the client. It tells the hook who the publish is from.
	pk.Connect.ClientIdentifier = cl.ID
	pk.Properties.TopicAliasFlag, pk.Properties.TopicAlias = false, 0 // the name has been filled in
	if err := b.server.InjectPacket(b.passer, pk); err != nil {
		b.log.Warn("MQTT publish not passed on to subscribers", "client", cl.ID, "topic", pk.TopicName, "error", err)
	}
	atomic.AddInt64(&b.server.Info.PacketsReceived, -1) // it was counted when it came
	atomic.AddInt64(&b.server.Info.MessagesReceived, -1)
	return true
}

// refuse drops a client without acknowledging its publish.
func (b *Broker) refuse(cl *mqtt.Client, pk packets.Packet, code packets.Code, why string) {
	b.log.Debug("publish not acknowledged, client disconnected", "reason", why, "client", cl.ID, "topic", pk.TopicName)
	if cl.Properties.ProtocolVersion == 5 {
		_ = b.server.DisconnectClient(cl, code) // returns the code
	} else {
		cl.Stop(code) // 3.1.1 has no DISCONNECT from the server
	}
}
