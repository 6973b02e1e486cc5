package mochi_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/batch"
	"github.com/cornjacket/platform-services/pubsub/mochi"
)

const (
	soon  = 10 * time.Second       // how long to wait for what must happen
	never = 150 * time.Millisecond // how long to watch for what must not
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func listen(t *testing.T, cfg mochi.Config) *mochi.Broker {
	t.Helper()
	cfg.Addr = "127.0.0.1:0"
	if cfg.Batch == 0 {
		cfg.Batch = 1 // so that a message is one publish
	}
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

// record returns what is first in a batch.
func record(msg *message.Message) batch.Record { return batch.From(msg).Rest()[0] }

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
		event.MetaEventID: "id", event.MetaEventTime: "now", event.MetaCorrelationID: "corr", event.MetaTraceparent: "trace",
	}, msg.Metadata)
	r := record(msg)
	require.Equal(t, uuid.Version(7), uuid.MustParse(r.ID).Version())
	require.WithinDuration(t, time.Now(), r.At, soon)
	require.Equal(t, "devices/device-1/events/sensor.reading", r.Topic)
	require.Equal(t, "device-1", r.Key)
	require.Equal(t, []any{int32(-1), int64(-1)}, []any{r.Partition, r.Offset})
	require.WithinDuration(t, time.Now(), b.Oldest(), soon)

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
	first := receive(t, out)
	before := record(first)
	require.Equal(t, `1`, string(before.Value))
	first.Nack()
	for range 2 {
		msg := receive(t, out)
		require.Equal(t, before, record(msg))
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

// The retain flag of a message without a body tells what clears a retained message from a mistake.
func TestClearingARetainedMessageIsMarked(t *testing.T) {
	t.Parallel()
	b := listen(t, mochi.Config{})
	out := subscribe(t, b)
	c := dial(t, b, "d")
	retained := func(p *packets.Publish) { p.Retain = true }
	for i, c2 := range []struct {
		body   string
		change []func(*packets.Publish)
		marked string
	}{{"{}", []func(*packets.Publish){retained}, ""}, {"", []func(*packets.Publish){retained}, "true"}, {"", nil, ""}} {
		id := uint16(i + 1)
		c.publish(id, "devices/d/events/a.b", c2.body, c2.change...)
		msg := receive(t, out)
		r := record(msg)
		require.Equal(t, c2.marked, r.Header(event.MetaRetain), i)
		msg.Ack()
		c.requirePuback(id)
	}
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
		require.Equal(t, topic, record(msg).Topic)
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
	require.Equal(t, []byte{0}, c.subscribe("devices/#"))

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
	require.Equal(t, "devices/device-1/events/device.gone", record(msg).Topic)
	msg.Ack()
}

// A client with many publishes in flight has them all in one batch, and its acknowledgements in their order.
func TestOneClientFillsABatch(t *testing.T) {
	t.Parallel()
	const n = 20
	b := listen(t, mochi.Config{Batch: n})
	out := subscribe(t, b)
	watcher := dial(t, b, "watcher")
	watcher.subscribe("#")
	c := dial(t, b, "device-1")
	c.publish(100, "events", `first`)
	first := receive(t, out)
	for i := range uint16(n) {
		c.publish(i+1, "events", fmt.Sprint(i))
	}
	c.publish(101, "other", `not an event`) // behind the others
	c.awaitRead()
	first.Ack()
	c.requirePuback(100)
	msg := receive(t, out)
	rest := batch.From(msg).Rest()
	require.Len(t, rest, n)
	for i, r := range rest {
		require.Equal(t, fmt.Sprint(i), string(r.Value))
	}
	c.requireNothing()
	batch.From(msg).Done(3)
	msg.Nack()
	msg = receive(t, out)
	require.Equal(t, rest[3:], batch.From(msg).Rest())
	msg.Ack()
	for i := range uint16(n) {
		c.requirePuback(i + 1)
	}
	c.requirePuback(101)
	for _, want := range append([]string{"first"}, numbers(n)...) {
		require.Equal(t, want, string(watcher.read().Content.(*packets.Publish).Payload), "others get them in order")
	}
	require.Equal(t, `not an event`, string(watcher.read().Content.(*packets.Publish).Payload))
}

func numbers(n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprint(i))
	}
	return all
}

// What a client repeats after its connection is lost is the same event, be it still on its way, or stored.
func TestRepeatsOfAPipelineAreTheSameEvents(t *testing.T) {
	t.Parallel()
	b := listen(t, mochi.Config{Batch: 3})
	out := subscribe(t, b)
	c := dial(t, b, "device-1")
	c.publish(100, "events", `first`)
	first := receive(t, out)
	for i := range uint16(5) {
		c.publish(i+1, "events", fmt.Sprint(i))
	}
	c.awaitRead()
	require.NoError(t, c.conn.Close())
	first.Ack()
	stored := receive(t, out)
	require.Len(t, batch.From(stored).Rest(), 3)
	stored.Ack()
	onItsWay := receive(t, out)

	c = dial(t, b, "device-1")
	c.publish(100, "events", `first`, duplicate)
	for i := range uint16(5) {
		c.publish(i+1, "events", fmt.Sprint(i), duplicate)
	}
	c.publish(1, "events", `another with an identifier that is free again`)
	for _, id := range []uint16{100, 1, 2, 3} {
		c.requirePuback(id)
	}
	c.requireNothing()
	onItsWay.Ack()
	c.requirePuback(4)
	c.requirePuback(5)
	msg := receive(t, out)
	require.Len(t, batch.From(msg).Rest(), 1)
	require.Equal(t, `another with an identifier that is free again`, string(record(msg).Value))
	msg.Ack()
	c.requirePuback(1)
}

// A client of which too much is not acknowledged is not read any further, and loses nothing by it.
func TestAPipelineIsBounded(t *testing.T) {
	t.Parallel()
	const n, size = 40, 64 << 10
	b := listen(t, mochi.Config{Batch: n})
	out := subscribe(t, b)
	c := dial(t, b, "device-1")
	written := make(chan struct{})
	go func() {
		defer close(written)
		for i := range uint16(n) {
			c.publish(i+1, "events", strings.Repeat("x", size))
		}
	}()
	total := 0
	for total < n {
		msg := receive(t, out)
		got := len(batch.From(msg).Rest())
		require.LessOrEqual(t, got, 256<<10/size+1, "the last one waits for room")
		total += got
		msg.Ack()
	}
	<-written
	for i := range uint16(n) {
		c.requirePuback(i + 1)
	}
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
	b := listen(t, mochi.Config{Batch: 100})
	out := subscribe(t, b)
	got := make(chan map[string][]string, 1)
	go func() {
		seen := make(map[string][]string)
		for n := 0; n < clients*each; {
			msg := <-out
			for _, r := range batch.From(msg).Rest() {
				seen[r.Topic] = append(seen[r.Topic], string(r.Value))
				n++
			}
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
