// Package simulate plays a fleet of devices that publish readings over MQTT, and checks that each is acknowledged.
package simulate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
)

// Config configures a [Run].
type Config struct {
	URL                string  // of the broker: mqtt://, tcp://, mqtts://, ssl:// or tls://
	Username, Password string  // sent if Username is not empty
	Devices            int     // how many devices, each with a connection of its own; 1 if zero
	Rate               float64 // events per second over all devices; 0 means as fast as the broker acknowledges
	// Duration is how long to publish; 0 means until Count is reached or the context ends.
	Duration time.Duration
	Count    int    // events over all devices after which to stop; 0 means no limit
	Prefix   string // of the device names, which go on with 001, 002 …; "device-" if empty
	// Inflight is how many events of one device may wait for their acknowledgement; 16 if zero. The broker's receive
	// maximum is kept if it is less.
	Inflight int
	// DrainTimeout bounds the wait for the last acknowledgements; 10 s if zero.
	DrainTimeout time.Duration
	Out          io.Writer // takes progress and summary; nothing is written if nil
	Terminal     bool      // progress is one line that is overwritten each second; else a new line every 5 s
	JSON         bool      // no progress, and the summary as one JSON object
}

// Summary is what became of the events.
type Summary struct {
	Devices int    `json:"devices"`
	Sent    uint64 `json:"sent"`    // events handed to the network, each counted once
	Acked   uint64 `json:"acked"`   // acknowledged by the broker
	Refused uint64 `json:"refused"` // acknowledged with a reason code of 0x80 or more
	Failed  uint64 `json:"failed"`  // not acknowledged at the end, or refused
	Resent  uint64 `json:"resent"`  // repetitions after a lost connection
	// Unrouted events were acknowledged, but the broker said that nobody subscribes to them.
	Unrouted   uint64        `json:"unrouted"`
	Reconnects uint64        `json:"reconnects"`
	Duration   time.Duration `json:"duration_ns"`
	Rate       float64       `json:"rate_per_second"` // acknowledged events per second
	P50        time.Duration `json:"p50_ns"`          // from the first sending to the acknowledgement
	P99        time.Duration `json:"p99_ns"`
	Max        time.Duration `json:"max_ns"`
}

// ErrNotAcknowledged says that the broker did not acknowledge every event.
var ErrNotAcknowledged = errors.New("not all events were acknowledged")

// Run publishes until cfg.Duration has passed, cfg.Count events are sent or ctx ends, waits for the acknowledgements
// that are missing, and writes a summary. The summary is valid also with an error, which is about cfg, the first
// connection, or wraps [ErrNotAcknowledged].
func Run(ctx context.Context, cfg Config) (Summary, error) {
	r, err := newRun(cfg)
	if err != nil {
		return Summary{}, err
	}
	return r.run(ctx)
}

func (r *run) run(ctx context.Context) (Summary, error) {
	stopped, stop := context.WithCancel(ctx)
	defer stop()
	if err := r.connectAll(stopped); err != nil {
		return Summary{Devices: r.cfg.Devices}, err
	}
	if r.cfg.Duration > 0 {
		time.AfterFunc(r.cfg.Duration, stop)
	}
	// The connections outlive the sending, and end when nothing is missing any more or it takes too long.
	life, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	context.AfterFunc(stopped, func() {
		timer := time.AfterFunc(r.cfg.DrainTimeout, func() { end(errDrain) })
		context.AfterFunc(life, func() { timer.Stop() })
	})
	r.begin = time.Now()
	progress := r.startProgress()
	var wg sync.WaitGroup
	for _, d := range r.devices {
		wg.Go(func() { d.run(stopped, life) })
	}
	wg.Wait()
	progress()
	s := r.summary()
	if err := r.report(s); err != nil {
		return s, fmt.Errorf("write summary: %w", err)
	}
	if s.Failed > 0 {
		return s, r.failure(s)
	}
	return s, nil
}

var errDrain = errors.New("waited long enough for acknowledgements")

