package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cornjacket/platform-services/internal/devstack"
)

const (
	minEvents  = 1000
	devices    = 200
	slowest    = 300 // events per second that a measurement may fall to before it is given up
	startLimit = 60 * time.Second
	stopLimit  = 30 * time.Second
)

// bench is one run of the program.
type bench struct {
	opts     options
	dir      string
	platform string // binary
	pg       *devstack.Postgres
	results  *results
	progress io.Writer
	begun    time.Time
	rigs     int
}

// measurement is one thing that is measured, once a round.
type measurement struct {
	name  string
	extra bool // only made when it is asked for
	run   func(ctx context.Context, b *bench) error
	limit func(o *options) time.Duration
}

// measurements are in the order in which they are made.
func measurements() []measurement {
	return []measurement{
		{name: "ceiling", run: measureCeiling, limit: forEvents(3)},
		{name: "mqtt", run: measureMQTT, limit: forEvents(2)},
		{name: "http", run: measureHTTP, limit: forEvents(1)},
		{name: "batch", run: measureBatch, limit: forEvents(2)},
		{name: "stock", run: measureStock, limit: forEvents(1)},
		{name: "drain", run: measureDrain, limit: forEvents(4)},
		{name: "latency", run: measureLatency, limit: func(o *options) time.Duration {
			return forEvents(2)(o) + 4*(o.latencyFor+latencyWarmUp) + 2*time.Minute
		}},
		{name: "idle", run: measureIdle, limit: func(*options) time.Duration { return idleSettle + idleFor + 2*time.Minute }},
		{name: "rot", extra: true, run: measureRot, limit: func(o *options) time.Duration {
			return 2*time.Minute + 2*time.Duration(o.rotEvents/slowest)*time.Second
		}},
	}
}

// forEvents bounds a measurement that sends the events of the flag a number of times.
func forEvents(times int) func(o *options) time.Duration {
	return func(o *options) time.Duration {
		return 2*time.Minute + time.Duration(times*o.events/slowest)*time.Second
	}
}

func names() []string {
	var all []string
	for _, m := range measurements() {
		all = append(all, m.name)
	}
	return all
}

// benchmark makes all measurements and writes the table. What could be measured is shown also when something failed.
func benchmark(ctx context.Context, opts options, stdout, progress io.Writer) (err error) {
	b := &bench{opts: opts, results: newResults(), progress: progress, begun: time.Now()}
	defer func() {
		if closeErr := b.close(); closeErr != nil {
			err = errors.Join(err, closeErr)
		}
	}()
	if err := b.prepare(ctx); err != nil {
		return err
	}
	host, err := b.machine(ctx)
	if err != nil {
		return err
	}
	failed := b.rounds(ctx)
	if b.results.empty() {
		return failed
	}
	if err := b.results.writeText(stdout, host); err != nil {
		return errors.Join(failed, fmt.Errorf("print the table: %w", err))
	}
	if opts.markdown != "" {
		if err := b.results.writeMarkdown(opts.markdown, host, b.opts); err != nil {
			return errors.Join(failed, err)
		}
	}
	return failed
}

// rounds makes the measurements in turn, so that a machine that gets slower or faster does so to all of them.
func (b *bench) rounds(ctx context.Context) error {
	var failed []error
	for round := range b.opts.rounds {
		for _, m := range measurements() {
			if !b.opts.selected(m) {
				continue
			}
			b.say("round %d of %d: %s", round+1, b.opts.rounds, m.name)
			if err := b.measure(ctx, m); err != nil {
				if ctx.Err() != nil {
					return errors.Join(append(failed, errors.New("stopped by a signal"))...)
				}
				err = fmt.Errorf("%s, round %d: %w", m.name, round+1, err)
				b.say("FAILED %v", err)
				failed = append(failed, err)
			}
		}
	}
	return errors.Join(failed...)
}

func (b *bench) measure(ctx context.Context, m measurement) error {
	limit := m.limit(&b.opts)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done after %s", limit))
	defer cancel()
	return because(ctx, m.run(ctx, b))
}

// prepare makes the folder, builds the platform and starts PostgreSQL.
func (b *bench) prepare(ctx context.Context) error {
	dir, err := os.MkdirTemp(b.opts.dir, "cornjacket-bench-")
	if err != nil {
		return fmt.Errorf("create folder for the data: %w", err)
	}
	b.dir = dir
	if err := os.Chmod(dir, 0o755); err != nil { // PostgreSQL runs as another user when this process is root
		return fmt.Errorf("open folder for the servers: %w", err)
	}
	if b.platform = b.opts.platform; b.platform == "" {
		b.say("building the platform")
		if b.platform, err = buildPlatform(ctx, dir); err != nil {
			return err
		}
	}
	b.say("starting PostgreSQL in %s", dir)
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	b.pg, err = devstack.StartPostgres(ctx, devstack.PostgresConfig{
		Dir: filepath.Join(dir, "postgres"), Addr: "127.0.0.1:0", User: "bench", Password: "bench", Database: "bench",
	})
	return err
}

func (b *bench) close() error {
	var errs []error
	if b.pg != nil {
		ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
		defer cancel()
		errs = append(errs, b.pg.Stop(ctx))
	}
	switch {
	case b.dir == "":
	case b.opts.keep:
		b.say("data and logs are kept in %s", b.dir)
	default:
		if err := os.RemoveAll(b.dir); err != nil {
			errs = append(errs, fmt.Errorf("delete the data: %w", err))
		}
	}
	return errors.Join(errs...)
}

// say writes one line of progress.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.progress, "%7.1fs  %s\n", time.Since(b.begun).Seconds(), fmt.Sprintf(format, args...))
}

// createDatabase makes an empty database and returns its URL.
func (b *bench) createDatabase(ctx context.Context, name string) (string, error) {
	if err := b.admin(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()); err != nil {
		return "", err
	}
	u, err := url.Parse(b.pg.URL())
	if err != nil {
		return "", fmt.Errorf("read URL of the database: %w", err)
	}
	u.Path = "/" + name
	return u.String(), nil
}

func (b *bench) dropDatabase(ctx context.Context, name string) error {
	if b.opts.keep {
		return nil
	}
	return b.admin(ctx, "DROP DATABASE IF EXISTS "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)")
}

// checkpoint lets every measurement begin with the same amount of dirty pages: none.
func (b *bench) checkpoint(ctx context.Context) error { return b.admin(ctx, "CHECKPOINT") }

func (b *bench) admin(ctx context.Context, statement string) error {
	conn, err := pgx.Connect(ctx, b.pg.URL())
	if err != nil {
		return fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	_, err = conn.Exec(ctx, statement)
	closeConn(conn)
	if err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	return nil
}

// closeConn closes a connection that is not needed any more; the server notices either way.
func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}
