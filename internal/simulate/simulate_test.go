package simulate

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/batch"
	"github.com/cornjacket/platform-services/pubsub/mqtt"
)

const wait = 20 * time.Second

// broker starts a Mosquitto and returns its address and a function that stops it.
func broker(t testing.TB, extra string) (addr string, kill func()) {
	t.Helper()
	binary, err := exec.LookPath("mosquitto")
	if err != nil {
		binary = "/usr/sbin/mosquitto"
	}
	if _, err := os.Stat(binary); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("mosquitto is not installed, and CI must not skip these tests")
		}
		t.Skip("mosquitto is not installed: apt-get install mosquitto")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr = l.Addr().String()
	require.NoError(t, l.Close())
	conf := filepath.Join(t.TempDir(), "mosquitto.conf")
	text := fmt.Sprintf("listener %d 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nlog_dest stderr\nuser root\n%s\n",
		l.Addr().(*net.TCPAddr).Port, extra)
	require.NoError(t, os.WriteFile(conf, []byte(text), 0o644))
	log, err := os.Create(filepath.Join(filepath.Dir(conf), "log"))
	require.NoError(t, err)
	defer func() { require.NoError(t, log.Close()) }()
	cmd := exec.Command(binary, "-c", conf)
	cmd.Stderr = log
	require.NoError(t, cmd.Start())
	kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	t.Cleanup(kill)
	// The log says when it has the port: whoever answers there could also be a stranger.
	require.Eventually(t, func() bool {
		said, err := os.ReadFile(log.Name())
		return err == nil && bytes.Contains(said, []byte(" running"))
	}, wait, 10*time.Millisecond, "mosquitto does not run, see its log")
	return addr, kill
}

// listen gathers event IDs and topics as the platform would see them.
func listen(t *testing.T, addr string) func() (ids map[string]int, topics map[string]int) {
	t.Helper()
	up := make(chan mqtt.Granted, 10)
	sub, err := mqtt.NewSubscriber(mqtt.Config{URL: "mqtt://" + addr, OnUp: func(g mqtt.Granted) { up <- g }})
	require.NoError(t, err)
	ch, err := sub.Subscribe(context.Background(), mqtt.AllTopics)
	require.NoError(t, err)
	<-up
	var mu sync.Mutex
	ids, topics := map[string]int{}, map[string]int{}
	go func() {
		for m := range ch {
			mu.Lock()
			for _, r := range batch.From(m).Rest() {
				p := event.Properties{EventID: r.Header(event.MetaEventID)}
				_, err := event.ParseMQTT(r.Topic, r.Value, p, event.Origin{Source: "mqtt", Now: time.Now(), NewID: uuid.New})
				if err != nil {
					ids["invalid: "+err.Error()]++
				}
				ids[p.EventID]++
				topics[r.Topic]++
			}
			mu.Unlock()
			m.Ack()
		}
	}()
	t.Cleanup(func() { require.NoError(t, sub.Close()) })
	return func() (map[string]int, map[string]int) {
		mu.Lock()
		defer mu.Unlock()
		a, b := map[string]int{}, map[string]int{}
		for k, v := range ids {
			a[k] = v
		}
		for k, v := range topics {
			b[k] = v
		}
		return a, b
	}
}

func TestCount(t *testing.T) {
	t.Parallel()
	addr, _ := broker(t, "")
	got := listen(t, addr)
	var out bytes.Buffer
	s, err := Run(context.Background(), Config{URL: "mqtt://" + addr, Devices: 7, Count: 1000, Out: &out})
	require.NoError(t, err)
	require.Equal(t, uint64(1000), s.Sent)
	require.Equal(t, uint64(1000), s.Acked)
	require.Zero(t, s.Failed+s.Refused+s.Unrouted+s.Resent)
	require.Positive(t, s.P50)
	require.LessOrEqual(t, s.P50, s.P99)
	require.LessOrEqual(t, s.P99, s.Max)
	require.Contains(t, out.String(), "acknowledged  1000\n")
	require.Eventually(t, func() bool { ids, _ := got(); return len(ids) == 1000 }, wait, 10*time.Millisecond)
	ids, topics := got()
	require.NotContains(t, ids, "")
	for id := range ids {
		require.NotContains(t, id, "invalid")
	}
	require.Len(t, topics, 7)
	require.Contains(t, topics, "devices/device-007/events/sensor.reading")
}

