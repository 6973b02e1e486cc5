package e2e

import (
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/internal/devstack"
)

// Variables that make this test program a Kafka API broker in place of a test: see serveBus.
const (
	busListen    = "E2E_BUS_LISTEN"
	busAdvertise = "E2E_BUS_ADVERTISE"
	busDir       = "E2E_BUS_DIR"
)

// busProcess is a Kafka API broker as a process of its own, with its data on disk.
type busProcess struct {
	env     []string
	addr    string // behind the proxy
	process *process
}

// startBus starts a broker that clients reach through a proxy.
func startBus(t testing.TB, addr string, through *proxy) *busProcess {
	t.Helper()
	b := &busProcess{addr: addr, env: []string{
		busListen + "=" + addr, busAdvertise + "=" + through.addr, busDir + "=" + filepath.Join(newFolder(t), "bus"),
	}}
	b.start(t)
	return b
}

func (b *busProcess) start(t testing.TB) {
	t.Helper()
	program, err := os.Executable()
	require.NoError(t, err)
	p, err := launch(b.env, program)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.kill()) })
	b.process = p
	require.Eventually(t, func() bool {
		select {
		case <-p.done:
			return true
		default:
			return strings.Contains(p.stdout.String(), "ready")
		}
	}, wait, tick, "the bus is ready")
	require.Contains(t, p.stdout.String(), "ready", "the bus: %s", p.stderr.tail())
}

// serveBus is the broker: it runs until it is told to end, and is launched by startBus.
func serveBus() error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	k, err := devstack.StartKafka(devstack.KafkaConfig{
		Addr: os.Getenv(busListen), Advertise: os.Getenv(busAdvertise), Dir: os.Getenv(busDir),
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	<-stop
	k.Close()
	return nil
}
