package outbox_test

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/internal/pgtest"
	"github.com/cornjacket/platform-services/internal/proc"
	"github.com/cornjacket/platform-services/pubsub/outbox"
)

// A pooler that shares sessions is refused in one line that says what to do; one that gives each client a session of
// its own serves.
func TestSubscriberBehindAPooler(t *testing.T) {
	t.Parallel()
	const all = "extra_float_digits,options,tcp_keepalives_idle,tcp_keepalives_interval,tcp_keepalives_count,tcp_user_timeout," +
		"plan_cache_mode,enable_seqscan,enable_bitmapscan,enable_nestloop,jit,statement_timeout,application_name"
	for name, c := range map[string]struct {
		mode, ignores string
		refused       bool
	}{
		"transactions": {"transaction", all, true}, "settings refused": {"transaction", "extra_float_digits", true}, "sessions": {"session", all, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			direct := pgtest.URL(t)
			newStore(t, direct)
			pool, err := pgxpool.New(t.Context(), startPooler(t, direct, c.mode, c.ignores))
			require.NoError(t, err)
			t.Cleanup(pool.Close)
			sub := outbox.NewSubscriber(pool, outbox.SubscriberConfig{Poll: 20 * time.Millisecond})
			out, err := sub.Subscribe(t.Context(), outbox.Topic)
			require.NoError(t, err)
			t.Cleanup(func() { drain(t, sub, out) })
			require.Eventually(t, func() bool {
				s := sub.State()
				return s.Leading != c.refused && (s.Err != nil) == c.refused
			}, soon, tick)
			if c.refused {
				require.ErrorContains(t, sub.State().Err, "INGESTION_DATABASE_URL leads to a pooler that shares sessions")
			}
		})
	}
}

// startPooler returns the URL of a database behind pgbouncer.
func startPooler(t *testing.T, direct, mode, ignores string) string {
	t.Helper()
	path, err := exec.LookPath("pgbouncer")
	if err != nil {
		t.Skip("pgbouncer is not on this machine")
	}
	u, err := url.Parse(direct)
	require.NoError(t, err)
	password, _ := u.User.Password()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	_, port, err := net.SplitHostPort(ln.Addr().String())
	require.NoError(t, err)
	require.NoError(t, ln.Close())
	dir, err := os.MkdirTemp("", "pgbouncer") //nolint:usetesting // another user has to read it
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755))
	config := filepath.Join(dir, "pgbouncer.ini")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, `[databases]
* = host=%s port=%s user=%s password=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %s
unix_socket_dir =
auth_type = any
pool_mode = %s
ignore_startup_parameters = %s
`, u.Hostname(), u.Port(), u.User.Username(), password, port, mode, ignores), 0o644))
	args := []string{config}
	if os.Getuid() == 0 {
		args = []string{"-u", "nobody", config}
	}
	cmd := exec.Command(path, args...)
	p, err := proc.Start(cmd, syscall.SIGKILL)
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = p.Signal(syscall.SIGKILL)
		<-p.Done()
	})
	require.Eventually(t, func() bool {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	}, soon, tick, "pgbouncer listens")
	u.Host = "127.0.0.1:" + port
	return u.String()
}
