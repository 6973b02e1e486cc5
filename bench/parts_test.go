package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/pgtest"
)

func origin() event.Origin { return event.Origin{Source: "http", Now: time.Now(), NewID: uuid.New} }

// door takes events as ingestion does.
type door struct {
	mu     sync.Mutex
	events []event.Envelope
	answer atomic.Int32
}

func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if status := d.answer.Load(); status != 0 {
		w.WriteHeader(int(status))
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	accepted, rejected, err := event.ParseBatch(body, origin())
	if err != nil || len(rejected) > 0 {
		w.WriteHeader(http.StatusUnprocessableEntity)
		return
	}
	d.mu.Lock()
	d.events = append(d.events, accepted...)
	d.mu.Unlock()
	w.WriteHeader(http.StatusAccepted)
}

func (d *door) devices() map[string]int {
	n := make(map[string]int)
	for _, e := range d.events {
		n[e.AggregateID]++
	}
	return n
}

func TestLoadSendsWhatItSays(t *testing.T) {
	t.Parallel()
	for name, send := range map[string]func(url string, ids []string) error{
		"http": func(url string, ids []string) error {
			_, err := sendHTTP(t.Context(), url, ids, 1234, 0)
			return err
		},
		"batch with a rest": func(url string, ids []string) error {
			s := newBatchSender(url, ids, 1234)
			_, err := s.run(t.Context())
			if err == nil && s.sent.Load() != 1234 {
				return fmt.Errorf("%d events are counted as sent", s.sent.Load())
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := &door{}
			server := httptest.NewServer(d)
			defer server.Close()
			require.NoError(t, send(server.URL, deviceNames(devices)))
			require.Len(t, d.events, 1234)
			require.Len(t, d.devices(), devices)

			hot := &door{}
			hotServer := httptest.NewServer(hot)
			defer hotServer.Close()
			require.NoError(t, send(hotServer.URL, deviceNames(1)))
			require.Equal(t, map[string]int{"device-001": 1234}, hot.devices())

			d.answer.Store(http.StatusServiceUnavailable)
			require.ErrorContains(t, send(server.URL, deviceNames(devices)), "503")
		})
	}
}

func TestLoadKeepsItsRate(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(&door{})
	defer server.Close()
	begin, err := sendHTTP(t.Context(), server.URL, deviceNames(3), 100, 200)
	require.NoError(t, err)
	require.GreaterOrEqual(t, time.Since(begin), 99*time.Second/200)
}

func TestSideload(t *testing.T) {
	t.Parallel()
	forever := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	require.NoError(t, startSideload(t.Context(), forever).stop())
	broken := errors.New("broken")
	require.ErrorIs(t, startSideload(t.Context(), func(context.Context) error { return broken }).stop(), broken)
}

func start(t *testing.T, program string, args ...string) *child {
	t.Helper()
	c, err := startChild("child", filepath.Join(t.TempDir(), "log"), []string{"GREETING=hello"}, program, args...)
	require.NoError(t, err)
	t.Cleanup(func() {
		if c.failure() == nil {
			c.kill()
		}
	})
	return c
}

func TestChildStops(t *testing.T) {
	t.Parallel()
	c := start(t, "sh", "-c", `trap 'exit 0' TERM; echo "$GREETING"; while :; do read x || exit 7; done`)
	require.NoError(t, c.await(t.Context(), "greets", func() (bool, error) {
		log, err := os.ReadFile(c.log)
		return strings.Contains(string(log), "hello"), err
	}))
	require.NoError(t, c.life.Close()) // what the death of this process would do
	<-c.Done()
	require.ErrorContains(t, c.failure(), "exit status 7")
	require.NoError(t, c.stop(), "it was told already")

	c = start(t, "sh", "-c", `trap 'exit 0' TERM; echo ready; while :; do read -r x < /dev/null; done`)
	require.NoError(t, c.await(t.Context(), "is ready", func() (bool, error) {
		log, err := os.ReadFile(c.log)
		return len(log) > 0, err
	}))
	require.NoError(t, c.stop())
}

func TestChildThatDies(t *testing.T) {
	t.Parallel()
	c := start(t, "sleep", "1000")
	ctx, cancel := c.alive(t.Context())
	defer cancel(nil)
	require.NoError(t, c.failure())
	require.NoError(t, c.Signal(syscall.SIGKILL))
	<-ctx.Done()
	require.ErrorContains(t, because(ctx, ctx.Err()), "child ended (signal: killed)")
	require.ErrorContains(t, c.await(t.Context(), "is ready", func() (bool, error) { return false, nil }), "killed")
}

