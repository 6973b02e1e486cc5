package doctor

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/internal/tlsconf"
	"github.com/cornjacket/platform-services/pubsub/mqtt"
	"github.com/cornjacket/platform-services/routers"
)

// wantedExpiry is the session expiry that ingestion asks for.
const wantedExpiry = 30 * 24 * time.Hour

// checkMQTT connects as a client of its own, whose session ends with the connection: the session of the platform, and
// what waits in it, is left alone.
func checkMQTT(ctx context.Context, s config.Doctor) []Finding {
	a := about("mqtt")
	u, err := url.Parse(s.MQTTURL)
	if err != nil {
		return []Finding{a.fail("connect", "correct MQTT_URL", "it can't be read")}
	}
	if u.Scheme == "ws" || u.Scheme == "wss" {
		return []Finding{a.warn("connect", "see the log of ingestion at its start for what the broker granted", "%s: WebSocket is not checked", u.Host)}
	}
	trusted, err := tlsconf.Client(s.MQTTTLSCAFile)
	if err != nil {
		return []Finding{a.fail("connect", "correct MQTT_TLS_CA_FILE", "%s", reason(ctx, err))}
	}
	conn, err := mqtt.Dial(ctx, u, trusted, s.Timeout)
	if err != nil {
		return []Finding{a.fail("connect", "start the MQTT broker, or correct MQTT_URL", "%s: %s", u.Host, reason(ctx, err))}
	}
	defer func() { _ = conn.Close() }() // nothing was published
	client := paho.NewClient(paho.ClientConfig{Conn: conn, PacketTimeout: s.Timeout, EnableManualAcknowledgment: true})
	id, began := "cornjacket-doctor-"+rand.Text()[:12], time.Now()
	ack, err := client.Connect(ctx, hello(id, s.MQTTUsername, s.MQTTPassword))
	if err != nil {
		return []Finding{a.fail("connect", "see MQTT_USERNAME, MQTT_PASSWORD, and the log of the broker", "%s: %s", u.Host, refusal(ctx, ack, err))}
	}
	if ack.SessionPresent {
		// The ID is new, so the session is that of the user: ingestion's. It is left as it is, and nothing is acknowledged.
		_ = client.Disconnect(&paho.Disconnect{})
		return []Finding{a.fail("client ID", "let the platform choose its client IDs where it connects (Mosquitto: no use_username_as_clientid on that listener)",
			"%s gives the user a client ID of its own: whoever connects as this user interrupts ingestion, as this check did", u.Host)}
	}
	defer func() {
		none := uint32(0)
		_ = client.Disconnect(&paho.Disconnect{Properties: &paho.DisconnectProperties{SessionExpiryInterval: &none}}) // the session is to end either way
	}()
	found := []Finding{a.ok("connect", "%s, %s", u.Host, time.Since(began).Round(100*time.Microsecond))}
	if s.EmbeddedMQTT || embedded(ctx, s) {
		found = append(found, a.ok("embedded broker", "ingestion takes from it what it acknowledges, without a session or a subscription"))
	} else {
		found = append(found, granted(ctx, client, ack.Properties)...)
	}
	return append(found, takeover(ctx, s, client, id, func() (net.Conn, error) { return mqtt.Dial(ctx, u, trusted, s.Timeout) }))
}

// hello is a CONNECT that asks for what ingestion does. It does not begin a session anew: were it another's, that would
// throw away what waits in it.
func hello(id, user, password string) *paho.Connect {
	expiry := uint32(wantedExpiry / time.Second)
	return &paho.Connect{
		ClientID: id, KeepAlive: 30,
		Username: user, UsernameFlag: user != "", Password: []byte(password), PasswordFlag: password != "",
		Properties: &paho.ConnectProperties{SessionExpiryInterval: &expiry},
	}
}

