package devstack

import (
	"context"
	"log/slog"
	"net"
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

	"github.com/cornjacket/platform-services/internal/proc"
)

const (
	soon = 30 * time.Second

	envDie   = "DEVSTACK_TEST_DIE"   // what to run until killed: postgres or kafka
	envDir   = "DEVSTACK_TEST_DIR"   // where
	envFetch = "DEVSTACK_TEST_FETCH" // allows the test that downloads 10 MB
)

func TestMain(m *testing.M) {
	if what := os.Getenv(envDie); what != "" {
		runUntilKilled(what, os.Getenv(envDir))
	}
	goleak.VerifyTestMain(m)
}

func config(t *testing.T) PostgresConfig {
	t.Helper()
	return testConfig(filepath.Join(openDir(t), "postgres"))
}

// openDir is a temporary folder that everybody can reach, unlike those of testing.
func openDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.Chmod(filepath.Dir(dir), 0o755))
	return dir
}

// testConfig has a template that is shared by all tests of this package and by later runs.
func testConfig(dir string) PostgresConfig {
	return PostgresConfig{
		Dir: dir, Addr: "127.0.0.1:0", User: "cornjacket", Password: "p@ss:w/rd", Database: "cornjacket",
		NoSync: true, Template: filepath.Join(os.TempDir(), "cornjacket-devstack-test-"+strconv.Itoa(os.Getuid())),
		Log: slog.New(slog.DiscardHandler),
	}
}

func start(t *testing.T, cfg PostgresConfig) *Postgres {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	pg, err := StartPostgres(ctx, cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), soon)
		defer cancel()
		require.NoError(t, pg.Stop(ctx))
	})
	return pg
}

func stop(t *testing.T, pg *Postgres) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	require.NoError(t, pg.Stop(ctx))
	<-pg.Done()
}

func query(t *testing.T, pg *Postgres, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), pg.URL())
	require.NoError(t, err)
	defer conn.Close(context.Background())
	var answer string
	require.NoError(t, conn.QueryRow(t.Context(), sql).Scan(&answer))
	return answer
}

func TestPostgresKeepsItsData(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	cfg.Settings = map[string]string{"work_mem": "7MB"}
	pg := start(t, cfg)
	require.Equal(t, "7MB", query(t, pg, "SHOW work_mem"))
	require.Equal(t, "UTF8 C", query(t, pg, `SELECT pg_encoding_to_char(encoding) || ' ' || datcollate
		FROM pg_database WHERE datname = current_database()`))
	require.Equal(t, "scram-sha-256", query(t, pg, "SELECT string_agg(DISTINCT auth_method, ',') FROM pg_hba_file_rules"))
	query(t, pg, "SELECT set_config('x.y', '', false)")
	require.Equal(t, "1", query(t, pg, "WITH a AS (SELECT 1) SELECT count(*)::text FROM a"))
	_, err := StartPostgres(t.Context(), cfg)
	require.ErrorIs(t, err, ErrLocked)
	require.ErrorContains(t, err, strconv.Itoa(os.Getpid()))

	require.NoError(t, pg.Err())
	stop(t, pg)
	require.NoError(t, pg.Err())
	again := start(t, pg.Config())
	require.Equal(t, pg.URL(), again.URL())

	stop(t, again)
	wrong := again.Config()
	wrong.Password = "other"
	_, err = StartPostgres(t.Context(), wrong)
	require.ErrorContains(t, err, "--fresh")
}

func TestDurableByDefault(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	cfg.NoSync, cfg.Template = false, ""
	pg := start(t, cfg)
	require.Equal(t, "on on on", query(t, pg, `SELECT current_setting('fsync') || ' ' ||
		current_setting('synchronous_commit') || ' ' || current_setting('full_page_writes')`))
}

func TestServerThatCrashesSaysWhy(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	pg := start(t, cfg)
	require.NoError(t, syscall.Kill(pg.PID(), syscall.SIGQUIT))
	select {
	case <-pg.Done():
	case <-time.After(soon):
		require.FailNow(t, "the end was not noticed")
	}
	require.ErrorContains(t, pg.Err(), "immediate shutdown")
	stop(t, pg)
	start(t, cfg)
}

func TestTakenPortIsNamed(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	cfg := config(t)
	cfg.Addr = ln.Addr().String()
	_, err = StartPostgres(t.Context(), cfg)
	require.ErrorContains(t, err, "Address already in use")
	require.ErrorContains(t, err, "postgres.log")
}

func TestDataOfAnotherVersion(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	data := filepath.Join(cfg.Dir, "data")
	require.NoError(t, os.MkdirAll(data, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(data, "PG_VERSION"), []byte("9.6\n"), 0o600))
	_, err := StartPostgres(t.Context(), cfg)
	require.ErrorContains(t, err, "PostgreSQL 9 ")
	require.ErrorContains(t, err, "--fresh")
	require.FileExists(t, filepath.Join(data, "PG_VERSION"))
}