func TestTailShowsPanics(t *testing.T) {
	t.Parallel()
	log := filepath.Join(t.TempDir(), "log")
	require.NoError(t, os.WriteFile(log, []byte("one\npanic: oh no\n"+strings.Repeat("at\n", 100)), 0o644))
	require.Contains(t, tail(log), "panic: oh no")
	require.NoError(t, os.WriteFile(log, []byte(strings.Repeat("line\n", 100)+"end\n"), 0o644))
	require.True(t, strings.HasSuffix(tail(log), "line\n    end"))
	require.Equal(t, 6, strings.Count(tail(log), "\n")+1)
}

func TestStat(t *testing.T) {
	t.Parallel()
	s, err := parseStat("42 (a b) S) S 7 42 42 0 -1 4194304 1 2 3 4 150 50 25 75 20 0 1 0 100 0 0")
	require.NoError(t, err)
	require.Equal(t, stat{parent: 7, own: 2 * time.Second, reaped: time.Second}, s)
	_, err = parseStat("42 (x) S 7")
	require.Error(t, err)

	used, err := cpuTime(os.Getpid())
	require.NoError(t, err)
	require.GreaterOrEqual(t, used, time.Duration(0))
	now, peak, err := memory(os.Getpid())
	require.NoError(t, err)
	require.Greater(t, now, float64(mib))
	require.GreaterOrEqual(t, peak, now/2)
}

func TestFileSystem(t *testing.T) {
	t.Parallel()
	mounts := "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/b /tmpx xfs rw 0 0\n"
	require.Equal(t, "tmpfs on tmpfs", fileSystem(mounts, "/tmp/bench"))
	require.Equal(t, "xfs on /dev/b", fileSystem(mounts, "/tmpx"))
	require.Equal(t, "ext4 on /dev/a", fileSystem(mounts, "/home/x"))
	require.Empty(t, fileSystem("", "/tmp"))
}

func TestWatcher(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	require.NoError(t, migrate(t.Context(), url))
	w, err := newWatcher(t.Context(), url, deviceNames(2))
	require.NoError(t, err)
	t.Cleanup(w.close)
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { closeConn(conn) })
	exec := func(sql string, args ...any) {
		_, err := conn.Exec(t.Context(), sql, args...)
		require.NoError(t, err)
	}
	applied := func() bool {
		ok, err := w.applied(t.Context(), 2)
		require.NoError(t, err)
		return ok
	}
	store := func(device string, position int) {
		exec(`INSERT INTO event_store (event_id, event_type, aggregate_id, event_time, ingested_at, payload, metadata, position)
			VALUES (gen_random_uuid(), 'sensor.reading', $1, now(), now(), '{}', '{}', $2)`, device, position)
	}
	project := func(device string, position int) {
		exec(`INSERT INTO projections (projection_type, aggregate_id, state, last_event_id, last_event_timestamp, position)
			VALUES ('sensor_state', $1, '{}', gen_random_uuid(), now(), $2)
			ON CONFLICT (projection_type, aggregate_id) DO UPDATE SET position = excluded.position`, device, position)
	}
	require.False(t, applied(), "nothing is stored")
	store("device-001", 1)
	project("device-001", 1)
	require.False(t, applied(), "one event is missing")
	store("device-002", 3) // position 2 was a repeated event
	require.False(t, applied(), "a projection is missing")
	project("device-002", 2)
	require.False(t, applied(), "a projection is behind")
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = w.await(short, 2)
	require.ErrorContains(t, err, "2 are stored, 0 wait in the outbox, 0 are dead letters, projections of 1 devices are behind")

	w2, err := newWatcher(t.Context(), url, deviceNames(2)) // the deadline may have cost the first its connection
	require.NoError(t, err)
	t.Cleanup(w2.close)
	project("device-002", 3)
	_, err = w2.await(t.Context(), 2)
	require.NoError(t, err)
	complete, err := w2.complete(t.Context(), 3)
	require.NoError(t, err)
	require.False(t, complete, "the newest position is 3, but one event is missing")
	_, err = w2.await(t.Context(), 1)
	require.ErrorContains(t, err, "invalid: 1 events were sent, 2 are stored")
}
