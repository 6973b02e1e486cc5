package simulate

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/cornjacket/platform-services/pubsub/mqtt"
)

const (
	keepAlive      = 30 * time.Second
	pingAfter      = 10 * time.Second
	connectTimeout = 10 * time.Second
	sessionExpiry  = 300 // seconds that the broker keeps a device's session after a lost connection
	dupFlag        = 1 << 3
	noSubscribers  = packets.PubackNoMatchingSubscribers
)

// link is one connection of a device. The packets are read and written here, without a client library around them:
// a fleet in one process needs few goroutines and system calls an event, and sends again in the order of sending.
type link struct {
	conn     *mqtt.Conn
	w        *bufio.Writer
	limit    int // events that may wait for their acknowledgement
	lastSent time.Time
	acked    chan struct{} // signalled
	lost     chan struct{} // closed when the reader has ended
	closing  sync.Once
}

// connect makes the device's connection and sends what is pending.
func (d *device) connect(ctx context.Context) error {
	conn, err := mqtt.Dial(ctx, d.r.url, nil, connectTimeout)
	if err != nil {
		return err
	}
	ack, err := d.handshake(conn)
	if err != nil {
		return errors.Join(fmt.Errorf("connect to MQTT broker %s: %w", d.r.url.Host, err), conn.Close())
	}
	l := &link{
		conn: conn, w: bufio.NewWriterSize(conn, 8<<10), limit: d.r.cfg.Inflight, lastSent: time.Now(),
		acked: make(chan struct{}, 1), lost: make(chan struct{}),
	}
	if p := ack.Properties; p != nil && p.ReceiveMaximum != nil {
		l.limit = min(l.limit, int(*p.ReceiveMaximum))
	}
	go d.read(l)
	d.link = l
	if err := d.resend(l, ack.SessionPresent); err != nil {
		l.close()
		<-l.lost
		return err
	}
	return nil
}

func (d *device) handshake(conn *mqtt.Conn) (*packets.Connack, error) {
	expiry := uint32(sessionExpiry)
	connect := &packets.Connect{
		ProtocolName: "MQTT", ProtocolVersion: 5, ClientID: d.clientID, KeepAlive: uint16(keepAlive / time.Second),
		Username: d.r.cfg.Username, UsernameFlag: d.r.cfg.Username != "",
		Password: []byte(d.r.cfg.Password), PasswordFlag: d.r.cfg.Password != "",
		CleanStart: d.link == nil, Properties: &packets.Properties{SessionExpiryInterval: &expiry},
	}
	if err := conn.SetDeadline(time.Now().Add(connectTimeout)); err != nil {
		return nil, fmt.Errorf("set deadline: %w", err)
	}
	if _, err := connect.WriteTo(conn); err != nil {
		return nil, fmt.Errorf("send CONNECT: %w", err)
	}
	packet, err := packets.ReadPacket(conn)
	if err != nil {
		return nil, fmt.Errorf("read CONNACK: %w", err)
	}
	ack, ok := packet.Content.(*packets.Connack)
	if !ok {
		return nil, fmt.Errorf("broker answered CONNECT with %s", packet.PacketType())
	}
	if ack.ReasonCode >= 0x80 {
		return nil, fmt.Errorf("broker refused the connection: %s", ack.Reason())
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("clear deadline: %w", err)
	}
	return ack, nil
}

// read takes acknowledgements until the connection ends.
func (d *device) read(l *link) {
	defer close(l.lost)
	defer l.close()
	for {
		// The broker answers within pingAfter plus a round trip, whether there are events or only pings.
		if err := l.conn.SetReadDeadline(time.Now().Add(keepAlive)); err != nil {
			return // closed by this side
		}
		packet, err := packets.ReadPacket(l.conn)
		if err != nil {
			d.r.note(fmt.Errorf("read from MQTT broker: %w", err))
			return
		}
		switch p := packet.Content.(type) {
		case *packets.Puback:
			d.acknowledged(p.PacketID, p.ReasonCode)
			select {
			case l.acked <- struct{}{}:
			default:
			}
		case *packets.Disconnect:
			d.r.note(fmt.Errorf("MQTT broker disconnected: %s", p.Reason()))
			return
		}
	}
}

func (l *link) flush() error {
	l.lastSent = time.Now()
	if err := l.conn.SetWriteDeadline(l.lastSent.Add(keepAlive)); err != nil {
		return err
	}
	return l.w.Flush()
}

func (l *link) pingIfIdle() error {
	if time.Since(l.lastSent) < pingAfter {
		return nil
	}
	if _, err := l.w.Write([]byte{packets.PINGREQ << 4, 0}); err != nil {
		return fmt.Errorf("send PINGREQ: %w", err)
	}
	if err := l.flush(); err != nil {
		return fmt.Errorf("send PINGREQ: %w", err)
	}
	return nil
}

func (l *link) close() { l.closing.Do(func() { _ = l.conn.Close() }) }

// bye ends the connection and the session with it. The broker may be gone already.
func (l *link) bye() {
	now := uint32(0)
	d := &packets.Disconnect{Properties: &packets.Properties{SessionExpiryInterval: &now}}
	_ = l.conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = d.WriteTo(l.conn)
	l.close()
}

func encodePublish(topic string, id uint16, eventID string, payload []byte) ([]byte, error) {
	p := &packets.Publish{
		Topic: topic, PacketID: id, QoS: 1, Payload: payload,
		Properties: &packets.Properties{User: []packets.User{{Key: "event_id", Value: eventID}}},
	}
	var b bytes.Buffer
	if _, err := p.WriteTo(&b); err != nil {
		return nil, fmt.Errorf("encode PUBLISH: %w", err)
	}
	return b.Bytes(), nil
}
