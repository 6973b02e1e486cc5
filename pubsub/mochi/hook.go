package mochi

import (
	"bytes"
	"context"
	"log/slog"
	"time"

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

// Provides tells which methods the hook has.
func (h *hook) Provides(method byte) bool {
	return bytes.IndexByte([]byte{
		mqtt.OnConnectAuthenticate, mqtt.OnACLCheck, mqtt.OnPacketEncode, mqtt.OnSubscribe,
		mqtt.OnPublish, mqtt.OnPacketProcessed, mqtt.OnWillSent, mqtt.OnDisconnect, mqtt.OnClientExpired,
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

// OnPublish is called before a publish is acknowledged, on the one goroutine that reads from its client: waiting here
// keeps a client's events in order and makes it slow down. It returns without an error only when the event is
// durable, which lets mochi acknowledge. Else the client is disconnected and mochi told to drop the packet: a negative
// acknowledgement would tell an MQTT 5 client never to send it again, and 3.1.1 does not know any.
func (h *hook) OnPublish(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if !isEvent(pk.TopicName) {
		return pk, nil
	}
	d, ok := h.b.take(cl, pk, true)
	if !ok {
		return pk, h.refuse(cl, pk, packets.ErrServerShuttingDown, "no subscriber")
	}
	patience := time.NewTimer(h.b.cfg.Handoff)
	defer patience.Stop()
	select {
	case <-d.done:
	case <-patience.C:
		return pk, h.refuse(cl, pk, packets.ErrServerBusy, "not stored in time")
	}
	if d.err != nil {
		return pk, h.refuse(cl, pk, packets.ErrServerShuttingDown, "stopping")
	}
	return pk, nil
}

// OnPacketProcessed is called after mochi has acknowledged a publish, or has been told not to.
func (h *hook) OnPacketProcessed(cl *mqtt.Client, pk packets.Packet, _ error) {
	if pk.FixedHeader.Type == packets.Publish {
		h.b.acknowledged(cl)
	}
}

// OnWillSent is called with the last will of a client that vanished, which mochi does not show to OnPublish. Nobody
// waits for its acknowledgement.
func (h *hook) OnWillSent(cl *mqtt.Client, pk packets.Packet) {
	if !isEvent(pk.TopicName) {
		return
	}
	pk.FixedHeader.Qos = 0 // it has no packet ID under which it could come again
	if _, ok := h.b.take(cl, pk, false); !ok {
		h.b.log.Warn("last will was not stored: no subscriber", "client", cl.ID, "topic", pk.TopicName)
	}
}

// OnDisconnect forgets a session that ends with its connection.
func (h *hook) OnDisconnect(cl *mqtt.Client, _ error, expire bool) {
	if expire && !cl.IsTakenOver() {
		h.b.forget(cl.ID)
	}
}

// OnClientExpired forgets a session that was kept and has run out.
func (h *hook) OnClientExpired(cl *mqtt.Client) { h.b.forget(cl.ID) }

// refuse drops a client without acknowledging its publish and returns the error that keeps mochi from doing so.
func (h *hook) refuse(cl *mqtt.Client, pk packets.Packet, code packets.Code, why string) error {
	h.b.log.Debug("publish not acknowledged, client disconnected", "reason", why, "client", cl.ID, "topic", pk.TopicName)
	if cl.Properties.ProtocolVersion == 5 {
		_ = h.b.server.DisconnectClient(cl, code) // returns the code
	} else {
		cl.Stop(code) // 3.1.1 has no DISCONNECT from the server
	}
	return packets.ErrRejectPacket
}

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
