package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/paho"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
)

const (
	sampleRate    = 100 // events per second whose latency is taken
	latencyWarmUp = 2 * time.Second
	sampleLimit   = 30 * time.Second       // the longest that one event may take
	samplePause   = 500 * time.Microsecond // the shortest time between two questions about one event
	sampleGrain   = 8                      // from then on, an eighth of the time that it has been waited for
	// probes are the devices of sampled events, in turn: the last event of one was sampled two seconds ago.
	probes = 2 * sampleRate
)

// sampler publishes single events and asks the query API for their projections until it shows them.
type sampler struct {
	publish func(ctx context.Context, device string, id uuid.UUID, at time.Time) error
	query   string
	client  *http.Client
}

func measureLatency(ctx context.Context, b *bench) error {
	for _, l := range []load{httpLoad(), mqttLoad("mqtt", devices)} {
		most, err := b.maximum(ctx, l)
		if err != nil {
			return err
		}
		if err := b.latency(ctx, l.key, "100", 0); err != nil {
			return fmt.Errorf("%s at %d/s: %w", l.what, sampleRate, err)
		}
		if err := b.latency(ctx, l.key, "half", most/2); err != nil {
			return fmt.Errorf("%s at half of the maximum, %.0f/s: %w", l.what, most/2, err)
		}
	}
	return nil
}

// latency samples a platform that takes rate events a second over one transport, or only the samples if that is 0.
func (b *bench) latency(ctx context.Context, transport, at string, rate float64) error {
	return b.onPlatform(ctx, func(r *rig, p *platform) error { return r.latency(ctx, p, transport, at, rate) })
}

func (r *rig) latency(ctx context.Context, p *platform, transport, at string, rate float64) error {
	ctx, cancel := p.alive(ctx)
	defer cancel(nil)
	s, closeSampler, err := r.newSampler(ctx, p, transport)
	if err != nil {
		return err
	}
	defer closeSampler()
	var beside *sideload
	if rate > sampleRate {
		beside = startSideload(ctx, func(ctx context.Context) error {
			err := background(ctx, p, r, transport, rate-sampleRate)
			cancel(err)
			return err
		})
	}
	took, err := s.sample(ctx, r.b.opts.latencyFor)
	if beside != nil {
		err = errors.Join(err, beside.stop())
	}
	if err != nil {
		return because(ctx, err)
	}
	r.b.results.sample("latency."+transport+"."+at, took)
	r.b.results.add("latency."+transport+"."+at+".rate", max(rate, sampleRate))
	r.b.say("  latency over %s at %.0f/s: p50 %s, p99 %s, p99.9 %s of %d", transport, max(rate, sampleRate),
		quantile(took, 0.5).Round(10*time.Microsecond), quantile(took, 0.99).Round(10*time.Microsecond),
		quantile(took, 0.999).Round(10*time.Microsecond), len(took))
	return nil
}

// background sends events until ctx ends, which is no error.
func background(ctx context.Context, p *platform, r *rig, transport string, rate float64) (err error) {
	const endless = 1 << 30
	if transport == "mqtt" {
		_, err = sendMQTT(ctx, r.mqttURL, devices, 0, rate)
	} else {
		_, err = sendHTTP(ctx, p.ingestion(), deviceNames(devices), endless, rate)
	}
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return nil
	}
	return err
}

func (r *rig) newSampler(ctx context.Context, p *platform, transport string) (*sampler, func(), error) {
	client := newClient(httpConns)
	s := &sampler{query: p.query(), client: client}
	if transport == "mqtt" {
		publish, bye, err := connectProbe(ctx, r.mqttURL)
		if err != nil {
			return nil, nil, err
		}
		s.publish = publish
		return s, func() { bye(); client.CloseIdleConnections() }, nil
	}
	s.publish = func(ctx context.Context, device string, id uuid.UUID, at time.Time) error {
		return post(ctx, client, p.ingestion(), "application/json", fmt.Appendf(nil,
			`{"event_id":%q,"event_time":%q,"event_type":"sensor.reading","aggregate_id":%q,"payload":%s}`,
			id, at.UTC().Format(time.RFC3339Nano), device, payload()))
	}
	return s, client.CloseIdleConnections, nil
}

