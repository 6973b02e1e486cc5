package mochi_test

import (
	"net"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/pubsub/mochi"
)

// client is an MQTT client that does only what a test says.
type client struct {
	t    *testing.T
	conn net.Conn
	in   chan *packets.ControlPacket // closed when the broker hangs up
}

// dial connects with MQTT 5 and a session that outlives the connection.
func dial(t *testing.T, b *mochi.Broker, id string) *client {
	t.Helper()
	nc, err := net.Dial("tcp", b.Addr())
	require.NoError(t, err)
	c := &client{t: t, conn: nc, in: make(chan *packets.ControlPacket, 100)}
	t.Cleanup(func() { _ = nc.Close() })
	expiry := uint32(3600)
	connect := packets.NewControlPacket(packets.CONNECT)
	p := connect.Content.(*packets.Connect)
	p.ClientID, p.KeepAlive, p.Properties.SessionExpiryInterval = id, 60, &expiry
	c.write(connect)
	go func() {
		defer close(c.in)
		for {
			in, err := packets.ReadPacket(nc)
			if err != nil {
				return
			}
			c.in <- in
		}
	}()
	require.Equal(t, packets.CONNACK, c.read().Type)
	return c
}

func (c *client) write(p *packets.ControlPacket) {
	c.t.Helper()
	_, err := p.WriteTo(c.conn)
	require.NoError(c.t, err)
}

// read returns the next packet, nil when the broker has hung up.
func (c *client) read() *packets.ControlPacket {
	c.t.Helper()
	select {
	case p := <-c.in:
		return p
	case <-time.After(soon):
		require.FailNow(c.t, "the broker sent nothing")
		return nil
	}
}

func (c *client) publish(id uint16, topic, payload string, change ...func(*packets.Publish)) {
	c.t.Helper()
	out := packets.NewControlPacket(packets.PUBLISH)
	p := out.Content.(*packets.Publish)
	p.PacketID, p.Topic, p.Payload, p.QoS = id, topic, []byte(payload), 1
	for _, f := range change {
		f(p)
	}
	c.write(out)
}

// awaitRead waits until the broker has read all that was sent.
func (c *client) awaitRead() {
	c.t.Helper()
	c.write(packets.NewControlPacket(packets.PINGREQ))
	require.Equal(c.t, packets.PINGRESP, c.read().Type)
}

// subscribe asks for QoS 2 and returns what is granted.
func (c *client) subscribe(filter string) []byte {
	c.t.Helper()
	sub := packets.NewControlPacket(packets.SUBSCRIBE)
	p := sub.Content.(*packets.Subscribe)
	p.PacketID, p.Subscriptions = 1, []packets.SubOptions{{Topic: filter, QoS: 2}}
	c.write(sub)
	ack := c.read()
	require.Equal(c.t, packets.SUBACK, ack.Type)
	return ack.Content.(*packets.Suback).Reasons
}

func duplicate(p *packets.Publish) { p.Duplicate = true }

func (c *client) requirePuback(id uint16) {
	c.t.Helper()
	p := c.read()
	require.NotNil(c.t, p, "the broker hung up")
	require.Equal(c.t, packets.PUBACK, p.Type, p)
	require.Equal(c.t, id, p.PacketID())
	require.Zero(c.t, p.Content.(*packets.Puback).ReasonCode)
}

func (c *client) requireDisconnect(code byte) {
	c.t.Helper()
	p := c.read()
	require.NotNil(c.t, p, "the broker hung up without a word")
	require.Equal(c.t, packets.DISCONNECT, p.Type, p)
	require.Equal(c.t, code, p.Content.(*packets.Disconnect).ReasonCode)
	require.Nil(c.t, c.read(), "the connection must be closed")
}

func (c *client) requireNothing() {
	c.t.Helper()
	select {
	case p := <-c.in:
		require.FailNow(c.t, "the broker must be silent", "sent %v", p)
	case <-time.After(never):
	}
}
