package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/internal/devstack"
	"github.com/cornjacket/platform-services/internal/pgtest"
)

// full is the long form of the fault tests, which `make e2e-faults` runs.
var full = os.Getenv("E2E_FAULTS") == "full"

// longer returns the first value in the short form of the fault tests and the second in the long one.
func longer[T any](short, long T) T {
	if full {
		return long
	}
	return short
}

var reserved sync.Map

// fixedAddr returns an address that is free and stays so while nobody listens on it: it lies below the ports that
// systems give to outgoing connections, so that a server can be stopped and started on it.
func fixedAddr(t testing.TB) string {
	t.Helper()
	for range 1000 {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(20_000+rand.IntN(12_000)))
		if _, taken := reserved.LoadOrStore(addr, true); taken {
			continue
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		require.NoError(t, l.Close())
		return addr
	}
	require.Fail(t, "no port is free")
	return ""
}

// rig is a platform with everything around it in processes of their own, each behind a proxy, so that each can be
// killed, frozen and cut off.
type rig struct {
	postgres                     *devstack.Postgres
	bus                          *busProcess
	broker                       *mosquitto
	postgresNet, busNet, mqttNet *proxy
	parts                        parts
	instances                    []*instance
	db                           *pgxpool.Pool // not through the proxy
	found                        []string      // what was measured, for the log
}

func startRig(t *testing.T) *rig {
	t.Helper()
	own(t)
	r := &rig{}
	dir := newFolder(t)
	var err error
	r.postgres, err = devstack.StartPostgres(t.Context(), devstack.PostgresConfig{
		Dir: dir, Addr: fixedAddr(t), User: "cornjacket", Password: "cornjacket", Database: "cornjacket",
		Template: root, Log: slog.New(slog.DiscardHandler), // durable: unlike that of other tests it is killed
	})
	require.NoError(t, err)
	t.Cleanup(func() { r.endPostgres(t) })
	guard.Watch(r.postgres.PID())
	r.postgresNet = startProxy(t, r.postgres.Addr())
	busAddr := fixedAddr(t)
	r.busNet = startProxy(t, busAddr)
	r.bus = startBus(t, busAddr, r.busNet)
	r.broker = startMosquitto(t)
	r.mqttNet = startProxy(t, r.broker.addr)

	r.db, err = pgxpool.New(t.Context(), r.postgres.URL())
	require.NoError(t, err)
	t.Cleanup(r.db.Close)
	through, err := url.Parse(r.postgres.URL())
	require.NoError(t, err)
	through.Host = r.postgresNet.addr
	r.parts = parts{
		ingestionDB: through.String(), eventhandlerDB: through.String(), kafka: r.busNet.addr, mqtt: r.mqttNet.addr, mosquitto: r.broker,
	}
	return r
}

// instance is one process of the platform that keeps its addresses and its MQTT session when it is started again.
type instance struct {
	r     *rig
	parts parts
	args  []string
	p     *platform // addresses; its process is the one that runs, or ran last
}

// instance starts a further platform.
func (r *rig) instance(t *testing.T) *instance {
	t.Helper()
	i := &instance{r: r, parts: r.parts}
	i.parts.session = unique("session")
	at := func(flag string) string {
		addr := fixedAddr(t)
		i.args = append(i.args, "--"+flag+"="+addr)
		return "http://" + addr
	}
	i.p = &platform{
		ingestion: at("ingestion-addr"), query: at("query-addr"), eventhandler: at("eventhandler-health-addr"), relay: at("relay-health-addr"),
		mqtt: r.mqttNet.addr, kafka: r.busNet.addr, database: r.postgres.URL(), projectionsDB: r.postgres.URL(),
	}
	r.instances = append(r.instances, i)
	i.launch(t)
	i.ready(t)
	return i
}

// launch starts the process and does not wait.
func (i *instance) launch(t *testing.T) {
	t.Helper()
	i.p.process = i.parts.begin(t, i.args...).process
}

// ready waits until all ports of the instance say so.
func (i *instance) ready(t *testing.T) {
	t.Helper()
	i.p.healthy(t)
}

// kill is kill -9.
func (i *instance) kill(t *testing.T) {
	t.Helper()
	require.NoError(t, i.p.process.signal(syscall.SIGKILL))
	code, err := i.p.process.ended(wait)
	require.NoError(t, err)
	require.Equal(t, -1, code, "it ran until it was killed:\n%s", i.p.process.stderr.tail())
}

// healthy waits until all ports answer 200.
func (p *platform) healthy(t *testing.T) {
	t.Helper()
	var last string
	ok := func() bool {
		for service, at := range p.services() {
			status, report, err := askHealth(t.Context(), at)
			if err != nil || status != 200 {
				last = fmt.Sprintf("%s: %d %v %v", service, status, report.Checks, err)
				return false
			}
		}
		return true
	}
	deadline := time.Now().Add(2 * wait)
	for !ok() {
		select {
		case <-p.process.done:
			require.Fail(t, "the platform has ended", "exit code %d\n%s", p.process.code, p.process.stderr.tail())
		case <-time.After(tick):
		}
		require.True(t, time.Now().Before(deadline), "not healthy: %s\n%s", last, p.process.stderr.tail())
	}
}

// freezePostgres stops the server and all its sessions, as if the machine hung.
func (r *rig) freezePostgres(t *testing.T) { pgtest.Freeze(t, r.postgres) }

func (r *rig) thawPostgres(t *testing.T) { pgtest.Thaw(t, r.postgres) }

// stopPostgres ends the server in immediate mode: no checkpoint, no goodbye to its sessions.
func (r *rig) stopPostgres(t *testing.T) {
	t.Helper()
	require.NoError(t, syscall.Kill(r.postgres.PID(), syscall.SIGQUIT))
	select {
	case <-r.postgres.Done():
	case <-time.After(wait):
		require.Fail(t, "PostgreSQL does not end")
	}
}

func (r *rig) endPostgres(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	require.NoError(t, r.postgres.Stop(ctx))
}

// startPostgres starts the server again, which recovers from its log.
func (r *rig) startPostgres(t *testing.T) {
	t.Helper()
	r.endPostgres(t)
	again, err := devstack.StartPostgres(t.Context(), r.postgres.Config())
	require.NoError(t, err)
	r.postgres = again
	guard.Watch(again.PID())
}

// execute runs statements that make or mend a fault in the database.
func (r *rig) execute(t *testing.T, statements ...string) {
	t.Helper()
	for _, sql := range statements {
		_, err := r.db.Exec(t.Context(), sql)
		require.NoError(t, err, sql)
	}
}

// note keeps a measurement and logs it.
func (r *rig) note(t *testing.T, format string, args ...any) {
	t.Helper()
	line := fmt.Sprintf(format, args...)
	r.found = append(r.found, line)
	t.Log(line)
}

// report logs all measurements of a test together.
func (r *rig) report(t *testing.T) {
	t.Helper()
	t.Logf("%s:\n  %s", t.Name(), strings.Join(r.found, "\n  "))
}

func short(d time.Duration) time.Duration { return d.Round(10 * time.Millisecond) }
