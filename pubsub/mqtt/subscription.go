package mqtt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	"github.com/eclipse/paho.golang/paho/session/state"

	"github.com/cornjacket/platform-services/pubsub/batch"
)

const (
	minBackoff = 100 * time.Millisecond
	stableFor  = 10 * time.Second // a connection that lasted this long starts the backoff anew
	sayAgain   = time.Minute      // how often the same failure is logged again
)

var errClosing = errors.New("subscriber is closing")

// subscription is one session on the broker, over any number of connections. What comes in on them is handed out in
// batches, one at a time, so that what the broker repeats on a new connection never meets what is still in flight.
type subscription struct {
	cfg      *Config
	url      *url.URL
	clientID string
	filters  []string
	log      *slog.Logger
	inbox    *inbox
	sender   *batch.Sender
	pinger   pinger
	manager  *autopaho.ConnectionManager
	intake   context.Context // ends when nothing more is to be handed out
	drain    context.CancelFunc
	ended    chan struct{} // closed when the last batch has been dealt with
	inFlight []arrival     // the batch that is handed out; owned by run
	lost     []arrival     // the last batch of the connection before; owned by run
	stopOnce sync.Once
	stopped  chan struct{}
	release  func() // gives the client ID free
	dropped  *atomic.Uint64

	mu        sync.Mutex
	link      *link
	up        bool
	stopping  bool
	lastErr   error
	failures  int // attempts since a connection was stable
	lastSaid  string
	lastSaidT time.Time
}

