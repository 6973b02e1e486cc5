package simulate

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	pahosession "github.com/eclipse/paho.golang/paho/session"
	"github.com/eclipse/paho.golang/paho/session/state"

	"github.com/cornjacket/platform-services/pubsub/mqtt"
)

const (
	keepAlive      = 30 * time.Second
	writeTimeout   = 30 * time.Second
	connectTimeout = 10 * time.Second
	sessionExpiry  = 300 // seconds that the broker keeps a device's session after a lost connection
)

// session is a device's MQTT session, which outlives its connections. The client library numbers what is sent, keeps it
// and sends it again in order; this notes which event is which, and when it is acknowledged.
type session struct {
	*state.State
	r       *run
	acked   chan struct{} // signalled
	current *sample       // is being published

	mu      sync.Mutex
	pending []*sample // not yet acknowledged, in the order of sending
}

func newSession(r *run) *session {
	return &session{State: state.NewInMemory(), r: r, acked: make(chan struct{}, 1)}
}

// waiting returns how many events are not yet acknowledged.
func (s *session) waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.pending)
}

// AddToSession takes the event that is being published among the pending ones.
func (s *session) AddToSession(ctx context.Context, packet pahosession.Packet, resp chan<- packets.ControlPacket) error {
	if err := s.State.AddToSession(ctx, packet, resp); err != nil {
		return err
	}
	if p, ok := packet.(*packets.Publish); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.current.packetID = p.PacketID
		s.pending = append(s.pending, s.current)
	}
	return nil
}

// PacketReceived counts acknowledgements.
func (s *session) PacketReceived(packet *packets.ControlPacket, messages chan<- *packets.Publish) error {
	if ack, ok := packet.Content.(*packets.Puback); ok {
		s.acknowledged(ack)
	}
	return s.State.PacketReceived(packet, messages)
}

func (s *session) acknowledged(ack *packets.Puback) {
	s.mu.Lock()
	i := slices.IndexFunc(s.pending, func(p *sample) bool { return p.packetID == ack.PacketID })
	if i < 0 {
		s.mu.Unlock()
		return // of an event that was sent twice
	}
	p := s.pending[i]
	s.pending = slices.Delete(s.pending, i, i+1)
	s.mu.Unlock()
	if ack.ReasonCode >= 0x80 {
		s.r.refused.Add(1)
		s.r.note(fmt.Errorf("broker refused an event: %s", ack.Reason()))
	} else {
		if ack.ReasonCode == packets.PubackNoMatchingSubscribers {
			s.r.unrouted.Add(1)
		}
		s.r.latency.add(time.Since(p.sentAt))
		s.r.acked.Add(1)
	}
	select {
	case s.acked <- struct{}{}:
	default:
	}
}

// forget empties a session that the broker does not have any more, and returns what was pending.
func (s *session) forget() []*sample {
	s.mu.Lock()
	defer s.mu.Unlock()
	forgotten := s.pending
	s.pending = nil
	return forgotten
}

// link is one connection of a device.
type link struct {
	client *paho.Client
	conn   *conn
	limit  int // events that may wait for their acknowledgement
}

