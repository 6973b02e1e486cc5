// Package pgtest gives tests a real PostgreSQL: an empty database of their own on a server that all tests of the
// process share, or a server of their own to be stopped, frozen and restarted.
//
// The shared server starts when it is first asked for and ends with the process, also when that panics or is killed.
// With TEST_DATABASE_URL set, a superuser's connection string, that server is used in its place.
package pgtest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/cornjacket/platform-services/internal/devstack"
	"github.com/cornjacket/platform-services/internal/proc"
)

// EnvURL names a server to use in place of one that is started.
const EnvURL = "TEST_DATABASE_URL"

const (
	startTimeout = time.Minute
	stopTimeout  = 20 * time.Second
)

// sharedServer is the server of this process. It keeps its guard.
type sharedServer struct {
	url   string
	guard *proc.Guard
}

// shared starts the server of this process, once.
var shared = sync.OnceValues(func() (sharedServer, error) {
	if u := os.Getenv(EnvURL); u != "" {
		return sharedServer{url: u}, nil
	}
	pg, guard, err := start()
	if err != nil {
		return sharedServer{}, err
	}
	return sharedServer{url: pg.URL(), guard: guard}, nil
})

// URL returns the connection string of a fresh, empty database, which is dropped when the test ends.
func URL(tb testing.TB) string {
	tb.Helper()
	server, err := shared()
	if err != nil {
		tb.Fatalf("start PostgreSQL for tests: %v", err)
	}
	return database(tb, server.url)
}

// Pool returns a pool of connections to a database, closed when the test ends. With an empty url it is a fresh
// database as of [URL].
func Pool(tb testing.TB, url string) *pgxpool.Pool {
	tb.Helper()
	if url == "" {
		url = URL(tb)
	}
	pool, err := pgxpool.New(context.Background(), url)
	if err != nil {
		tb.Fatalf("open pool: %v", err)
	}
	tb.Cleanup(pool.Close)
	return pool
}

// Server starts a server for this test alone, stopped when the test ends. It has one database, empty.
func Server(tb testing.TB) *devstack.Postgres {
	tb.Helper()
	pg, guard, err := start()
	if err != nil {
		tb.Fatalf("start PostgreSQL for this test: %v", err)
	}
	tb.Cleanup(func() {
		stop(tb, pg)
		if err := guard.Close(); err != nil {
			tb.Error(err)
		}
	})
	return pg
}

// Freeze stops a server and all its sessions with SIGSTOP, as if the machine hung: connections stay and nothing
// answers. It is thawed when the test ends, at the latest.
func Freeze(tb testing.TB, pg *devstack.Postgres) {
	tb.Helper()
	signal(tb, pg, syscall.SIGSTOP)
	tb.Cleanup(func() {
		select {
		case <-pg.Done():
		default:
			signal(tb, pg, syscall.SIGCONT)
		}
	})
}

// Thaw lets a frozen server go on.
func Thaw(tb testing.TB, pg *devstack.Postgres) {
	tb.Helper()
	signal(tb, pg, syscall.SIGCONT)
}

// signal reaches the server before its children: it can't have new ones that are missed.
func signal(tb testing.TB, pg *devstack.Postgres, sig syscall.Signal) {
	tb.Helper()
	if err := syscall.Kill(pg.PID(), sig); err != nil {
		tb.Fatalf("send %v to PostgreSQL: %v", sig, err)
	}
	out, err := exec.Command("ps", "-A", "-o", "pid=,ppid=").Output()
	if err != nil {
		tb.Fatalf("list sessions of PostgreSQL: %v", err)
	}
	for line := range strings.Lines(string(out)) {
		var pid, parent int
		if _, err := fmt.Sscan(line, &pid, &parent); err == nil && parent == pg.PID() {
			_ = syscall.Kill(pid, sig) // a session may have ended meanwhile
		}
	}
}

// Restart starts a server again that has ended or is to be ended, on the same port with the same data.
func Restart(tb testing.TB, pg *devstack.Postgres) *devstack.Postgres {
	tb.Helper()
	stop(tb, pg)
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	again, err := devstack.StartPostgres(ctx, pg.Config())
	if err != nil {
		tb.Fatalf("restart PostgreSQL: %v", err)
	}
	tb.Cleanup(func() { stop(tb, again) })
	return again
}

// IgnoreServer tells goleak of the goroutines that watch servers, which the shared one has as long as the process.
func IgnoreServer() goleak.Option {
	return goleak.IgnoreAnyFunction("github.com/cornjacket/platform-services/internal/proc.(*Process).run")
}

func stop(tb testing.TB, pg *devstack.Postgres) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if err := pg.Stop(ctx); err != nil {
		tb.Errorf("stop PostgreSQL: %v", err)
	}
}

// start starts a server in a folder of its own, which the guard deletes when this process has ended.
func start() (*devstack.Postgres, *proc.Guard, error) {
	root, err := rootDir()
	if err != nil {
		return nil, nil, err
	}
	dir, err := runDir(root)
	if err != nil {
		return nil, nil, err
	}
	guard, err := proc.StartGuard(dir, filepath.Join(dir, "data", "postmaster.pid"))
	if err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	pg, err := devstack.StartPostgres(ctx, devstack.PostgresConfig{
		Dir: dir, Addr: "127.0.0.1:0", User: "cornjacket", Password: "cornjacket", Database: "cornjacket",
		NoSync: true, Template: root, Log: slog.New(slog.DiscardHandler),
		Settings: map[string]string{"max_connections": "400", "max_wal_size": "2GB"},
	})
	if err != nil {
		return nil, nil, errors.Join(err, guard.Close())
	}
	return pg, guard, nil
}

var notName = regexp.MustCompile(`[^a-z0-9]+`)

// database creates a database, named after the test for those who look, and returns its connection string.
func database(tb testing.TB, admin string) string {
	tb.Helper()
	unique := make([]byte, 6)
	_, _ = rand.Read(unique) // never fails (crypto/rand)
	label := strings.Trim(notName.ReplaceAllString(strings.ToLower(tb.Name()), "_"), "_")
	name := fmt.Sprintf("%.45s_%s", label, hex.EncodeToString(unique)) // 63 bytes at most
	u, err := url.Parse(admin)
	if err != nil || u.Host == "" {
		tb.Fatalf("%s must be a URL such as postgres://user:password@host:5432/postgres", EnvURL)
	}
	// template0 has no connections, which would be in the way, and nothing in it.
	execute(tb, admin, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()+" TEMPLATE template0")
	tb.Cleanup(func() {
		execute(tb, admin, "DROP DATABASE IF EXISTS "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)")
	})
	u.Path = "/" + name
	return u.String()
}

func execute(tb testing.TB, url, sql string) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		tb.Fatalf("connect to PostgreSQL for tests: %v", err)
	}
	_, err = conn.Exec(ctx, sql)
	if err = errors.Join(err, conn.Close(ctx)); err != nil {
		tb.Fatalf("%s: %v", sql, err)
	}
}