func TestRateAndDuration(t *testing.T) {
	t.Parallel()
	addr, _ := broker(t, "")
	var out bytes.Buffer
	s, err := Run(context.Background(), Config{URL: "mqtt://" + addr, Devices: 10, Rate: 200, Duration: time.Second, JSON: true, Out: &out})
	require.NoError(t, err)
	require.LessOrEqual(t, s.Sent, uint64(211))
	require.GreaterOrEqual(t, s.Sent, uint64(100)) // less than asked only on a machine that is very busy
	require.Equal(t, s.Sent, s.Unrouted, "nobody subscribes")
	var decoded Summary
	require.NoError(t, json.Unmarshal(out.Bytes(), &decoded))
	require.Equal(t, s, decoded)
}

func TestInterruptedRunEndsWithASummary(t *testing.T) {
	t.Parallel()
	addr, _ := broker(t, "")
	ctx, cancel := context.WithCancel(context.Background())
	var out bytes.Buffer
	time.AfterFunc(300*time.Millisecond, cancel)
	s, err := Run(ctx, Config{URL: "mqtt://" + addr, Devices: 3, Rate: 100, Out: &out})
	require.NoError(t, err)
	require.Positive(t, s.Acked)
	require.Equal(t, s.Sent, s.Acked)
	require.Contains(t, out.String(), "failed        0\n")
}

func TestUnacknowledgedIsAnError(t *testing.T) {
	t.Parallel()
	addr, kill := broker(t, "")
	time.AfterFunc(200*time.Millisecond, kill)
	s, err := Run(context.Background(), Config{URL: "mqtt://" + addr, Devices: 3, Duration: time.Second, DrainTimeout: 300 * time.Millisecond})
	require.ErrorIs(t, err, ErrNotAcknowledged)
	require.Positive(t, s.Failed)
	require.Equal(t, s.Sent, s.Acked+s.Failed)
}

func TestNobodyAnswers(t *testing.T) {
	t.Parallel()
	addr, kill := broker(t, "")
	kill()
	_, err := Run(context.Background(), Config{URL: "mqtt://" + addr, Devices: 3, Count: 1})
	require.ErrorContains(t, err, "connection refused")
}

func TestRefusedLogin(t *testing.T) {
	t.Parallel()
	addr, _ := broker(t, "allow_anonymous false")
	_, err := Run(context.Background(), Config{URL: "mqtt://" + addr, Count: 1})
	require.ErrorContains(t, err, "refused the connection")
}

