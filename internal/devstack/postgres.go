package devstack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/cornjacket/platform-services/internal/proc"
)

const (
	maxLog     = 10 << 20 // bytes of postgres.log beyond which a start begins a new one
	startTries = 5        // with a port of our own choosing that somebody else took meanwhile
	quitWait   = 10 * time.Second
)

// PostgresConfig configures a [Postgres].
type PostgresConfig struct {
	// Dir is the base folder: data in Dir/data, log in Dir/postgres.log. It is created if need be. Run by root, with a
	// folder that the user postgres can't reach, Dir/data is a link to a folder below /var/lib/cornjacket.
	Dir string
	// Addr is the address to listen on, host:port; port 0 picks a free one.
	Addr string
	// User and Password are the superuser's; a Dir that exists keeps those it was made with.
	User, Password string
	// Database is created when it is missing.
	Database string
	// NoSync gives up durability for speed; for tests.
	NoSync bool
	// CacheDir is where fetched binaries are kept. Empty means cornjacket in the user's cache folder. Root uses
	// /var/cache/cornjacket where the user postgres can't reach that.
	CacheDir string
	// Template, if set, is a folder where fresh data folders are kept to be copied, which is faster than to make each
	// one anew; for tests.
	Template string
	// Settings are further parameters of the server, as in postgresql.conf.
	Settings map[string]string
	// Log takes what is worth telling the user. Nil means slog.Default.
	Log *slog.Logger
}

// Postgres is a PostgreSQL server that runs as a child process and ends with this one, also when this one is killed
// (Linux; elsewhere the next StartPostgres on the folder stops it). Its methods may be called concurrently.
type Postgres struct {
	cfg     PostgresConfig
	data    string
	process *proc.Process
	log     *serverLog
	lock    *Lock
	failure func() error // why the process ended, with what its log said then
}

// StartPostgres starts a server and returns once it answers. It uses the programs that the machine has, or fetches
// them; a server that a killed process left behind on the folder is stopped first. ctx bounds the start only. Errors
// quote the server's log; ErrLocked says that another process runs a server on the folder.
func StartPostgres(ctx context.Context, cfg PostgresConfig) (*Postgres, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("create folder of PostgreSQL: %w", err)
	}
	lock, err := lockFile(filepath.Join(cfg.Dir, "postgres.lock"))
	if err != nil {
		return nil, fmt.Errorf("start PostgreSQL in %s: %w", cfg.Dir, err)
	}
	p, err := cfg.start(ctx, lock)
	if err != nil {
		_ = lock.Close() // closing is all it takes
		return nil, fmt.Errorf("start PostgreSQL: %w", err)
	}
	return p, nil
}

func (c *PostgresConfig) start(ctx context.Context, lock *Lock) (*Postgres, error) {
	id, err := serverIdentity()
	if err != nil {
		return nil, err
	}
	data, err := c.dataFolder(id)
	if err != nil {
		return nil, fmt.Errorf("find data folder: %w", err)
	}
	major, err := dataMajor(data)
	if err != nil {
		return nil, err
	}
	bin, err := findBinaries(ctx, id, c.CacheDir, major, c.Log)
	if err != nil {
		return nil, err
	}
	if major == 0 {
		if err := c.createData(ctx, id, bin, data); err != nil {
			return nil, fmt.Errorf("create data folder: %w", err)
		}
	}
	if err := stopOrphan(data); err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		addr, picked, err := pickPort(c.Addr)
		if err != nil {
			return nil, err
		}
		cfg := *c
		cfg.Addr = addr
		p, err := cfg.launch(ctx, id, bin, data, lock)
		if err == nil {
			return p, nil
		}
		if !picked || try == startTries || !strings.Contains(err.Error(), "Address already in use") {
			return nil, err
		}
	}
}

// pickPort replaces a port 0 by one that is free right now.
func pickPort(addr string) (string, bool, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", false, fmt.Errorf("read address: %w", err)
	}
	if port != "0" {
		return addr, false, nil
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return "", false, fmt.Errorf("pick a port: %w", err)
	}
	defer func() { _ = ln.Close() }() // nothing was ever sent on it
	return net.JoinHostPort(host, strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)), true, nil
}