// start connects and keeps connected until stop. ctx gives the messages' contexts their values.
func (s *subscription) start(ctx context.Context) error {
	s.intake, s.drain = context.WithCancel(context.WithoutCancel(ctx))
	s.sender = batch.NewSender(s.cfg.CloseTimeout)
	s.sender.MaxPause = s.cfg.MaxPause
	s.sender.Again = s.stillOurs
	s.inbox = &inbox{
		limit: s.cfg.Buffer, qos0Limit: s.cfg.QoS0Buffer, max: s.cfg.Batch, window: s.cfg.Window, pause: s.pinger.pause,
		arrived: make(chan struct{}, 1), room: make(chan struct{}, 1),
	}
	cfg := autopaho.ClientConfig{
		ServerUrls:            []*url.URL{s.url},
		TlsCfg:                s.cfg.TLS,
		KeepAlive:             uint16(keepAlive / time.Second),
		SessionExpiryInterval: s.cfg.expirySeconds(),
		ConnectTimeout:        s.cfg.ConnectTimeout,
		ReconnectBackoff:      func(int) time.Duration { return s.backoff() },
		ConnectUsername:       s.cfg.Username,
		ConnectPassword:       []byte(s.cfg.Password),
		OnConnectionUp:        func(_ *autopaho.ConnectionManager, ca *paho.Connack) { s.connected(ca) },
		OnConnectionDown:      func() bool { return !s.isStopping() },
		OnConnectError:        s.connectFailed,
		ConnectPacketBuilder: func(cp *paho.Connect, _ *url.URL) (*paho.Connect, error) {
			window := uint16(s.cfg.Window)
			cp.Properties.ReceiveMaximum = &window
			largest := uint32(maxPacket)
			cp.Properties.MaximumPacketSize = &largest
			return cp, nil
		},
		DisconnectPacketBuilder: func() *paho.Disconnect { return nil }, // the link has said it
		ClientConfig: paho.ClientConfig{
			ClientID:          s.clientID,
			PacketTimeout:     s.cfg.ConnectTimeout,
			PingHandler:       &s.pinger,
			Session:           &connState{State: state.NewInMemory(), up: s.linkUp, down: s.linkDown},
			OnPublishReceived: []func(paho.PublishReceived) (bool, error){s.received},
		},
	}
	if !isWebsocket(s.url) {
		cfg.AttemptConnection = func(ctx context.Context, _ autopaho.ClientConfig, u *url.URL) (net.Conn, error) {
			return Dial(ctx, u, s.cfg.TLS, s.cfg.ConnectTimeout)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock() // callbacks wait until the manager is set
	manager, err := autopaho.NewConnection(context.Background(), cfg)
	if err != nil {
		s.drain()
		return fmt.Errorf("start MQTT connection: %w", err)
	}
	s.manager = manager
	go s.run()
	return nil
}

// run hands out what comes in, and acknowledges it when it is done.
func (s *subscription) run() {
	defer close(s.ended)
	var outcome batch.Outcome
	for {
		taken := s.inbox.take(s.intake, outcome.Gather)
		if len(taken) == 0 {
			return
		}
		if s.inFlight != nil && s.inFlight[0].link != taken[0].link {
			s.lost = s.inFlight
		}
		s.inFlight = taken
		records := make([]batch.Record, len(taken))
		for i := range taken {
			taken[i].recall(s.lost)
			records[i] = taken[i].record
		}
		outcome = s.sender.Send(s.intake, records)
		patience := deadAfter
		if s.intake.Err() != nil {
			patience = time.Second
		}
		taken[0].link.acknowledge(taken[:outcome.Done], patience)
	}
}

// stillOurs returns what is to be handed out again of records that were refused: nothing once their connection is lost,
// since the broker repeats them.
func (s *subscription) stillOurs(rest []batch.Record) []batch.Record {
	if s.inFlight[0].link.ctx.Err() == nil {
		return rest
	}
	s.dropQoS0(countQoS0(s.inFlight[len(s.inFlight)-len(rest):]))
	return nil
}

// linkUp is told of a connection before the first packet is read from it.
func (s *subscription) linkUp(conn io.Writer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return errClosing
	}
	s.link = newLink(conn)
	return nil
}

// linkDown is told that the connection is lost, at least once and before the next one is made.
func (s *subscription) linkDown(dp *packets.Disconnect) {
	s.mu.Lock()
	l := s.link
	if l == nil {
		s.mu.Unlock()
		return
	}
	s.link = nil
	l.cancel(s.cause(l, dp))
	err := context.Cause(l.ctx)
	wasUp := s.up
	s.up, s.lastErr = false, err
	if wasUp && time.Since(l.started) >= stableFor {
		s.failures = 0
	}
	stopping := s.stopping
	s.mu.Unlock()
	s.dropQoS0(s.inbox.clear())
	if stopping {
		return
	}
	s.say("MQTT connection lost, connecting again", err)
	if wasUp && s.cfg.OnDown != nil {
		s.cfg.OnDown(err)
	}
}

// cause says why a connection was lost that this side did not give up.
func (s *subscription) cause(l *link, dp *packets.Disconnect) error {
	if dp != nil {
		if dp.ReasonCode == packets.DisconnectSessionTakenOver {
			return fmt.Errorf("another client connected with the client ID %q: each instance needs one of its own", s.clientID)
		}
		return fmt.Errorf("broker disconnected: %s", dp.Reason())
	}
	if s.pinger.silence() >= deadAfter {
		return fmt.Errorf("broker has been silent for %s", s.pinger.silence().Round(time.Second))
	}
	c, ok := l.conn.(*Conn)
	switch {
	case !ok || c.cause() == nil:
		return errors.New("connection lost")
	case !errors.Is(c.cause(), io.EOF):
		return fmt.Errorf("read from broker: %w", c.cause())
	case time.Since(l.started) < stableFor: // Mosquitto 2.0.11 does not say so when it happens
		return fmt.Errorf("broker closed the connection soon after it was made: does another client use the client ID %q? (%w)",
			s.clientID, c.cause())
	}
	return fmt.Errorf("broker closed the connection: %w", c.cause())
}

// received takes a message from the client, which asks for no topic aliases and gives each packet a body of its own.
func (s *subscription) received(pr paho.PublishReceived) (bool, error) {
	s.mu.Lock()
	l := s.link
	s.mu.Unlock()
	if (l == nil || !s.inbox.put(s.intake, newArrival(l, pr.Packet))) && pr.Packet.QoS == 0 {
		s.dropQoS0(1) // the broker repeats the others
	}
	return true, nil
}

// connected runs each time the client is connected. The client needs its goroutine back.
func (s *subscription) connected(ca *paho.Connack) {
	s.mu.Lock()
	l, manager := s.link, s.manager
	s.mu.Unlock()
	if l == nil {
		return // lost again already
	}
	go func() {
		if err := s.subscribe(l, manager); err != nil {
			l.fail(err) // does nothing if the cause was that the connection is lost
			return
		}
		s.granted(l, ca)
	}()
}

// subscribe asks for the filters, also when the broker has kept the session: it changes nothing there, and mends a
// session whose subscriptions were removed or refused. The retain flag is asked for to tell what clears a retained message. It is an error if one is not granted QoS 1: less would break the
// promise to lose nothing.
func (s *subscription) subscribe(l *link, manager *autopaho.ConnectionManager) error {
	ctx, cancel := context.WithTimeout(l.ctx, s.cfg.ConnectTimeout)
	defer cancel()
	packet := &paho.Subscribe{}
	for _, f := range s.filters {
		packet.Subscriptions = append(packet.Subscriptions, paho.SubscribeOptions{Topic: f, QoS: 1, RetainAsPublished: true})
	}
	ack, err := manager.Subscribe(ctx, packet)
	if ack != nil {
		for i, code := range ack.Reasons {
			if code != 1 && i < len(s.filters) {
				return fmt.Errorf("subscribe to %s: broker granted %#02x instead of QoS 1", s.filters[i], code)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	return nil
}

// granted notes and logs what the broker has granted.
func (s *subscription) granted(l *link, ca *paho.Connack) {
	p := ca.Properties
	if p == nil {
		p = &paho.ConnackProperties{SharedSubAvailable: true}
	}
	asked := s.cfg.expirySeconds()
	g := Granted{
		ClientID: s.clientID, SessionPresent: ca.SessionPresent, SharedSubscriptions: p.SharedSubAvailable, Filters: s.filters,
		SessionExpiry:     time.Duration(valueOr(p.SessionExpiryInterval, asked)) * time.Second,
		ReceiveMaximum:    valueOr(p.ReceiveMaximum, math.MaxUint16),
		MaximumPacketSize: valueOr(p.MaximumPacketSize, 0),
		ServerKeepAlive:   time.Duration(valueOr(p.ServerKeepAlive, 0)) * time.Second,
	}
	s.mu.Lock()
	if s.link != l {
		s.mu.Unlock()
		return
	}
	s.up, s.lastErr, s.lastSaid = true, nil, ""
	s.mu.Unlock()
	s.log.Info("MQTT subscribed", "filters", strings.Join(g.Filters, " "), "session_present", g.SessionPresent,
		"session_expiry", g.SessionExpiry, "receive_maximum", g.ReceiveMaximum, "window", s.cfg.Window,
		"shared_subscriptions", g.SharedSubscriptions, "maximum_packet_size", g.MaximumPacketSize,
		"server_keep_alive", g.ServerKeepAlive, "own_maximum_packet_size", maxPacket)
	if g.MaximumPacketSize == 0 || g.MaximumPacketSize > BrokersMaxPacket {
		s.log.Warn("MQTT broker takes packets from devices that it can't hand on: it acknowledges and discards what is larger than ingestion takes",
			"broker_takes", g.MaximumPacketSize, "should_take_at_most", BrokersMaxPacket, "ingestion_takes", maxPacket)
	}
	if want := time.Duration(asked) * time.Second; g.SessionExpiry < want {
		s.log.Warn("MQTT broker keeps the session for less time than asked: what arrives after that is lost while the platform is down",
			"asked", want, "granted", g.SessionExpiry)
	}
	if s.cfg.OnUp != nil {
		s.cfg.OnUp(g)
	}
}

func valueOr[T any](v *T, d T) T {
	if v == nil {
		return d
	}
	return *v
}

func (s *subscription) connectFailed(err error) {
	s.mu.Lock()
	s.lastErr = err
	stopping := s.stopping
	s.mu.Unlock()
	if !stopping {
		s.say("MQTT connection failed, trying again", err)
	}
}

// say logs a failure, but the same one only now and then: attempts go on for as long as the broker is away.
func (s *subscription) say(what string, err error) {
	text := what + err.Error()
	s.mu.Lock()
	again := text == s.lastSaid && time.Since(s.lastSaidT) < sayAgain
	if !again {
		s.lastSaid, s.lastSaidT = text, time.Now()
	}
	s.mu.Unlock()
	if !again {
		s.log.Warn(what, "error", err)
	}
}

// backoff returns how long to wait before the next attempt: nothing at first, then doubling, with jitter so that
// instances do not come back in step.
func (s *subscription) backoff() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.failures
	s.failures++
	if n == 0 {
		return 0
	}
	d := min(minBackoff<<min(n-1, 20), s.cfg.MaxBackoff)
	return d/2 + rand.N(d/2+1)
}

func (s *subscription) dropQoS0(n uint64) {
	if n == 0 {
		return
	}
	if total := s.dropped.Add(n); total == n || total%10_000 == 0 {
		s.log.Warn("MQTT messages with QoS 0 dropped: they came faster than they were handled, or the connection was lost",
			"total", total)
	}
}

func (s *subscription) isStopping() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopping
}

func (s *subscription) healthy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.up && !s.stopping && s.pinger.silence() < silentFor
}

// stop hands out nothing more, waits at most CloseTimeout for what is in flight, and leaves the session to the broker.
func (s *subscription) stop() {
	s.stopOnce.Do(func() {
		defer close(s.stopped)
		s.mu.Lock()
		s.stopping = true
		l := s.link
		s.mu.Unlock()
		if l != nil { // the last acknowledgements may be held up by a broker that does not read
			defer time.AfterFunc(s.cfg.CloseTimeout+time.Second, func() { l.fail(errClosing) }).Stop()
		}
		s.drain()
		<-s.ended
		if l != nil {
			// Waiting for the broker to close the connection, while the client goes on reading, makes sure that it has
			// read the PUBACKs: closing with unread data would reset the connection.
			l.bye()
			select {
			case <-l.ctx.Done():
			case <-time.After(time.Second):
			}
		}
		quit, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if err := s.manager.Disconnect(quit); err != nil {
			s.log.Warn("MQTT connection did not end in time", "error", err)
		}
		if l != nil {
			l.cancel(errClosing) // in case the client could not
		}
		s.release() // before the channel says so: who subscribes again then must get this session
		close(s.sender.Out())
	})
	<-s.stopped
}