func TestOrphanIsStopped(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	pg := start(t, cfg)
	stop(t, pg)
	// The same server again, but nobody's child to speak of: it does not die with its parent.
	id, err := serverIdentity()
	require.NoError(t, err)
	bin, err := findBinaries(t.Context(), id, "", 0, cfg.Log)
	require.NoError(t, err)
	orphan := exec.Command(bin.path("postgres"), pg.cfg.args(pg.data)...)
	orphan.Dir = "/"
	orphan.SysProcAttr = id.attr()
	require.NoError(t, orphan.Start())
	ended := make(chan error, 1)
	go func() { ended <- orphan.Wait() }()
	require.Eventually(t, func() bool {
		text, err := os.ReadFile(filepath.Join(cfg.Dir, "data", "postmaster.pid"))
		return err == nil && strings.Contains(string(text), "ready")
	}, soon, 10*time.Millisecond)
	require.NoError(t, syscall.Kill(orphan.Process.Pid, syscall.SIGSTOP)) // it may even hang
	start(t, pg.Config())
	require.NoError(t, <-ended, "the orphan must have been shut down properly")
}

func TestPIDOfAnotherProcessIsLeftAlone(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	pg := start(t, cfg)
	stop(t, pg)
	other := exec.Command("sleep", "60")
	id, err := serverIdentity()
	require.NoError(t, err)
	other.Dir = "/"
	other.SysProcAttr = id.attr() // PostgreSQL minds only its own user's
	require.NoError(t, other.Start())
	pidFile := filepath.Join(cfg.Dir, "data", "postmaster.pid")
	require.NoError(t, os.WriteFile(pidFile, []byte(strconv.Itoa(other.Process.Pid)+"\n/some/where\n1\n1\n\n\n\n"), 0o600))
	require.NoError(t, id.own(pidFile))
	start(t, cfg)
	require.NoError(t, other.Process.Signal(syscall.Signal(0)), "it must live")
	require.NoError(t, other.Process.Kill())
	require.Error(t, other.Wait())
}

func TestServerEndsWithItsKilledParent(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(openDir(t), "postgres")
	cmd := startChild(t, "postgres", dir)
	var pid int
	require.Eventually(t, func() bool {
		text, err := os.ReadFile(filepath.Join(dir, "pid"))
		if err != nil {
			return false
		}
		pid, err = strconv.Atoi(string(text))
		return err == nil
	}, soon, 10*time.Millisecond)
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()                  // it was killed
	pg := start(t, testConfig(dir)) // at once: the old one is just about to notice
	require.Equal(t, "kept", query(t, pg, "SELECT s FROM t"))
	require.Eventually(t, func() bool { return !proc.Alive(pid) }, soon, 10*time.Millisecond)
}

func TestRootUsesAnotherFolder(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root has folders that the server's user can't reach")
	}
	base := filepath.Join(t.TempDir(), "private")
	lock, err := LockFolder(base)
	require.NoError(t, err)
	require.NoError(t, os.Chmod(base, 0o700))
	cfg := testConfig(filepath.Join(base, "postgres"))
	pg := start(t, cfg)
	to, err := os.Readlink(filepath.Join(cfg.Dir, "data"))
	require.NoError(t, err)
	require.Equal(t, elsewhereDir, filepath.Dir(filepath.Dir(to)))
	require.FileExists(t, filepath.Join(to, "PG_VERSION"))
	stop(t, pg)
	stop(t, start(t, cfg)) // finds its data again
	require.ErrorIs(t, Wipe(base), ErrLocked)
	require.NoError(t, lock.Close())
	require.NoError(t, Wipe(base))
	require.NoDirExists(t, filepath.Dir(to), "what lies elsewhere belongs to the folder")
	stop(t, start(t, cfg)) // from nothing

	require.NoError(t, os.RemoveAll(cfg.Dir)) // behind our back
	stop(t, start(t, cfg))
	aside, err := filepath.Glob(filepath.Dir(to) + ".old-*")
	require.NoError(t, err)
	require.Len(t, aside, 1, "data must neither come back nor be lost")
	require.NoError(t, os.RemoveAll(aside[0]))
	require.NoError(t, Wipe(base))
}

func TestFetch(t *testing.T) {
	t.Parallel()
	if os.Getenv(envFetch) == "" {
		t.Skip("downloads from Maven Central: set " + envFetch + "=1 to run it")
	}
	cache := openDir(t)
	into := filepath.Join(cache, "postgresql")
	require.NoError(t, fetch(t.Context(), cache, into))
	left, err := os.ReadDir(cache)
	require.NoError(t, err)
	require.Len(t, left, 2, "only the programs and the lock may stay")
	id, err := serverIdentity()
	require.NoError(t, err)
	bin, err := probe(t.Context(), filepath.Join(into, "bin"), id)
	require.NoError(t, err)
	cfg := config(t)
	require.NoError(t, os.MkdirAll(cfg.Dir, 0o755))
	data := filepath.Join(cfg.Dir, "data")
	require.NoError(t, cfg.initdb(t.Context(), id, bin, data))
	lock, err := lockFile(filepath.Join(cfg.Dir, "postgres.lock"))
	require.NoError(t, err)
	addr, _, err := pickPort(cfg.Addr)
	require.NoError(t, err)
	cfg.Addr = addr
	pg, err := cfg.launch(t.Context(), id, bin, data, lock)
	require.NoError(t, err)
	require.Contains(t, query(t, pg, "SELECT version()"), "PostgreSQL "+bin.version)
	stop(t, pg)
}

func startChild(t *testing.T, what, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envDie+"="+what, envDir+"="+dir)
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // in case the test did not come to it
	return cmd
}