// run is what the devices share.
type run struct {
	cfg     Config
	url     *url.URL
	devices []*device
	begin   time.Time
	// keepAlive is how long a connection may be idle before the device pings, in whole seconds.
	keepAlive time.Duration

	claimed                                           atomic.Int64 // events that devices have set out to send
	sent, acked, refused, resent, unrouted, reconnect atomic.Uint64
	latency                                           histogram
	errMu                                             sync.Mutex
	lastErr                                           error
}

func newRun(cfg Config) (*run, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("read MQTT URL: %w", err)
	}
	switch u.Scheme {
	case "mqtt", "tcp", "mqtts", "ssl", "tls":
	default:
		return nil, fmt.Errorf("MQTT URL must be mqtt://host:port, or mqtts, tcp, ssl or tls, is %q", u.Redacted())
	}
	if u.Host == "" {
		return nil, fmt.Errorf("MQTT URL must name a host, is %q", u.Redacted())
	}
	if cfg.Devices < 0 || cfg.Rate < 0 || cfg.Count < 0 || cfg.Inflight < 0 || cfg.Duration < 0 {
		return nil, errors.New("devices, rate, count, in-flight limit and duration must not be negative")
	}
	if cfg.Username == "" && u.User != nil {
		cfg.Username = u.User.Username()
		cfg.Password, _ = u.User.Password()
	}
	if cfg.Devices == 0 {
		cfg.Devices = 1
	}
	if cfg.Inflight == 0 {
		cfg.Inflight = 16
	}
	cfg.Inflight = min(cfg.Inflight, 65535)
	if cfg.Prefix == "" {
		cfg.Prefix = "device-"
	}
	if cfg.DrainTimeout == 0 {
		cfg.DrainTimeout = 10 * time.Second
	}
	if cfg.Out == nil {
		cfg.Out = io.Discard
	}
	r := &run{cfg: cfg, url: u, keepAlive: keepAlive}
	session := uuid.NewString()[:8] // two runs at once must not take each other's connections over
	for i := range cfg.Devices {
		r.devices = append(r.devices, newDevice(r, i, session))
	}
	return r, nil
}

// connectAll connects every device once, so that a wrong address or password ends the run before it begins.
func (r *run) connectAll(ctx context.Context) error {
	const atOnce = 32
	slots := make(chan struct{}, atOnce)
	errs := make(chan error, len(r.devices))
	for _, d := range r.devices {
		go func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			errs <- d.connect(ctx)
		}()
	}
	var first error
	for range r.devices {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	if first != nil {
		for _, d := range r.devices {
			d.disconnect()
		}
	}
	return first
}

// claim reports whether one more event may be sent.
func (r *run) claim() bool {
	return r.cfg.Count == 0 || r.claimed.Add(1) <= int64(r.cfg.Count)
}

func (r *run) note(err error) {
	r.errMu.Lock()
	r.lastErr = err
	r.errMu.Unlock()
}

func (r *run) failure(s Summary) error {
	r.errMu.Lock()
	defer r.errMu.Unlock()
	if r.lastErr != nil {
		return fmt.Errorf("%w: %d of %d, %d of them refused; last error: %w", ErrNotAcknowledged, s.Failed, s.Sent, s.Refused, r.lastErr)
	}
	return fmt.Errorf("%w: %d of %d, %d of them refused", ErrNotAcknowledged, s.Failed, s.Sent, s.Refused)
}

func (r *run) summary() Summary {
	s := Summary{
		Devices: r.cfg.Devices, Sent: r.sent.Load(), Acked: r.acked.Load(), Refused: r.refused.Load(),
		Resent: r.resent.Load(), Unrouted: r.unrouted.Load(), Reconnects: r.reconnect.Load(),
		Duration: time.Since(r.begin),
		P50:      r.latency.quantile(0.50), P99: r.latency.quantile(0.99), Max: r.latency.max(),
	}
	s.Failed = s.Sent - s.Acked
	s.Rate = float64(s.Acked) / s.Duration.Seconds()
	return s
}
