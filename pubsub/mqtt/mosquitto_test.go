package mqtt

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
	"github.com/stretchr/testify/require"
)

const wait = 20 * time.Second

// broker is a Mosquitto of its own, which keeps its port and its data over restarts.
type broker struct {
	t      testing.TB
	dir    string
	port   int
	binary string
	extra  string // configuration lines
	whole  string // the configuration, in place of the usual one
	cmd    *exec.Cmd
}

func newBroker(t testing.TB, extra string) *broker {
	t.Helper()
	return startBroker(t, &broker{extra: extra})
}

// newBrokerWith starts a broker with a configuration that is not the usual one.
func newBrokerWith(t testing.TB, whole string) *broker {
	t.Helper()
	return startBroker(t, &broker{whole: whole})
}

func startBroker(t testing.TB, b *broker) *broker {
	t.Helper()
	binary, err := exec.LookPath("mosquitto")
	if err != nil {
		if _, err = os.Stat("/usr/sbin/mosquitto"); err == nil {
			binary = "/usr/sbin/mosquitto"
		}
	}
	if binary == "" {
		if os.Getenv("CI") != "" {
			t.Fatal("mosquitto is not installed, and CI must not skip these tests")
		}
		t.Skip("mosquitto is not installed: apt-get install mosquitto")
	}
	b.t, b.dir, b.port, b.binary = t, t.TempDir(), freePort(t), binary
	t.Cleanup(b.kill)
	b.start()
	return b
}

func (b *broker) start() {
	b.t.Helper()
	conf := filepath.Join(b.dir, "mosquitto.conf")
	text := fmt.Sprintf(`listener %d 127.0.0.1
allow_anonymous true
persistence true
persistence_location %s/
max_queued_messages 0
log_dest stderr
user root
%s
`, b.port, b.dir, b.extra)
	if b.whole != "" {
		text = b.whole + "log_dest stderr\nuser root\n"
	}
	require.NoError(b.t, os.WriteFile(conf, []byte(text), 0o644))
	// The log says when it has the port: whoever answers there could also be a stranger.
	log, err := os.OpenFile(filepath.Join(b.dir, "log"), os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o644)
	require.NoError(b.t, err)
	defer func() { require.NoError(b.t, log.Close()) }()
	b.cmd = exec.Command(b.binary, "-c", conf)
	b.cmd.Stderr = log
	require.NoError(b.t, b.cmd.Start())
	require.Eventually(b.t, func() bool {
		said, err := os.ReadFile(log.Name())
		return err == nil && bytes.Contains(said, []byte(" running"))
	}, wait, 10*time.Millisecond, "mosquitto does not run, see its log")
}

// stop ends the broker cleanly: it writes its data first.
func (b *broker) stop() {
	b.t.Helper()
	require.NoError(b.t, b.cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(b.t, b.cmd.Wait())
	b.cmd = nil
}

func (b *broker) kill() {
	if b.cmd != nil {
		_ = b.cmd.Process.Kill()
		_ = b.cmd.Wait()
		b.cmd = nil
	}
}

func (b *broker) addr() string { return fmt.Sprintf("127.0.0.1:%d", b.port) }
func (b *broker) url() string  { return "mqtt://" + b.addr() }

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { require.NoError(t, l.Close()) }()
	return l.Addr().(*net.TCPAddr).Port
}

// publisher is a device.
type publisher struct {
	t      testing.TB
	client *paho.Client
}

func newPublisher(t testing.TB, b *broker) *publisher {
	t.Helper()
	conn, err := net.Dial("tcp", b.addr())
	require.NoError(t, err)
	client := paho.NewClient(paho.ClientConfig{Conn: conn})
	_, err = client.Connect(context.Background(), &paho.Connect{CleanStart: true, KeepAlive: 30})
	require.NoError(t, err)
	p := &publisher{t: t, client: client}
	t.Cleanup(func() { _ = client.Disconnect(&paho.Disconnect{}) })
	return p
}

func (p *publisher) publish(topic, body string, props ...string) {
	p.t.Helper()
	msg := &paho.Publish{Topic: topic, QoS: 1, Payload: []byte(body), Properties: &paho.PublishProperties{}}
	for i := 0; i+1 < len(props); i += 2 {
		msg.Properties.User.Add(props[i], props[i+1])
	}
	_, err := p.client.Publish(context.Background(), msg)
	require.NoError(p.t, err)
}

// proxy stands between a subscriber and the broker, so that a test can cut the line.
type proxy struct {
	t      testing.TB
	l      net.Listener
	target string
	wg     sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	count int
}

func newProxy(t testing.TB, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &proxy{t: t, l: l, target: target, conns: make(map[net.Conn]struct{})}
	p.wg.Go(p.run)
	t.Cleanup(func() {
		_ = l.Close()
		p.cut()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) run() {
	for {
		in, err := p.l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", p.target)
		if err != nil {
			_ = in.Close()
			continue
		}
		p.mu.Lock()
		p.conns[in], p.conns[out] = struct{}{}, struct{}{}
		p.count++
		p.mu.Unlock()
		p.wg.Go(func() { p.pipe(in, out) })
		p.wg.Go(func() { p.pipe(out, in) })
	}
}

func (p *proxy) pipe(dst, src net.Conn) {
	_, _ = io.Copy(dst, src)
	_ = dst.Close()
	_ = src.Close()
}

func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
		delete(p.conns, c)
	}
}

func (p *proxy) url() string { return "mqtt://" + p.l.Addr().String() }

func (p *proxy) accepted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count
}
