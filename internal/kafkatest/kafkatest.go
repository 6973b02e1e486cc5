// Package kafkatest gives tests a real Apache Kafka, which scripts/kafka.sh has fetched: a broker that all tests of the
// process share, or one of their own to be stopped, killed and started again. Where there is none the tests are skipped
// with a line that says why.
package kafkatest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cornjacket/platform-services/internal/proc"
)

const (
	startTimeout = time.Minute
	stopTimeout  = 40 * time.Second
	// attempts at a start: somebody else may take a port that was free a moment ago.
	attempts = 3
)

// errAbsent says that Kafka can't be had on this machine, and why.
var errAbsent = errors.New("no Apache Kafka for this test")

// script returns the path of scripts/kafka.sh.
func script() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..", "scripts", "kafka.sh")
}

// available returns errAbsent with the reason if Kafka can't be had; it asks once for each process.
var available = sync.OnceValue(check)

func check() error {
	out, err := exec.Command(script(), "check").CombinedOutput()
	if err != nil {
		reason, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return fmt.Errorf("%w: %s (%w)", errAbsent, reason, err)
	}
	return nil
}

// need skips the test where Kafka can't be had, and in short runs. It does so in CI too: unlike the packages of a distribution, what comes
// through Maven may be out of reach.
func need(tb testing.TB) {
	tb.Helper()
	if testing.Short() {
		tb.Skip("Apache Kafka takes long to start")
	}
	if err := available(); err != nil {
		tb.Skip(err)
	}
}

var shared = sync.OnceValues(func() (*Broker, error) {
	dir, err := os.MkdirTemp("", "cornjacket-kafka-")
	if err != nil {
		return nil, fmt.Errorf("create folder for Kafka: %w", err)
	}
	b := &Broker{dir: dir}
	if b.guard, err = proc.StartGuard(dir, filepath.Join(dir, "pid")); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return b, b.start()
})

// Shared returns the address of the broker of this process, host:port. It starts when it is first asked for and ends
// with the process, also when that panics or is killed. Its topics and groups are those of all tests.
func Shared(tb testing.TB) string {
	tb.Helper()
	need(tb)
	b, err := shared()
	if err != nil {
		tb.Fatalf("start Apache Kafka for tests: %v", err)
	}
	return b.addr
}

// IgnoreServer tells goleak of the goroutine that watches the shared broker as long as the process runs.
func IgnoreServer() goleak.Option {
	return goleak.IgnoreAnyFunction("github.com/cornjacket/platform-services/internal/proc.(*Process).run")
}

// Broker is one Apache Kafka, a process that ends with this one at the latest. It must not be used concurrently.
type Broker struct {
	dir     string // where its process ID is too
	addr    string
	guard   *proc.Guard   // of the folder, which goes with this process; nil if it is the test's
	process *proc.Process // the script
}

// Start returns a broker of the test's own, which ends with the test.
func Start(tb testing.TB) *Broker {
	tb.Helper()
	need(tb)
	b := &Broker{dir: tb.TempDir()}
	if err := b.start(); err != nil {
		tb.Fatalf("start Apache Kafka: %v", err)
	}
	tb.Cleanup(func() {
		if err := b.end(syscall.SIGKILL); err != nil {
			tb.Error(err)
		}
	})
	return b
}

// Addr returns host:port, the same after each start.
func (b *Broker) Addr() string { return b.addr }

// Stop ends the broker as an operator does, and waits for its end. It is well if it has ended.
func (b *Broker) Stop(tb testing.TB) {
	tb.Helper()
	if err := b.end(syscall.SIGTERM); err != nil {
		tb.Fatal(err)
	}
}

// Kill ends the broker at once (kill -9).
func (b *Broker) Kill(tb testing.TB) {
	tb.Helper()
	if err := b.end(syscall.SIGKILL); err != nil {
		tb.Fatal(err)
	}
}

// Restart starts a broker that was stopped or killed, with its data.
func (b *Broker) Restart(tb testing.TB) {
	tb.Helper()
	if err := b.start(); err != nil {
		tb.Fatalf("start Apache Kafka again: %v", err)
	}
}

func (b *Broker) start() error {
	if b.addr != "" {
		return b.serve(b.addr)
	}
	var err error
	for range attempts {
		var addr string
		if addr, err = freePorts(); err != nil {
			return err
		}
		if err = b.serve(addr); err == nil {
			b.addr = addr
			return nil
		}
	}
	return err
}

// freePorts returns an address whose port and the next one, which is the controller's, were free just now.
func freePorts() (string, error) {
	for range 20 {
		first, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", fmt.Errorf("find free ports: %w", err)
		}
		addr := first.Addr().(*net.TCPAddr)
		second, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(addr.Port+1)))
		_ = first.Close()
		if err == nil {
			return addr.String(), second.Close()
		}
	}
	return "", errors.New("found no two free ports side by side")
}

// serve starts the process and waits until it says that it serves.
func (b *Broker) serve(addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("read address of Kafka: %w", err)
	}
	log, err := os.CreateTemp(b.dir, "output-")
	if err != nil {
		return fmt.Errorf("create log of Kafka: %w", err)
	}
	defer func() { _ = log.Close() }() // the process has its own
	cmd := exec.Command(script(), "run", b.dir, port)
	cmd.Stdout, cmd.Stderr = log, log
	if _, err := cmd.StdinPipe(); err != nil { // the broker ends with it, and so with this process
		return fmt.Errorf("connect to %s: %w", script(), err)
	}
	if b.process, err = proc.Start(cmd, syscall.SIGTERM); err != nil {
		return err
	}
	if err := b.await(log.Name()); err != nil {
		return errors.Join(err, b.end(syscall.SIGKILL))
	}
	return nil
}

func (b *Broker) await(output string) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	var text []byte
	err := b.process.Await(ctx, func() (ok bool, err error) {
		text, err = os.ReadFile(output)
		return bytes.Contains(text, []byte("Kafka Server started")), err
	})
	if err != nil {
		return fmt.Errorf("wait until the broker serves: %w\n%s", err, text)
	}
	return nil
}

// end ends the broker and waits for the script, which waits for it.
func (b *Broker) end(s syscall.Signal) error {
	if b.process == nil {
		return nil
	}
	var err error
	if s == syscall.SIGKILL {
		err = b.signalBroker(s)
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	err = errors.Join(err, b.process.Stop(ctx, syscall.SIGTERM, syscall.SIGKILL))
	b.process = nil
	return err
}

// signalBroker sends a signal to the broker, whose process ID the script keeps in the folder.
func (b *Broker) signalBroker(s syscall.Signal) error {
	text, err := os.ReadFile(filepath.Join(b.dir, "pid"))
	if errors.Is(err, os.ErrNotExist) {
		return nil // it has ended, or not begun
	}
	if err != nil {
		return fmt.Errorf("find the process of Kafka: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("find the process of Kafka: %w", err)
	}
	if err := syscall.Kill(pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("send %s to Kafka: %w", s, err)
	}
	return nil
}