// The lines are cut again and again: every event must arrive, and be acknowledged once; also when the next broker does
// not have the session of the last one.
func TestLostConnections(t *testing.T) {
	t.Parallel()
	for _, brokers := range []int{1, 2} {
		t.Run(fmt.Sprint(brokers), func(t *testing.T) {
			t.Parallel()
			var addrs []string
			var got []func() (ids, topics map[string]int)
			for range brokers {
				addr, _ := broker(t, "")
				addrs, got = append(addrs, addr), append(got, listen(t, addr))
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			defer func() { _ = l.Close() }()
			go cutter(l, addrs)
			s, err := Run(context.Background(), Config{URL: "mqtt://" + l.Addr().String(), Devices: 4, Count: 2000})
			require.NoError(t, err)
			require.Equal(t, uint64(2000), s.Sent)
			require.Equal(t, uint64(2000), s.Acked)
			require.Positive(t, s.Reconnects)
			require.Positive(t, s.Resent)
			require.Eventually(t, func() bool {
				all := map[string]int{}
				for _, of := range got {
					ids, _ := of()
					maps.Copy(all, ids)
				}
				return len(all) == 2000
			}, wait, 10*time.Millisecond)
		})
	}
}

// cutter passes connections on, to the targets in turn, and ends each after 20 kB.
func cutter(l net.Listener, targets []string) {
	for i := 0; ; i++ {
		in, err := l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", targets[i%len(targets)])
		if err != nil {
			_ = in.Close()
			continue
		}
		go func() { _, _ = io.Copy(in, out); _ = in.Close() }()
		go func() { _, _ = io.CopyN(out, in, 20_000); _ = out.Close(); _ = in.Close() }()
	}
}

// A broker ends a connection that is silent for one and a half times what the device has promised.
func TestIdleDevicePings(t *testing.T) {
	t.Parallel()
	addr, _ := broker(t, "")
	r, err := newRun(Config{URL: "mqtt://" + addr, Count: 2, Rate: 0.4})
	require.NoError(t, err)
	r.keepAlive = time.Second
	s, err := r.run(context.Background())
	require.NoError(t, err)
	require.Equal(t, uint64(2), s.Acked)
	require.Zero(t, s.Reconnects)
}

func TestConfigErrors(t *testing.T) {
	t.Parallel()
	for _, cfg := range []Config{{}, {URL: "http://h"}, {URL: "mqtt://"}, {URL: "mqtt://h", Rate: -1}, {URL: "mqtt://h", Devices: -1}} {
		_, err := Run(context.Background(), cfg)
		require.Error(t, err, "%+v", cfg)
	}
}

func TestHistogram(t *testing.T) {
	t.Parallel()
	var h histogram
	require.Zero(t, h.quantile(0.5))
	for i := range 1000 {
		h.add(time.Duration(i+1) * time.Microsecond)
	}
	require.InEpsilon(t, float64(500*time.Microsecond), float64(h.quantile(0.5)), 0.13)
	require.InEpsilon(t, float64(990*time.Microsecond), float64(h.quantile(0.99)), 0.13)
	require.Equal(t, time.Millisecond, h.max())
	require.Equal(t, time.Millisecond, h.quantile(1))
	for _, v := range []uint64{0, 1, 7, 8, 9, 15, 16, 17, 1000, 1 << 40, math.MaxInt64} {
		b := bucket(v)
		require.LessOrEqual(t, v, upper(b), v)
		if b > 0 {
			require.Greater(t, v, upper(b-1), v)
		}
	}
}

func TestProgressLines(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	r, err := newRun(Config{URL: "mqtt://h", Out: &out, Terminal: true})
	require.NoError(t, err)
	r.begin = time.Now()
	r.progress(12)
	require.True(t, strings.HasPrefix(out.String(), "\r"), out.String())
	require.Contains(t, out.String(), "12/s")
}

func BenchmarkFleet(b *testing.B) {
	addr, _ := broker(b, "")
	s, err := Run(context.Background(), Config{URL: "mqtt://" + addr, Devices: 200, Count: b.N})
	require.NoError(b, err)
	b.ReportMetric(s.Rate, "events/s")
}

// BenchmarkFleetToSubscriber has the platform's subscriber at the other end, which acks at once.
func BenchmarkFleetToSubscriber(b *testing.B) {
	addr, _ := broker(b, "")
	up := make(chan mqtt.Granted, 10)
	sub, err := mqtt.NewSubscriber(mqtt.Config{URL: "mqtt://" + addr, OnUp: func(g mqtt.Granted) { up <- g }})
	require.NoError(b, err)
	ch, err := sub.Subscribe(context.Background(), mqtt.AllTopics)
	require.NoError(b, err)
	<-up
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; n < b.N; {
			m := <-ch
			n += len(batch.From(m).Rest())
			m.Ack()
		}
	}()
	b.ResetTimer()
	_, err = Run(context.Background(), Config{URL: "mqtt://" + addr, Devices: 200, Count: b.N})
	require.NoError(b, err)
	<-done
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
	require.NoError(b, sub.Close())
}