// connect makes the device's connection. The library sends what is pending in the session, if the broker still has it.
func (d *device) connect(ctx context.Context) error {
	dialled, err := mqtt.Dial(ctx, d.r.url, nil, connectTimeout)
	if err != nil {
		return err
	}
	c := &conn{Conn: dialled, w: bufio.NewWriterSize(dialled, 8<<10)}
	client := paho.NewClient(paho.ClientConfig{
		Conn: c, Session: d.session, PacketTimeout: connectTimeout,
		OnClientError: func(err error) {
			if !errors.Is(err, net.ErrClosed) { // by this side
				d.r.note(fmt.Errorf("connection to MQTT broker: %w", err))
			}
		},
		OnServerDisconnect: func(p *paho.Disconnect) {
			d.r.note(fmt.Errorf("MQTT broker disconnected: %s", (&packets.Disconnect{ReasonCode: p.ReasonCode}).Reason()))
		},
	})
	pending := d.session.waiting()
	ack, err := client.Connect(ctx, d.hello())
	if err != nil && ack != nil && ack.ReasonCode >= 0x80 {
		err = fmt.Errorf("broker refused the connection: %s", (&packets.Connack{ReasonCode: ack.ReasonCode}).Reason())
	}
	if err != nil {
		return fmt.Errorf("connect to MQTT broker %s: %w", d.r.url.Host, err)
	}
	if ack.SessionPresent {
		d.r.resent.Add(uint64(pending))
	} else {
		d.again = append(d.session.forget(), d.again...)
	}
	d.link = &link{client: client, conn: c, limit: d.r.cfg.Inflight}
	if p := ack.Properties; p != nil && p.ReceiveMaximum != nil {
		d.link.limit = min(d.link.limit, int(*p.ReceiveMaximum))
	}
	return nil
}

func (d *device) hello() *paho.Connect {
	expiry, receive := uint32(sessionExpiry), uint16(1) // nothing is subscribed to
	return &paho.Connect{
		ClientID: d.clientID, KeepAlive: uint16(d.r.keepAlive / time.Second), CleanStart: d.link == nil,
		Username: d.r.cfg.Username, UsernameFlag: d.r.cfg.Username != "",
		Password: []byte(d.r.cfg.Password), PasswordFlag: d.r.cfg.Password != "",
		Properties: &paho.ConnectProperties{SessionExpiryInterval: &expiry, ReceiveMaximum: &receive},
	}
}

// publish sends an event without waiting for its acknowledgement. If that fails the event is sent again over the next
// connection, by the library if it has come into the session.
func (d *device) publish(ctx context.Context, e *sample) error {
	d.session.current = e
	_, err := d.link.client.PublishWithOptions(ctx, &paho.Publish{
		QoS: 1, Topic: d.topic, Payload: e.payload,
		Properties: &paho.PublishProperties{User: paho.UserProperties{{Key: "event_id", Value: e.id}}},
	}, paho.PublishOptions{Method: paho.PublishMethod_AsyncSend})
	if err == nil {
		return nil
	}
	if !errors.Is(err, paho.ErrNetworkErrorAfterStored) {
		d.again = append([]*sample{e}, d.again...)
	}
	return fmt.Errorf("publish: %w", err)
}

// close ends the connection, and returns when nothing more is read from it.
func (l *link) close() {
	_ = l.conn.Close() // which the client notices
	<-l.client.Done()
}

// bye ends the connection and the session with it. The broker may be gone already.
func (l *link) bye() {
	now := uint32(0)
	late := time.AfterFunc(time.Second, func() { _ = l.conn.Close() }) // it does not read
	defer late.Stop()
	_ = l.client.Disconnect(&paho.Disconnect{Properties: &paho.DisconnectProperties{SessionExpiryInterval: &now}})
}

// conn writes a packet, or many of them, with one system call. The library writes a packet in pieces, and takes the lock
// around it.
type conn struct {
	*mqtt.Conn
	w    *bufio.Writer
	hold bool
}

// Write writes to the buffer.
func (c *conn) Write(p []byte) (int, error) { return c.w.Write(p) }

// Unlock ends a packet.
func (c *conn) Unlock() {
	if !c.hold {
		_ = c.flush() // the next packet gets the same error, and the reader notices
	}
	c.Conn.Unlock()
}

func (c *conn) flush() error {
	return errors.Join(c.SetWriteDeadline(time.Now().Add(writeTimeout)), c.w.Flush())
}

// burst keeps packets until the returned function sends them.
func (c *conn) burst() (send func() error) {
	c.Lock()
	c.hold = true
	c.Conn.Unlock()
	return func() error {
		c.Lock()
		defer c.Conn.Unlock()
		c.hold = false
		if err := c.flush(); err != nil {
			return fmt.Errorf("publish: %w", err)
		}
		return nil
	}
}
