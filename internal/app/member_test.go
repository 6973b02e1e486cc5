package app

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/handlers"
	"github.com/cornjacket/platform-services/pubsub/kafka"
	"github.com/cornjacket/platform-services/routers"
	"github.com/cornjacket/platform-services/store"
)

// memberEnv makes a process of this test binary an event handler with the counting reducer, so that one can be killed
// like the process it stands for.
const memberEnv = "CORNJACKET_TEST_MEMBER"

// memberConfig is what such a process is told.
type memberConfig struct {
	Database, Broker, Group, Instance string
	Slot                              int
}

const hasJoined = "joined"

// memberMain runs an event handler until SIGTERM, or until stdin ends.
func memberMain(arg string) error {
	var cfg memberConfig
	if err := json.Unmarshal([]byte(arg), &cfg); err != nil {
		return fmt.Errorf("read %s: %w", memberEnv, err)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1) // the test is gone
	}()
	pool, err := store.Open(ctx, store.PoolConfig{URL: cfg.Database, Name: "eventhandler", MaxConns: 2, Settings: store.ProjectionSettings()})
	if err != nil {
		return err
	}
	defer pool.Close()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	sub := kafka.NewSubscriber(kafka.SubscriberConfig{
		Brokers: []string{cfg.Broker}, Group: cfg.Group, InstanceID: cfg.Instance, Window: 50,
		SessionTimeout: time.Second, CloseTimeout: 15 * time.Second, Log: log,
	})
	router, err := routers.NewEventhandler(routers.EventhandlerConfig{
		Stack: routers.Stack{
			RetryMax: 3, RetryInterval: time.Millisecond, Timeout: 10 * time.Second, CloseTimeout: 30 * time.Second, Log: log,
		},
		Subscriber: sub, Store: store.NewProjections(pool), Projections: []handlers.Projection{counting()},
		Letters: deadletter.Writer{DB: pool}, Now: time.Now, MaxBatch: 20,
	})
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- router.Run(ctx) }()
	go tellJoined(ctx, sub)
	select {
	case err := <-ended:
		if ctx.Err() == nil {
			return err
		}
		ended <- err
	case <-ctx.Done():
	}
	return errors.Join(router.Close(context.Background()), <-ended)
}

func tellJoined(ctx context.Context, sub *kafka.Subscriber) {
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for !sub.Joined() {
		select {
		case <-poll.C:
		case <-ctx.Done():
			return
		}
	}
	fmt.Println(hasJoined)
}

// memberProcess is such a process, seen from the test.
type memberProcess struct {
	slot   int
	cmd    *exec.Cmd
	stdin  io.Closer
	joined chan struct{} // closed once the group has taken it in
	ended  chan error

	mu     sync.Mutex
	output bytes.Buffer // what it has logged
}

func startMember(t *testing.T, cfg memberConfig) *memberProcess {
	t.Helper()
	arg, err := json.Marshal(cfg)
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	m := &memberProcess{slot: cfg.Slot, cmd: exec.Command(self), joined: make(chan struct{}), ended: make(chan error, 1)}
	m.cmd.Env = append(os.Environ(), memberEnv+"="+string(arg))
	m.cmd.Stderr = m
	m.stdin, err = m.cmd.StdinPipe()
	require.NoError(t, err)
	out, err := m.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, m.cmd.Start())
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if lines.Text() == hasJoined {
				close(m.joined)
			}
		}
		m.ended <- m.cmd.Wait()
	}()
	t.Cleanup(func() {
		m.kill(t)
		if t.Failed() {
			t.Logf("member in slot %d:\n%s", cfg.Slot, m.log())
		}
	})
	return m
}

// Write keeps what the process logs.
func (m *memberProcess) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.output.Write(p)
}

func (m *memberProcess) log() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.output.String()
}

func (m *memberProcess) joins(t *testing.T) {
	t.Helper()
	select {
	case <-m.joined:
	case err := <-m.ended:
		m.ended <- err
		require.FailNow(t, "a member has ended", "%v\n%s", err, m.log())
	case <-time.After(soon):
		require.FailNow(t, "a member does not join", "%s", m.log())
	}
}

func (m *memberProcess) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := m.cmd.Process.Signal(s); !errors.Is(err, os.ErrProcessDone) {
		require.NoError(t, err)
	}
}

// leave stops the process as an operator does, which must end well.
func (m *memberProcess) leave(t *testing.T) {
	t.Helper()
	m.signal(t, syscall.SIGTERM)
	select {
	case err := <-m.ended:
		m.ended <- nil
		require.NoError(t, err, "%s", m.log())
	case <-time.After(soon):
		require.FailNow(t, "a member does not end", "%s", m.log())
	}
}

// kill ends the process at once.
func (m *memberProcess) kill(t *testing.T) {
	t.Helper()
	m.signal(t, syscall.SIGKILL)
	<-m.ended
	m.ended <- nil
}
