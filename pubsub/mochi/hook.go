package mochi

import (
	"bytes"
	"context"
	"log/slog"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// hook is how the broker is told what its clients do.
type hook struct {
	mqtt.HookBase
	b *Broker
}

// ID returns the name of the hook.
func (h *hook) ID() string { return "events" }

// Provides reports which methods the hook has.
func (h *hook) Provides(method byte) bool {
	return bytes.IndexByte([]byte{
		mqtt.OnConnectAuthenticate, mqtt.OnACLCheck, mqtt.OnPacketEncode, mqtt.OnSubscribe,
		mqtt.OnPublish, mqtt.OnRetainedExpired, mqtt.OnWill, mqtt.OnWillSent, mqtt.OnDisconnect, mqtt.OnClientExpired,
	}, method) >= 0
}

// OnPacketEncode mends what mochi sends: a CONNACK says the greatest packet that is taken, which is enforced anyway,
// and a PUBACK says success where mochi writes the granted QoS, no reason code of a PUBACK (MQTT 5.0 §3.4.2.1).
func (h *hook) OnPacketEncode(_ *mqtt.Client, pk packets.Packet) packets.Packet {
	switch pk.FixedHeader.Type {
	case packets.Connack:
		pk.Properties.MaximumPacketSize = h.b.cfg.MaxPacket
	case packets.Puback:
		if pk.ReasonCode <= packets.CodeGrantedQos2.Code {
			pk.ReasonCode = packets.CodeSuccess.Code
		}
	}
	return pk
}

// OnSubscribe grants QoS 0 at most, and says so in the SUBACK. With a QoS 1 subscriber mochi 2.7.9 deadlocks as soon
// as messages flow: Inflight.NextImmediate takes a read lock that it holds already, which waits for ever once a writer
// has queued up in between.
func (h *hook) OnSubscribe(_ *mqtt.Client, pk packets.Packet) packets.Packet {
	for i := range pk.Filters {
		pk.Filters[i].Qos = 0
	}
	return pk
}

// OnPublish is called before a publish is acknowledged, on the one goroutine that reads from its client. It takes events
// out of mochi's hands, and whatever else comes from the client behind them, since acknowledgements keep the order of
// publishes; see [Broker.finish]. Waiting here makes a client slow down. Publishes with QoS 2 stay mochi's, which has a
// state of theirs: their client waits until they are stored.
func (h *hook) OnPublish(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if cl.Net.Inline { // it is back
		pk.Origin = pk.Connect.ClientIdentifier
		return pk, nil
	}
	h.retain(cl, &pk)
	d := settledDelivery(true)
	if isEvent(pk.TopicName) {
		d = h.b.take(cl, pk)
	}
	if pk.FixedHeader.Qos < 2 && h.b.pipe(cl).push(pk, d) {
		return pk, packets.ErrRejectPacket
	}
	if code, why := d.await(h.b.cfg.Handoff); why != "" {
		h.b.refuse(cl, pk, code, why)
		return pk, packets.ErrRejectPacket
	}
	return pk, nil
}

// OnWillSent is called with the last will of a client that vanished, which mochi does not show to OnPublish. Nobody
// waits for its acknowledgement.
func (h *hook) OnWillSent(cl *mqtt.Client, pk packets.Packet) {
	if !isEvent(pk.TopicName) {
		return
	}
	pk.FixedHeader.Qos = 0 // it has no packet ID under which it could come again
	if d := h.b.take(cl, pk); d.isSettled() && !d.stored {
		h.b.log.Warn("last will was not stored: no subscriber", "client", cl.ID, "topic", pk.TopicName)
	}
}

// OnDisconnect forgets a connection, and a session that ends with it.
func (h *hook) OnDisconnect(cl *mqtt.Client, _ error, expire bool) {
	h.b.disconnected(cl)
	if expire && !cl.IsTakenOver() {
		h.b.forget(cl.ID)
	}
}

// OnClientExpired forgets a session that was kept and has run out.
func (h *hook) OnClientExpired(cl *mqtt.Client) { h.b.forget(cl.ID) }

// quiet passes errors on and turns the rest to debug: mochi warns of each client that goes without a goodbye.
type quiet struct{ slog.Handler }

func (q quiet) Enabled(ctx context.Context, level slog.Level) bool {
	return q.Handler.Enabled(ctx, quieten(level))
}

func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	r.Level = quieten(r.Level)
	return q.Handler.Handle(ctx, r)
}

func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(attrs)} }

func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.Handler.WithGroup(name)} }

func quieten(level slog.Level) slog.Level {
	if level < slog.LevelError {
		return slog.LevelDebug
	}
	return level
}
