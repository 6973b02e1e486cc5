// Package mqtt reads events from an MQTT 5 broker as a Watermill subscriber.
//
// The broker keeps a persistent session for the subscriber and holds in it what the subscriber has not acknowledged.
// Messages are handed out in batches, in the order in which they came. A PUBACK is sent only once the batch has been
// acked by its handler, so that a crash at any moment repeats messages and never loses one. Delivery is at least once.
package mqtt

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"math"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/cornjacket/platform-services/event"
)

// AllTopics is the topic name for [Subscriber.Subscribe] that stands for all of [Config.Topics].
const AllTopics = "mqtt"

// Config configures a [Subscriber].
type Config struct {
	// URL of the broker: mqtt://, tcp://, mqtts://, ssl://, tls://, ws:// or wss://. Required.
	URL string
	// Username and Password are sent if Username is not empty.
	Username, Password string
	// ClientID names the session on the broker. It must stay the same over restarts, or else what the broker holds
	// is left behind, and it must differ between instances. "cornjacket-" and the group if empty.
	ClientID string
	// SessionExpiry is how long the broker keeps the session while the subscriber is away; 30 days if zero. Precise
	// to the second; beyond 136 years it never ends.
	SessionExpiry time.Duration
	// Group is the name of the shared subscription; "ingestion" if empty.
	Group string
	// Topics are the topic filters that [AllTopics] stands for; devices/+/events/# and events if empty.
	Topics []string
	// Window is the most messages that may be unacknowledged at once, the MQTT receive maximum: 1–65535, 2000 if zero.
	// With twice as many as a batch has, one gathers while another is handled.
	Window int
	// Batch is the most messages that are handed out together; 1000 if zero.
	Batch int
	// Buffer is about how many bytes of messages may wait in memory to be handed out, and how many are handed out
	// together; 4 MiB if zero. Beyond that nothing is read from the broker until half of it is free again.
	Buffer int
	// QoS0Buffer is about how many bytes of messages with QoS 0 may wait in memory for a handler; 16 MiB if zero. The
	// window holds the broker back for QoS 1 only. QoS 0 promises at most once, and what comes on top is dropped and
	// counted.
	QoS0Buffer int
	// ConnectTimeout bounds one attempt to connect, and the wait for a SUBACK; 5 s if zero.
	ConnectTimeout time.Duration
	// MaxBackoff bounds the wait between attempts, which starts at 100 ms and doubles; 3 s if zero.
	MaxBackoff time.Duration
	// CloseTimeout bounds how long a clean stop waits for messages in flight; 10 s if zero.
	CloseTimeout time.Duration
	// MaxPause bounds the pause before a batch that was refused is handed out again; 2 s if zero.
	MaxPause time.Duration
	// TLS is used with mqtts://, ssl://, tls:// and wss://; the system's defaults if nil.
	TLS *tls.Config
	// OnUp is told each time the broker has granted the subscriptions. It must not block.
	OnUp func(Granted)
	// OnDown is told the cause each time a connection that was up is lost. It must not block.
	OnDown func(error)
	// Log takes what is not returned; slog.Default if nil.
	Log *slog.Logger
}

// Granted is what the broker granted on connecting.
type Granted struct {
	ClientID            string
	SessionPresent      bool          // the broker had kept the session
	SessionExpiry       time.Duration // how long it will keep it
	ReceiveMaximum      uint16        // of the broker: how many of our publishes it takes at once
	SharedSubscriptions bool
	MaximumPacketSize   uint32        // bytes that the broker takes; 0 means no limit
	ServerKeepAlive     time.Duration // 0 means that it accepted ours
	Filters             []string      // what was subscribed, each with QoS 1
}

// keepAlive is what the broker is told; the pinger asks for signs of life more often.
const keepAlive = 30 * time.Second

// Bounds on a packet, in bytes. The client holds several copies of one, so that its size must be bounded; what is larger
// the broker discards, and nobody is told (MQTT 5.0 §3.1.2.11.4). That is why the broker's own bound, for what devices
// publish, must stand below ours: it is the one that the device is told of.
const (
	maxPacket        = 4 << 20
	BrokersMaxPacket = 2 << 20 // twice the largest event
)

func (c Config) withDefaults() (Config, *url.URL, error) {
	u, err := url.Parse(c.URL)
	if err != nil {
		return c, nil, fmt.Errorf("read MQTT URL: %w", err)
	}
	if !slices.Contains([]string{"mqtt", "tcp", "mqtts", "ssl", "tls", "ws", "wss"}, strings.ToLower(u.Scheme)) || u.Host == "" {
		return c, nil, fmt.Errorf("MQTT URL must be mqtt://host:port, or mqtts, tcp, ssl, tls, ws or wss, is %q", u.Redacted())
	}
	setDefault(&c.Window, 2000)
	setDefault(&c.Batch, 1000)
	if c.Window < 1 || c.Window > math.MaxUint16 {
		return c, nil, fmt.Errorf("MQTT window must be 1–65535, is %d", c.Window)
	}
	if c.Batch < 0 {
		return c, nil, fmt.Errorf("MQTT batch must be positive, is %d", c.Batch)
	}
	if c.SessionExpiry < 0 {
		return c, nil, fmt.Errorf("MQTT session expiry must not be negative, is %s", c.SessionExpiry)
	}
	if c.Username == "" && u.User != nil {
		c.Username = u.User.Username()
		c.Password, _ = u.User.Password()
	}
	setDefault(&c.Group, "ingestion")
	setDefault(&c.ClientID, "cornjacket-"+c.Group)
	setDefault(&c.SessionExpiry, 30*24*time.Hour)
	setDefault(&c.Buffer, 4<<20)
	setDefault(&c.QoS0Buffer, 16<<20)
	setDefault(&c.ConnectTimeout, 5*time.Second)
	setDefault(&c.MaxBackoff, 3*time.Second)
	setDefault(&c.CloseTimeout, 10*time.Second)
	setDefault(&c.Log, slog.Default())
	if len(c.Topics) == 0 {
		c.Topics = []string{"devices/+/events/#", event.MQTTEvents}
	}
	return c, u, nil
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// expirySeconds is the session expiry as it travels; the greatest value means never.
func (c *Config) expirySeconds() uint32 {
	return uint32(min(int64(math.Ceil(c.SessionExpiry.Seconds())), math.MaxUint32))
}
