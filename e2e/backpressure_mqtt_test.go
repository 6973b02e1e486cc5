package e2e

import (
	"bytes"
	"context"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/stretchr/testify/require"
)

// flood offers n readings of an aggregate over some connections, all of them at once, and counts those acknowledged.
func flood(t *testing.T, addr, aggregate string, connections, n int) (acked *atomic.Int64, done *sync.WaitGroup) {
	t.Helper()
	acked, done = &atomic.Int64{}, &sync.WaitGroup{}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	t.Cleanup(func() { cancel(); done.Wait() })
	for range connections {
		d := connect(t, addr)
		for i := range n / connections {
			done.Go(func() {
				if err := d.offer(ctx, "devices/"+aggregate+"/events/sensor.reading", payloadOf(i)); err == nil {
					acked.Add(1)
				} else if ctx.Err() == nil {
					t.Error(err)
				}
			})
		}
	}
	return acked, done
}

// The outbox is slow and devices have many messages in flight: none is acknowledged before it is stored, and what can't
// be stored yet stays with the devices.
func TestSlowOutboxHoldsBackAcknowledgements(t *testing.T) {
	t.Parallel()
	const messages = 2000
	s := startParts(t)
	s.mqtt = "127.0.0.1:0"
	p := s.run(t, "--embedded-mqtt", "--batch-size", "20")
	bounded := watchMemory(t, p)
	db := pool(t, s.ingestionDB)
	release := brake(t, db, "outbox", 300*time.Millisecond)
	aggregate := unique("device")
	acked, done := flood(t, p.mqtt, aggregate, 10, messages)
	for goal := int64(20); goal <= 200; goal += 20 {
		require.Eventually(t, func() bool { return acked.Load() >= goal }, wait, tick, "%d are acknowledged", goal)
		told := int(acked.Load())
		require.LessOrEqual(t, told, stored(t, db, aggregate), "acknowledged means stored")
	}
	require.Less(t, int(acked.Load()), messages, "slow it was")
	bounded()
	release()
	done.Wait()
	require.EqualValues(t, messages, acked.Load())
	require.Equal(t, messages, stored(t, db, aggregate))
	p.arrives(t)
	p.stop(t)
}

// With a broker between, the devices' acknowledgements are the broker's. What it hands to the platform without having
// been told that it is stored is bounded by the receive maximum, which is the window. Mosquitto 2.0.11 keeps to it only
// until the first acknowledgement: with each it then sends a whole window more.
func TestSlowOutboxHoldsBackTheBroker(t *testing.T) {
	t.Parallel()
	const messages, window = 1000, 50
	s := startParts(t)
	tap := newTap(t, s.mqtt)
	direct := s.mqtt
	s.mqtt = tap.addr
	p := s.run(t, "--batch-size", "20", "--window", strconv.Itoa(window))
	bounded := watchMemory(t, p)
	db := pool(t, s.ingestionDB)
	release := brake(t, db, "outbox", 300*time.Millisecond)
	aggregate := unique("device")
	acked, done := flood(t, direct, aggregate, 5, messages)
	done.Wait()
	require.EqualValues(t, messages, acked.Load(), "the broker keeps what it has acknowledged")
	for goal := int64(20); goal <= 100; goal += 20 {
		require.Eventually(t, func() bool { return tap.acked.Load() >= goal }, wait, tick, "%d are acknowledged to the broker", goal)
		told := int(tap.acked.Load())
		require.LessOrEqual(t, told, stored(t, db, aggregate), "acknowledged means stored")
	}
	require.Equal(t, int64(window), tap.granted.Load(), "the receive maximum")
	require.LessOrEqual(t, tap.first.Load(), int64(window), "in flight at the platform before its first acknowledgement")
	bounded()
	release()
	require.Eventually(t, func() bool { return stored(t, db, aggregate) == messages }, wait, 4*tick, "all of it arrives")
	t.Logf("at most %d in flight at the platform, %d before its first acknowledgement", tap.most.Load(), tap.first.Load())
	s.mqtt, p.mqtt = direct, direct
	p.arrives(t)
	p.stop(t)
}

// tap stands between the platform and its broker and counts what the broker has sent and the platform not acknowledged.
type tap struct {
	addr                                  string
	inFlight, most, first, acked, granted atomic.Int64
}

func newTap(t *testing.T, broker string) *tap {
	t.Helper()
	door, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	x := &tap{addr: door.Addr().String()}
	var running sync.WaitGroup
	t.Cleanup(func() { _ = door.Close(); running.Wait() })
	running.Go(func() {
		for {
			platform, err := door.Accept()
			if err != nil {
				return // the test has ended
			}
			server, err := net.Dial("tcp", broker)
			if err != nil {
				_ = platform.Close()
				continue
			}
			running.Go(func() { pass(platform, server, x.fromBroker) })
			running.Go(func() { pass(server, platform, x.fromPlatform) })
		}
	})
	return x
}

// pass carries packets from one end to the other until either is gone.
func pass(to io.WriteCloser, from io.ReadCloser, saw func(*packets.ControlPacket)) {
	defer func() { _ = to.Close() }()
	defer func() { _ = from.Close() }()
	var raw bytes.Buffer // as it came, since a packet that is written anew may differ
	for {
		raw.Reset()
		packet, err := packets.ReadPacket(io.TeeReader(from, &raw))
		if err != nil {
			return
		}
		saw(packet)
		if _, err := to.Write(raw.Bytes()); err != nil {
			return
		}
	}
}

func (x *tap) fromBroker(p *packets.ControlPacket) {
	if m, ok := p.Content.(*packets.Publish); ok && m.QoS > 0 {
		if n := x.inFlight.Add(1); n > x.most.Load() {
			x.most.Store(n) // by one goroutine
		}
	}
}

func (x *tap) fromPlatform(p *packets.ControlPacket) {
	if c, ok := p.Content.(*packets.Connect); ok && c.Properties != nil && c.Properties.ReceiveMaximum != nil {
		x.granted.Store(int64(*c.Properties.ReceiveMaximum))
	}
	if _, ok := p.Content.(*packets.Puback); ok {
		x.first.CompareAndSwap(0, x.most.Load())
		x.inFlight.Add(-1)
		x.acked.Add(1)
	}
}
