// Package mochi is the MQTT broker that is built into the dev stack, and the Watermill subscriber that reads from it.
//
// The broker calls a hook before it acknowledges what a device publishes. That hook is the subscriber: it takes the event
// out of the broker's hands, and gives it back for its PUBACK once the batch that it is in has been acked, so that a PUBACK
// means that the event is stored. A broker and a subscriber connected over the network would promise less, since mochi
// 2.7.9 acknowledges before its subscribers have the message.
package mochi

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/cornjacket/platform-services/event"
)

// Defaults of a [Config].
const (
	DefaultMaxPacket = event.MaxBody + 64<<10 // an event of the greatest size, its topic and its properties
	DefaultHandoff   = 30 * time.Second
)

// Bounds on what Close waits for.
const (
	maxDrain   = 10 * time.Second // the subscriber to acknowledge what it has
	maxGoodbye = time.Second      // clients to take their last packets
)

// sysTopicSeconds is how often the broker publishes its $SYS statistics, each time stopping the world to read them.
const sysTopicSeconds = 10

// Config configures a [Broker].
type Config struct {
	// Addr is the address to listen on, host:port; port 0 picks a free one.
	Addr string
	// Username and Password are those of clients that may do everything; none if Username is empty.
	Username, Password string
	// Users are further clients that may connect, and do what their name allows. If it is nil and Username is empty,
	// everyone may do everything.
	Users *Users
	// MaxPacket is the greatest MQTT packet that is taken, in bytes; a client that sends a greater one is
	// disconnected. Zero means DefaultMaxPacket.
	MaxPacket uint32
	// Handoff is the longest time that a publish waits for its event to become durable. After that its client is
	// disconnected, unacknowledged, and sends it again when it is back. Zero means DefaultHandoff.
	Handoff time.Duration
	// Batch is the most publishes that are handed out together; 1000 if zero.
	Batch int
	// MaxClients is the most clients that are connected at once; no limit if zero.
	MaxClients int
	// Log takes what is worth a person's attention; the broker's own chatter is at debug level. Nil means slog.Default.
	Log *slog.Logger
}

// Errors of a [Broker].
var (
	// ErrClosed says that the broker has been closed.
	ErrClosed = errors.New("MQTT broker is closed")
	// ErrSubscribed says that the broker's one subscription is taken.
	ErrSubscribed = errors.New("MQTT broker has a subscriber already")
)

// Broker is an MQTT 5.0 and 3.1.1 broker for development that keeps nothing on disk. It implements Watermill's
// message.Subscriber. Its methods may be called concurrently.
type Broker struct {
	cfg    Config
	log    *slog.Logger
	ln     *listener
	server *mqtt.Server
	passer *mqtt.Client // through which events go to the broker's own subscribers

	retained retained
	sample   sample

	mu       sync.Mutex
	sub      *subscription          // nil while nobody subscribes
	sessions map[string]*session    // by client ID
	clients  map[*mqtt.Client]*pipe // whose connection has published
	closed   bool
	done     chan struct{} // closed once Close has finished
}

// Listen starts a broker. It answers clients at once, but takes no events before [Broker.Subscribe].
func Listen(cfg Config) (*Broker, error) {
	if cfg.MaxPacket == 0 {
		cfg.MaxPacket = DefaultMaxPacket
	}
	if cfg.Handoff == 0 {
		cfg.Handoff = DefaultHandoff
	}
	if cfg.Batch == 0 {
		cfg.Batch = 1000
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Username != "" {
		cfg.Users = cfg.Users.with(cfg.Username, cfg.Password)
	}
	ln, err := net.Listen("tcp", cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("listen for MQTT on %s: %w", cfg.Addr, err)
	}
	b := &Broker{
		cfg:      cfg,
		log:      cfg.Log,
		ln:       &listener{Listener: ln, conns: make(map[*conn]struct{})},
		sessions: make(map[string]*session),
		clients:  make(map[*mqtt.Client]*pipe),
		done:     make(chan struct{}),
		retained: retained{sizes: make(map[string]int)},
		sample:   sample{said: make(map[string]time.Time), left: make(map[string]int)},
	}
	caps := mqtt.NewDefaultServerCapabilities()
	caps.MaximumPacketSize = cfg.MaxPacket
	caps.ReceiveMaximum = maxPipelined
	caps.MaximumSessionExpiryInterval = maxSessionExpiry
	if cfg.MaxClients > 0 {
		caps.MaximumClients = int64(cfg.MaxClients)
	}
	caps.Compatibilities.NoInheritedPropertiesOnAck = true // else a PUBACK repeats the properties of the PUBLISH
	b.server = mqtt.New(&mqtt.Options{
		Capabilities:           caps,
		Logger:                 slog.New(quiet{cfg.Log.Handler()}),
		SysTopicResendInterval: sysTopicSeconds,
	})
	b.passer = b.server.NewClient(nil, "local", "events", true)
	if err := b.start(); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return b, nil
}

func (b *Broker) start() error {
	if err := b.server.AddHook(&hook{b: b}, nil); err != nil {
		return fmt.Errorf("add hook to MQTT broker: %w", err)
	}
	if err := b.server.AddListener(listeners.NewNet("mqtt", b.ln)); err != nil {
		return fmt.Errorf("add listener to MQTT broker: %w", err)
	}
	if err := b.server.Serve(); err != nil {
		return fmt.Errorf("serve MQTT: %w", err)
	}
	return nil
}

// Addr returns the address that the broker listens on, host:port.
func (b *Broker) Addr() string { return b.ln.Addr().String() }

// Close stops taking clients and events, waits until what is in flight has been acknowledged, at most 10 s or
// [Config.Handoff] if that is less, disconnects the clients and closes the subscription's channel. What was not acknowledged until
// then stays unacknowledged to its client. Further calls wait for the first one.
func (b *Broker) Close() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		<-b.done
		return nil
	}
	b.closed = true
	sub := b.sub
	b.mu.Unlock()
	defer close(b.done)

	err := b.ln.Close()
	if sub != nil {
		sub.end()
		<-sub.ended
	}
	b.sayGoodbye()
	if err = errors.Join(err, b.server.Close()); err != nil {
		return fmt.Errorf("close MQTT broker: %w", err)
	}
	return nil
}

// sayGoodbye lets the clients have their last acknowledgements, tells them that the broker goes, and closes their
// connections: mochi's Close would wait for ever for one that does not read, or that has never sent a CONNECT.
func (b *Broker) sayGoodbye() {
	said := make(chan struct{})
	go func() {
		defer close(said)
		for _, p := range b.pipes() {
			p.awaitEmpty()
		}
		var clients sync.WaitGroup
		for _, cl := range b.server.Clients.GetAll() {
			clients.Go(func() { _ = b.server.DisconnectClient(cl, packets.ErrServerShuttingDown) }) // returns the code
		}
		clients.Wait()
	}()
	select {
	case <-said:
	case <-time.After(maxGoodbye):
	}
	b.ln.closeConns()
}

func (b *Broker) pipes() []*pipe {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Collect(maps.Values(b.clients))
}