// connectProbe connects the device whose events are sampled.
func connectProbe(ctx context.Context, broker string) (publish func(context.Context, string, uuid.UUID, time.Time) error, bye func(), err error) {
	u, err := url.Parse(broker)
	if err != nil {
		return nil, nil, fmt.Errorf("read MQTT URL: %w", err)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, nil, fmt.Errorf("connect to the MQTT broker: %w", err)
	}
	client := paho.NewClient(paho.ClientConfig{Conn: conn, PacketTimeout: sampleLimit})
	if _, err := client.Connect(ctx, &paho.Connect{ClientID: "bench-probe", CleanStart: true, KeepAlive: 60}); err != nil {
		return nil, nil, fmt.Errorf("connect to the MQTT broker: %w", errors.Join(err, conn.Close()))
	}
	publish = func(ctx context.Context, device string, id uuid.UUID, at time.Time) error {
		m := &paho.Publish{
			Topic: "devices/" + device + "/events/sensor.reading", QoS: 1, Payload: []byte(payload()),
			Properties: &paho.PublishProperties{},
		}
		m.Properties.User.Add("event_id", id.String())
		m.Properties.User.Add("event_time", at.UTC().Format(time.RFC3339Nano))
		if _, err := client.Publish(ctx, m); err != nil {
			return fmt.Errorf("publish over MQTT: %w", err)
		}
		return nil
	}
	return publish, func() { _ = client.Disconnect(&paho.Disconnect{}) }, nil // the broker notices either way
}

// sample takes the latency of 100 events a second, each from the moment at which it was due: an event that is slow
// does not hold up the next one, and what waits behind it counts.
func (s *sampler) sample(ctx context.Context, span time.Duration) ([]time.Duration, error) {
	const interval = time.Second / sampleRate
	warm, n := int(latencyWarmUp/interval), int((latencyWarmUp+span)/interval)
	var mu sync.Mutex
	var took []time.Duration
	begin := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for i := range n {
		due := begin.Add(time.Duration(i) * interval)
		if until(ctx, due) != nil {
			break // the group or the context knows why
		}
		id, err := uuid.NewV7() // grows from one to the next
		if err != nil {
			return nil, errors.Join(fmt.Errorf("make event ID: %w", err), g.Wait())
		}
		g.Go(func() error {
			d, err := s.one(ctx, fmt.Sprintf("probe-%03d", i%probes), id, due)
			if err != nil || i < warm {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, d)
			return nil
		})
	}
	if err := errors.Join(g.Wait(), ctx.Err()); len(took) < n-warm {
		return nil, err
	}
	return took, nil
}

// one publishes an event and waits until the query API shows it, or a newer one of the device. It asks only once the
// event is acknowledged: before that an answer would cost what is being measured, and be the last one. It asks less and
// less often: what takes 50 ms would else be asked for a hundred times, which costs more than the load beside it.
func (s *sampler) one(ctx context.Context, device string, id uuid.UUID, due time.Time) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, sampleLimit)
	defer cancel()
	if err := s.publish(ctx, device, id, due); err != nil {
		return 0, err
	}
	for {
		shown, err := s.shown(ctx, device)
		if err != nil {
			return 0, err
		}
		if shown >= id.String() {
			return time.Since(due), nil
		}
		pause := max(samplePause, time.Since(due)/sampleGrain)
		if err := until(ctx, time.Now().Add(pause)); err != nil {
			return 0, fmt.Errorf("wait until event %s is visible: %w", id, err)
		}
	}
}

// shown returns the ID of the last event of a device's projection, empty if it has none yet.
func (s *sampler) shown(ctx context.Context, device string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.query+"/projections/sensor_state/"+device, http.NoBody)
	if err != nil {
		return "", fmt.Errorf("make request: %w", err)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return "", fmt.Errorf("ask for a projection: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", fmt.Errorf("read a projection: %w", err)
	}
	switch resp.StatusCode {
	case http.StatusNotFound:
		return "", nil
	case http.StatusOK:
	default:
		return "", fmt.Errorf("ask for a projection: %s: %s", resp.Status, answer)
	}
	var p struct {
		LastEventID string `json:"last_event_id"`
	}
	if err := json.Unmarshal(answer, &p); err != nil {
		return "", fmt.Errorf("read a projection: %w", err)
	}
	return p.LastEventID, nil
}