// launch starts the server process and waits until it can be used.
func (c *PostgresConfig) launch(ctx context.Context, id identity, bin binaries, data string, lock *Lock) (*Postgres, error) {
	log, err := openLog(filepath.Join(c.Dir, "postgres.log"))
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(bin.path("postgres"), c.args(data)...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log.file, log.file
	cmd.SysProcAttr = id.attr()
	process, err := proc.Start(cmd, syscall.SIGINT)
	if err = errors.Join(err, log.file.Close()); err != nil { // the server has its own copy
		return nil, err
	}
	p := &Postgres{cfg: *c, data: data, process: process, log: log, lock: lock}
	p.failure = sync.OnceValue(p.ended)
	if err := p.ready(ctx); err != nil {
		// The lock goes back to the caller, who may try again: the process must be gone by then.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), quitWait)
		defer cancel()
		return nil, errors.Join(err, process.Stop(ctx, syscall.SIGQUIT))
	}
	c.Log.Debug("PostgreSQL is ready", "version", bin.version, "programs", bin.dir, "data", data, "address", c.Addr, "pid", p.PID())
	return p, nil
}

func (c *PostgresConfig) args(data string) []string {
	host, port, _ := net.SplitHostPort(c.Addr) // was split before
	if host == "" {
		host = "*"
	}
	settings := map[string]string{
		"listen_addresses":        host,
		"port":                    port,
		"unix_socket_directories": "", // a path of a socket may have 107 bytes, fewer than some folders
		"max_connections":         "200",
		"logging_collector":       "off",
		"log_destination":         "stderr",
	}
	if c.NoSync {
		settings["fsync"], settings["synchronous_commit"], settings["full_page_writes"] = "off", "off", "off"
	}
	maps.Copy(settings, c.Settings)
	args := []string{"-D", data}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	return args
}

// ended returns why the process has ended, nil after a stop that went well.
func (p *Postgres) ended() error {
	if err := p.process.Err(); err != nil {
		return fmt.Errorf("PostgreSQL %w%s", err, p.log.quote())
	}
	return nil
}

// ready waits until the server answers, and creates the database. It looks at the server's own word for it before it
// connects: another program may listen on the address.
func (p *Postgres) ready(ctx context.Context) error {
	if err := p.process.Await(ctx, func() (bool, error) { return p.saysReady(), nil }); err != nil {
		return cmp.Or(p.Err(), fmt.Errorf("wait until it is ready: %w%s", err, p.log.quote()))
	}
	conn, err := pgx.Connect(ctx, p.url("postgres"))
	var answer *pgconn.PgError
	if errors.As(err, &answer) && strings.HasPrefix(answer.Code, "28") { // invalid authorization
		return fmt.Errorf("the data folder was made with another user or password (--fresh deletes it): %w", err)
	}
	if err != nil {
		return fmt.Errorf("connect: %w%s", err, p.log.quote())
	}
	return errors.Join(p.createDatabase(ctx, conn), conn.Close(ctx))
}

// saysReady reports whether the server has written so into its postmaster.pid: process ID in line 1, status in line 8
// (PostgreSQL's src/include/utils/pidfile.h).
func (p *Postgres) saysReady() bool {
	text, err := os.ReadFile(filepath.Join(p.data, "postmaster.pid"))
	if err != nil {
		return false // not there yet
	}
	lines := strings.Split(string(text), "\n")
	return len(lines) >= 8 && strings.TrimSpace(lines[0]) == strconv.Itoa(p.PID()) && strings.TrimSpace(lines[7]) == "ready"
}

func (p *Postgres) createDatabase(ctx context.Context, conn *pgx.Conn) error {
	var there bool
	err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", p.cfg.Database).Scan(&there)
	if err == nil && !there {
		_, err = conn.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{p.cfg.Database}.Sanitize())
	}
	if err != nil {
		return fmt.Errorf("create database %s: %w", p.cfg.Database, err)
	}
	return nil
}

func (p *Postgres) url(database string) string {
	host, port, _ := net.SplitHostPort(p.cfg.Addr) // was split before
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(p.cfg.User, p.cfg.Password), Host: net.JoinHostPort(host, port),
		Path: "/" + database, RawQuery: "sslmode=disable",
	}
	return u.String()
}

// URL returns the connection string of the database.
func (p *Postgres) URL() string { return p.url(p.cfg.Database) }

// Addr returns the address that the server listens on, host:port.
func (p *Postgres) Addr() string { return p.cfg.Addr }

// PID returns the ID of the server process.
func (p *Postgres) PID() int { return p.process.PID() }

// Config returns what the server was started with, with the port that it has: StartPostgres with it, after Stop,
// starts the same server again.
func (p *Postgres) Config() PostgresConfig { return p.cfg }

// Done is closed when the server process has ended, for whatever reason.
func (p *Postgres) Done() <-chan struct{} { return p.process.Done() }

// Err returns nil until Done is closed, and after a Stop that went well; else why the server ended, with the last
// lines of its log.
func (p *Postgres) Err() error {
	select {
	case <-p.Done():
		return p.failure()
	default:
		return nil
	}
}

// Stop ends the server: it breaks off its sessions and writes a checkpoint. If ctx ends before that is done the server
// stops at once, to recover at its next start, and Stop returns ctx's error. Stopping again is fine, and a server that
// has ended by itself wants a Stop too, before another one is started on its folder.
func (p *Postgres) Stop(ctx context.Context) error {
	err := p.process.Stop(ctx, syscall.SIGINT, syscall.SIGQUIT)
	select {
	case <-p.Done():
		if closeErr := p.lock.Close(); closeErr != nil && !errors.Is(closeErr, os.ErrClosed) {
			err = errors.Join(err, closeErr)
		}
	default: // it still runs, and keeps others off its data
	}
	if err != nil {
		return fmt.Errorf("stop PostgreSQL: %w", err)
	}
	return nil
}