// takeover tells whether a device, or whoever comes without a user, can take over the session of client.
func takeover(ctx context.Context, s config.Doctor, client *paho.Client, id string, dial func() (net.Conn, error)) Finding {
	a := about("mqtt")
	const check = "sessions"
	who, notTried := "a device", ""
	if s.DeviceUsername == "" {
		who, notTried = "everyone", "; with --device-username it is tried with a device"
	}
	conn, err := dial()
	if err != nil {
		return a.warn(check, "try again", "not tried: %s", reason(ctx, err))
	}
	defer func() { _ = conn.Close() }() // nothing was published
	intruder := paho.NewClient(paho.ClientConfig{Conn: conn, PacketTimeout: s.Timeout, EnableManualAcknowledgment: true})
	if _, err := intruder.Connect(ctx, hello(id, s.DeviceUsername, s.DevicePassword)); err != nil {
		return a.ok(check, "%s can't connect under a client ID of the platform%s", who, notTried)
	}
	defer func() { _ = intruder.Disconnect(&paho.Disconnect{}) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // a client that is not connected any more would wait for the answer
		select {
		case <-client.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	if _, err = client.Unsubscribe(ctx, &paho.Unsubscribe{Topics: []string{"cornjacket/doctor"}}); err == nil {
		return a.ok(check, "%s gets another client ID than that of the platform%s", who, notTried)
	}
	return a.warn(check, "let the broker bind client IDs to users, see docs/mqtt.md",
		"%s can connect under a client ID of the platform, and throw away what waits in its session", who)
}

// embedded reports whether the broker is inside ingestion, as `platform dev` has it; only ingestion knows.
func embedded(ctx context.Context, s config.Doctor) bool {
	at, err := ask(s, routers.Ingestion)
	if err != nil {
		return false
	}
	h, _, err := at.Health(ctx)
	return err == nil && h.Checks["mqtt"]["broker"] == "embedded"
}

func refusal(ctx context.Context, ack *paho.Connack, err error) string {
	if ack != nil && ack.ReasonCode >= 0x80 {
		return fmt.Sprintf("refused with reason 0x%02X", ack.ReasonCode)
	}
	return reason(ctx, err)
}

// granted returns what the broker allows that durable, shared ingestion needs.
func granted(ctx context.Context, client *paho.Client, p *paho.ConnackProperties) []Finding {
	a := about("mqtt")
	if p == nil {
		return []Finding{a.warn("session", "use a broker with MQTT 5", "the broker says nothing of what it grants")}
	}
	var found []Finding
	expiry := wantedExpiry
	if p.SessionExpiryInterval != nil {
		expiry = time.Duration(*p.SessionExpiryInterval) * time.Second
	}
	switch {
	case expiry == 0:
		found = append(found, a.fail("session expiry", "let the broker keep sessions (Mosquitto: persistence true, no persistent_client_expiration; EMQX: durable sessions)",
			"none: what devices publish while ingestion is away is lost"))
	case expiry < wantedExpiry:
		found = append(found, a.warn("session expiry", "let the broker keep sessions for longer", "%s: what devices publish is kept no longer while ingestion is away", expiry))
	default:
		found = append(found, a.ok("session expiry", "%s", expiry))
	}
	receive := uint16(math.MaxUint16)
	if p.ReceiveMaximum != nil {
		receive = *p.ReceiveMaximum
	}
	found = append(found, a.ok("receive maximum", "%d", receive))
	if p.MaximumQoS != nil && *p.MaximumQoS < 1 {
		found = append(found, a.fail("quality of service", "allow QoS 1", "the broker grants QoS 0 only: events are lost whenever a connection is"))
	}
	found = append(found, largestPacket(p))
	return append(found, sharedSubscription(ctx, client, p))
}

// largestPacket tells whether the broker takes what ingestion does not: it would acknowledge and discard that.
func largestPacket(p *paho.ConnackProperties) Finding {
	a := about("mqtt")
	const check = "maximum packet"
	advice := fmt.Sprintf("set it to at most %d (Mosquitto: max_packet_size; EMQX: mqtt.max_packet_size): what is larger than ingestion takes, the broker acknowledges and discards",
		mqtt.BrokersMaxPacket)
	switch {
	case p.MaximumPacketSize == nil:
		return a.warn(check, advice, "the broker takes packets of any size")
	case *p.MaximumPacketSize > mqtt.BrokersMaxPacket:
		return a.warn(check, advice, "%d bytes", *p.MaximumPacketSize)
	}
	return a.ok(check, "%d bytes", *p.MaximumPacketSize)
}

func sharedSubscription(ctx context.Context, client *paho.Client, p *paho.ConnackProperties) Finding {
	a := about("mqtt")
	const check = "shared subscriptions"
	advice := "use a broker that has them: several instances of ingestion share the devices by them"
	if !p.SharedSubAvailable {
		return a.fail(check, advice, "not available")
	}
	ack, err := client.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{
		{Topic: "$share/cornjacket-doctor/cornjacket/doctor", QoS: 1},
	}})
	switch {
	case ack != nil && len(ack.Reasons) == 1 && ack.Reasons[0] == 1:
		return a.ok(check, "granted with QoS 1")
	case ack != nil && len(ack.Reasons) == 1 && ack.Reasons[0] == 0x87: // not authorized
		return a.ok(check, "available")
	case ack != nil && len(ack.Reasons) == 1:
		return a.fail(check, advice, "refused with reason 0x%02X", ack.Reasons[0])
	case err == nil:
		err = errors.New("the broker did not say what it granted")
	}
	return a.fail(check, advice, "%s", reason(ctx, err))
}
