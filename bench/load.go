package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cornjacket/platform-services/internal/simulate"
)

const (
	httpConns  = 32
	batchConns = 4
	batchSize  = 500
	prefix     = "device-"
)

// deviceNames are those of simulated devices too.
func deviceNames(n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("%s%03d", prefix, i+1)
	}
	return ids
}

// payload is a reading as those of the simulated devices.
func payload() string {
	return fmt.Sprintf(`{"value":%.2f,"unit":"celsius","humidity":%.1f,"battery":%.1f}`,
		18+6*rand.Float64(), 35+30*rand.Float64(), 60+40*rand.Float64())
}

func body(device string) []byte {
	return fmt.Appendf(nil, `{"event_type":"sensor.reading","aggregate_id":%q,"payload":%s}`, device, payload())
}

// bodies are made before the clock runs, and sent again and again.
func bodies(ids []string) [][]byte {
	all := make([][]byte, max(1000, len(ids)))
	for i := range all {
		all[i] = body(ids[i%len(ids)])
	}
	return all
}

// lines is a batch as NDJSON.
func lines(ids []string, from, n int) []byte {
	var b bytes.Buffer
	for i := range n {
		b.Write(body(ids[(from+i)%len(ids)]))
		b.WriteByte('\n')
	}
	return b.Bytes()
}

func newClient(conns int) *http.Client {
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	return &http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{
			DialContext: dialer.DialContext, MaxIdleConns: conns, MaxIdleConnsPerHost: conns, MaxConnsPerHost: conns,
			DisableCompression: true, WriteBufferSize: 256 << 10,
		},
	}
}

// post sends a body that must be accepted. A request that can't be told to have failed or not is an error too: it is
// not sent again, since the events have no IDs of their own.
func post(ctx context.Context, client *http.Client, url, contentType string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	req.Header["Content-Type"] = []string{contentType}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("send events: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	return accepted(resp)
}

// sendHTTP sends n events, one a request, over 32 connections, rate a second or, if that is 0, as fast as they are
// accepted. It returns when it began.
func sendHTTP(ctx context.Context, url string, ids []string, n int, rate float64) (begin time.Time, err error) {
	addr, all, err := requests(url, bodies(ids))
	if err != nil {
		return time.Time{}, err
	}
	c, err := dialClients(ctx, addr, httpConns)
	if err != nil {
		return time.Time{}, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	return time.Now(), c.send(ctx, all, n, rate)
}

// until waits for a moment, which may have passed.
func until(ctx context.Context, due time.Time) error {
	wait := time.Until(due)
	if wait <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// batchSender sends events by the batch endpoint, 500 a request.
type batchSender struct {
	url    string
	client *http.Client
	bodies [][]byte
	rest   []byte // the last batch, if it is a smaller one
	n      int
	next   atomic.Int64
	sent   atomic.Int64 // events that were accepted
	// hold, if set, is asked before each batch and waits as long as no more is to be sent.
	hold func(ctx context.Context, sent int64) error
}

func newBatchSender(url string, ids []string, n int) *batchSender {
	const different = 20
	s := &batchSender{url: url, client: newClient(batchConns), n: n}
	for i := range different {
		s.bodies = append(s.bodies, lines(ids, i*batchSize, batchSize))
	}
	if n%batchSize > 0 {
		s.rest = lines(ids, 0, n%batchSize)
	}
	return s
}

// run sends all, and returns when it began.
func (s *batchSender) run(ctx context.Context) (time.Time, error) {
	defer s.client.CloseIdleConnections()
	begin := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for range batchConns {
		g.Go(func() error {
			for {
				i := int(s.next.Add(1) - 1)
				if i*batchSize >= s.n {
					return nil
				}
				if err := s.send(ctx, i); err != nil {
					return err
				}
			}
		})
	}
	return begin, g.Wait()
}

func (s *batchSender) send(ctx context.Context, i int) error {
	if s.hold != nil {
		if err := s.hold(ctx, s.sent.Load()); err != nil {
			return err
		}
	}
	body, size := s.bodies[i%len(s.bodies)], batchSize
	if left := s.n - i*batchSize; left < batchSize {
		body, size = s.rest, left
	}
	if err := post(ctx, s.client, s.url, "application/x-ndjson", body); err != nil {
		return err
	}
	s.sent.Add(int64(size))
	return nil
}

// sendMQTT lets simulated devices publish n events with QoS 1, rate a second or as fast as the broker acknowledges
// them. It returns when the first was published.
func sendMQTT(ctx context.Context, url string, fleet, n int, rate float64) (time.Time, error) {
	// One device alone has the window of a batch, so that not the round trips to the broker are measured.
	inflight := 20
	if fleet == 1 {
		inflight = batchSize
	}
	s, err := simulate.Run(ctx, simulate.Config{
		URL: url, Devices: fleet, Count: n, Rate: rate, Prefix: prefix, Inflight: inflight, DrainTimeout: time.Minute,
	})
	begin := time.Now().Add(-s.Duration)
	switch {
	case err != nil:
		return begin, fmt.Errorf("publish over MQTT: %w", err)
	case s.Unrouted > 0:
		return begin, fmt.Errorf("publish over MQTT: the broker had no subscriber for %d events", s.Unrouted)
	case n > 0 && s.Acked != uint64(n):
		return begin, fmt.Errorf("publish over MQTT: %d of %d events were sent and acknowledged", s.Acked, n)
	}
	return begin, nil
}

// sideload runs a load beside something else.
type sideload struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
	err    error
}

func startSideload(ctx context.Context, load func(ctx context.Context) error) *sideload {
	s := &sideload{}
	ctx, s.cancel = context.WithCancel(ctx)
	s.done.Go(func() { s.err = load(ctx) })
	return s
}

// wait waits until the load is done.
func (s *sideload) wait() error {
	s.done.Wait()
	s.cancel()
	return s.err
}

// stop ends the load; that it was ended is no error.
func (s *sideload) stop() error {
	s.cancel()
	s.done.Wait()
	if errors.Is(s.err, context.Canceled) {
		return nil
	}
	return s.err
}
