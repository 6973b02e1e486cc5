package mochi_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/mochi"
	"github.com/cornjacket/platform-services/pubsub/window"
)

const (
	soon  = 10 * time.Second       // how long to wait for what must happen
	never = 150 * time.Millisecond // how long to watch for what must not
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func listen(t *testing.T, cfg mochi.Config) *mochi.Broker {
	t.Helper()
	cfg.Addr = "127.0.0.1:0"
	cfg.Log = slog.New(slog.DiscardHandler)
	b, err := mochi.Listen(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

func subscribe(t *testing.T, b *mochi.Broker) <-chan *message.Message {
	t.Helper()
	out, err := b.Subscribe(t.Context(), "events")
	require.NoError(t, err)
	return out
}

func receive(t *testing.T, out <-chan *message.Message) *message.Message {
	t.Helper()
	select {
	case msg, ok := <-out:
		require.True(t, ok, "channel is closed")
		return msg
	case <-time.After(soon):
		require.FailNow(t, "no message came")
		return nil
	}
}

func TestAcknowledgesOnlyWhatIsAcked(t *testing.T) {
	t.Parallel()
	b := listen(t, mochi.Config{})
	out := subscribe(t, b)
	c := dial(t, b, "device-1")
	c.publish(1, "devices/device-1/events/sensor.reading", `{"value":1}`, func(p *packets.Publish) {
		p.Properties = &packets.Properties{User: []packets.User{
			{Key: "event_id", Value: "id"}, {Key: "event_id", Value: "other"}, {Key: "event_time", Value: "now"},
			{Key: "correlation_id", Value: "corr"}, {Key: "traceparent", Value: "trace"}, {Key: "mqtt_topic", Value: "forged"},
		}}
	})
	msg := receive(t, out)
	require.Equal(t, `{"value":1}`, string(msg.Payload))
	require.Equal(t, message.Metadata{
		event.MetaMQTTTopic: "devices/device-1/events/sensor.reading", event.MetaEventID: "id",
		event.MetaEventTime: "now", event.MetaCorrelationID: "corr", event.MetaTraceparent: "trace",
	}, msg.Metadata)
	src, ok := window.SourceFrom(msg.Context())
	require.True(t, ok)
	require.Equal(t, window.Source{
		Topic: "devices/device-1/events/sensor.reading", Partition: -1, Offset: -1, Key: "device-1",
	}, src)

	c.requireNothing()
	msg.Ack()
	c.requirePuback(1)
}

func TestNackRedeliversInOrder(t *testing.T) {
	t.Parallel()
	b := listen(t, mochi.Config{})
	out := subscribe(t, b)
	c := dial(t, b, "device-1")
	c.publish(1, "events", `1`)
	c.publish(2, "events", `2`)
	for range 3 {
		msg := receive(t, out)
		require.Equal(t, `1`, string(msg.Payload))
		require.Equal(t, "events", msg.Metadata.Get(event.MetaMQTTTopic))
		_, ok := window.SourceFrom(msg.Context())
		require.True(t, ok)
		msg.Nack()
	}
	c.requireNothing()
	receive(t, out).Ack()
	c.requirePuback(1)
	msg := receive(t, out)
	require.Equal(t, `2`, string(msg.Payload))
	msg.Ack()
	c.requirePuback(2)
}

func TestNobodySubscribedIsNotAcknowledged(t *testing.T) {
	t.Parallel()
	b := listen(t, mochi.Config{})
	c := dial(t, b, "device-1")
	c.publish(1, "events", `1`)
	c.requireDisconnect(0x8B)

	out := subscribe(t, b)
	c = dial(t, b, "device-1")
	c.publish(1, "events", `1`, duplicate)
	receive(t, out).Ack()
	c.requirePuback(1)
}

func TestOnlyEventTopicsAreHandedOut(t *testing.T) {
	t.Parallel()
	b := listen(t, mochi.Config{})
	c := dial(t, b, "device-1") // nobody subscribes: what is no event must be acknowledged all the same
	topics := []string{
		"devices/device-1/commands/restart", "devices/device-1", "events/x", "other/device-1/events/x.y", "devices/events",
	}
	for i, topic := range topics {
		c.publish(uint16(i+1), topic, `{}`)
		c.requirePuback(uint16(i + 1))
	}
	out := subscribe(t, b)
	for i, topic := range []string{
		"events", "devices/a/events/x.y", "devices/a/events", "devices/a/events/x/y/z", "devices//events/",
	} {
		c.publish(uint16(i+1), topic, `{}`)
		msg := receive(t, out)
		require.Equal(t, topic, msg.Metadata.Get(event.MetaMQTTTopic))
		msg.Ack()
		c.requirePuback(uint16(i + 1))
	}
}

func TestHandoffEndsAndTheRepeatIsTheSameEvent(t *testing.T) {
	t.Parallel()
	b := listen(t, mochi.Config{Handoff: 300 * time.Millisecond})
	out := subscribe(t, b)
	c := dial(t, b, "device-1")
	c.publish(7, "events", `1`)
	msg := receive(t, out)
	c.requireDisconnect(0x89)

	c = dial(t, b, "device-1")
	c.publish(7, "events", `1`, duplicate)
	c.publish(8, "events", `2`)
	msg.Ack() // the first one, which has been on its way all the time
	c.requirePuback(7)
	next := receive(t, out)
	require.Equal(t, `2`, string(next.Payload), "the repeat must not become a second message")
	next.Ack()
	c.requirePuback(8)
}

func TestSamePacketAgainWithoutDupIsANewEvent(t *testing.T) {
	t.Parallel()
	b := listen(t, mochi.Config{})
	out := subscribe(t, b)
	c := dial(t, b, "device-1")
	for range 3 {
		c.publish(1, "events", `1`)
		receive(t, out).Ack()
		c.requirePuback(1)
	}
}

func TestQoS0And2(t *testing.T) {
	t.Parallel()
	b := listen(t, mochi.Config{})
	out := subscribe(t, b)
	c := dial(t, b, "device-1")
	c.publish(0, "events", `0`, func(p *packets.Publish) { p.QoS = 0 })
	receive(t, out).Ack()
	c.publish(1, "events", `2`, func(p *packets.Publish) { p.QoS = 2 })
	msg := receive(t, out)
	c.requireNothing()
	msg.Ack()
	require.Equal(t, packets.PUBREC, c.read().Type)
	rel := packets.NewControlPacket(packets.PUBREL)
	rel.Content.(*packets.Pubrel).PacketID = 1
	c.write(rel)
	require.Equal(t, packets.PUBCOMP, c.read().Type)
}

func TestSubscriptionsAreGrantedQoS0(t *testing.T) {
	t.Parallel()
	b := listen(t, mochi.Config{})
	out := subscribe(t, b)
	c := dial(t, b, "watcher")
	sub := packets.NewControlPacket(packets.SUBSCRIBE)
	p := sub.Content.(*packets.Subscribe)
	p.PacketID, p.Subscriptions = 1, []packets.SubOptions{{Topic: "devices/#", QoS: 2}}
	c.write(sub)
	ack := c.read()
	require.Equal(t, packets.SUBACK, ack.Type)
	require.Equal(t, []byte{0}, ack.Content.(*packets.Suback).Reasons)

	d := dial(t, b, "device-1")
	d.publish(1, "devices/device-1/events/x.y", `{}`)
	receive(t, out).Ack()
	d.requirePuback(1)
	seen := c.read()
	require.Equal(t, packets.PUBLISH, seen.Type, "events go on to other subscribers")
	require.Zero(t, seen.Content.(*packets.Publish).QoS)
}

func TestLastWillIsAnEvent(t *testing.T) {
	t.Parallel()
	b := listen(t, mochi.Config{})
	out := subscribe(t, b)
	nc, err := net.Dial("tcp", b.Addr())
	require.NoError(t, err)
	connect := packets.NewControlPacket(packets.CONNECT)
	p := connect.Content.(*packets.Connect)
	p.ClientID, p.KeepAlive, p.CleanStart = "device-1", 60, true
	p.WillFlag, p.WillTopic, p.WillMessage = true, "devices/device-1/events/device.gone", []byte(`{}`)
	p.WillProperties = &packets.Properties{}
	_, err = connect.WriteTo(nc)
	require.NoError(t, err)
	_, err = packets.ReadPacket(nc)
	require.NoError(t, err)
	require.NoError(t, nc.Close())
	msg := receive(t, out)
	require.Equal(t, "devices/device-1/events/device.gone", msg.Metadata.Get(event.MetaMQTTTopic))
	msg.Ack()
}

func TestListenOnTakenPort(t *testing.T) {
	t.Parallel()
	b := listen(t, mochi.Config{})
	_, err := mochi.Listen(mochi.Config{Addr: b.Addr()})
	require.ErrorContains(t, err, b.Addr())
}

func TestMQTT311(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("mosquitto_pub"); err != nil {
		t.Skip("mosquitto_pub is not installed (apt-get install mosquitto-clients): MQTT 3.1.1 is not tested")
	}
	b := listen(t, mochi.Config{})
	out := subscribe(t, b)
	host, port, err := net.SplitHostPort(b.Addr())
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	publish := func() *exec.Cmd {
		return exec.CommandContext(ctx, "mosquitto_pub", "-V", "311", "-h", host, "-p", port, "-q", "1",
			"-t", "devices/old/events/sensor.reading", "-m", `{"value":1}`)
	}
	cmd := publish()
	require.NoError(t, cmd.Start())
	msg := receive(t, out)
	require.Equal(t, `{"value":1}`, string(msg.Payload))
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		require.FailNow(t, "mosquitto_pub must wait for its PUBACK", "ended: %v", err)
	case <-time.After(never):
	}
	msg.Ack()
	require.NoError(t, <-ended)
}

func TestManyClients(t *testing.T) {
	t.Parallel()
	const clients, each = 50, 200
	b := listen(t, mochi.Config{})
	out := subscribe(t, b)
	got := make(chan map[string][]string, 1)
	go func() {
		seen := make(map[string][]string)
		for range clients * each {
			msg := <-out
			topic := msg.Metadata.Get(event.MetaMQTTTopic)
			seen[topic] = append(seen[topic], string(msg.Payload))
			msg.Ack()
		}
		got <- seen
	}()
	var all sync.WaitGroup
	want := make(map[string][]string)
	errs := make(chan error, clients)
	for i := range clients {
		topic := fmt.Sprintf("devices/device-%d/events/sensor.reading", i)
		for n := range each {
			want[topic] = append(want[topic], fmt.Sprintf(`{"value":%d}`, n))
		}
		payloads := want[topic]
		all.Go(func() { errs <- publishAll(t.Context(), b.Addr(), topic, payloads) })
	}
	all.Wait()
	for range clients {
		require.NoError(t, <-errs)
	}
	select {
	case seen := <-got:
		require.Equal(t, want, seen, "each once, in the order of its client")
	case <-time.After(soon):
		require.FailNow(t, "all was acknowledged and not all delivered")
	}
}

// publishAll publishes with a real MQTT 5 client, waiting for each acknowledgement.
func publishAll(ctx context.Context, addr, topic string, payloads []string) error {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	c := paho.NewClient(paho.ClientConfig{Conn: nc})
	if _, err := c.Connect(ctx, &paho.Connect{ClientID: topic, KeepAlive: 30, CleanStart: true}); err != nil {
		return err
	}
	for _, p := range payloads {
		if _, err := c.Publish(ctx, &paho.Publish{Topic: topic, QoS: 1, Payload: []byte(p)}); err != nil {
			return err
		}
	}
	return c.Disconnect(&paho.Disconnect{})
}
