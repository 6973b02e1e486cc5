package pgtest_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/cornjacket/platform-services/internal/pgtest"
)

const soon = 20 * time.Second

// envDie makes this test binary one that starts servers and dies.
const envDie = "PGTEST_DIE"

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, pgtest.IgnoreServer())
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func TestDatabasesAreEmptyAndApart(t *testing.T) {
	t.Parallel()
	var urls []string
	for range 3 {
		t.Run("Täst/with a name that is much longer than the 63 bytes that a database's may have", func(t *testing.T) {
			pool := pgtest.Pool(t, "")
			_, err := pool.Exec(t.Context(), "CREATE TABLE t (n int)") // fails if another one has made it
			require.NoError(t, err)
			urls = append(urls, pool.Config().ConnString())
		})
	}
	for _, url := range urls {
		_, err := pgx.Connect(t.Context(), url)
		require.ErrorContains(t, err, "does not exist", "databases must go with their tests")
	}
}

func TestRestartKeepsDataAndAddress(t *testing.T) {
	t.Parallel()
	if os.Getenv(pgtest.EnvURL) != "" {
		t.Log("private servers are started all the same")
	}
	pg := pgtest.Server(t)
	_, err := connect(t, pg.URL()).Exec(t.Context(), "CREATE TABLE t AS SELECT 42 AS n")
	require.NoError(t, err)
	url, pid := pg.URL(), pg.PID()
	pg = pgtest.Restart(t, pg)
	require.Equal(t, url, pg.URL())
	require.NotEqual(t, pid, pg.PID())
	var n int
	require.NoError(t, connect(t, pg.URL()).QueryRow(t.Context(), "SELECT n FROM t").Scan(&n))
	require.Equal(t, 42, n)
}

func TestFreezeHangsSessions(t *testing.T) {
	t.Parallel()
	pg := pgtest.Server(t)
	conn := connect(t, pg.URL())
	pgtest.Freeze(t, pg)
	answer := make(chan error, 1)
	go func() {
		_, err := conn.Exec(context.Background(), "SELECT 1")
		answer <- err
	}()
	select {
	case err := <-answer:
		require.FailNow(t, "a frozen server must not answer", "got %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	pgtest.Thaw(t, pg)
	require.NoError(t, <-answer)
}

// TestDie is not a test: it is what the next one kills.
func TestDie(t *testing.T) {
	out := os.Getenv(envDie)
	if out == "" {
		t.Skip("only as a child of TestServersDieWithTheProcess")
	}
	pgtest.URL(t)
	pg := pgtest.Server(t)
	part := out + ".part"
	require.NoError(t, os.WriteFile(part, []byte(strconv.Itoa(pg.PID())+" "+pg.Config().Dir), 0o600))
	require.NoError(t, os.Rename(part, out))
	select {}
}

func TestServersDieWithTheProcess(t *testing.T) {
	t.Parallel()
	tmp := t.TempDir()
	require.NoError(t, os.Chmod(tmp, 0o755))
	out := filepath.Join(tmp, "pid")
	cmd := exec.Command(os.Args[0], "-test.run=^TestDie$")
	cmd.Env = append(os.Environ(), envDie+"="+out, pgtest.EnvURL+"=")
	require.NoError(t, cmd.Start())
	var text []byte
	require.Eventually(t, func() bool {
		var err error
		text, err = os.ReadFile(out)
		return err == nil
	}, soon, 10*time.Millisecond)
	pidText, dir, _ := strings.Cut(string(text), " ")
	pid, err := strconv.Atoi(pidText)
	require.NoError(t, err)
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait() // it was killed
	require.Eventually(t, func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH }, soon, 10*time.Millisecond)
	require.Eventually(t, func() bool {
		left, err := filepath.Glob(filepath.Join(filepath.Dir(dir), "run-"+strconv.Itoa(cmd.Process.Pid)+"-*"))
		return err == nil && len(left) == 0
	}, soon, 10*time.Millisecond, "folders must be deleted, the shared server's too")
}
