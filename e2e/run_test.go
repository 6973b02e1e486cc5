package e2e

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/internal/devstack"
	"github.com/cornjacket/platform-services/internal/pgtest"
)

// parts is what `platform run` finds around it: a database for each service, a bus, and Mosquitto as the broker.
type parts struct {
	ingestionDB, eventhandlerDB string
	kafka, mqtt                 string
	mosquitto                   *mosquitto
	session                     string
}

func startParts(t *testing.T) *parts {
	t.Helper()
	own(t)
	bus, err := devstack.StartKafka(devstack.KafkaConfig{Addr: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(bus.Close)
	broker := startMosquitto(t)
	return &parts{
		ingestionDB: pgtest.URL(t), eventhandlerDB: pgtest.URL(t), kafka: bus.Addr(), mqtt: broker.addr, mosquitto: broker, session: unique("ingestion"),
	}
}

// run starts `platform run` on the parts, with further arguments, and waits until it is ready.
func (s *parts) run(t *testing.T, args ...string) *platform {
	t.Helper()
	p := s.begin(t, args...)
	require.NoError(t, p.awaitReady(t.Context(), ""))
	return p
}

// begin is run that does not wait.
func (s *parts) begin(t *testing.T, args ...string) *platform {
	t.Helper()
	env := []string{
		"INGESTION_DATABASE_URL=" + s.ingestionDB, "EVENTHANDLER_DATABASE_URL=" + s.eventhandlerDB, "QUERY_DATABASE_URL=" + s.eventhandlerDB,
		"REDPANDA_BROKERS=" + s.kafka, "MQTT_URL=mqtt://" + s.mqtt, "MQTT_CLIENT_ID=" + s.session,
		"INGESTION_ADDR=127.0.0.1:0", "QUERY_ADDR=127.0.0.1:0", "EVENTHANDLER_HEALTH_ADDR=127.0.0.1:0", "RELAY_HEALTH_ADDR=127.0.0.1:0",
	}
	proc, err := launch(env, binary, append([]string{"run"}, args...)...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, proc.kill()) })
	return &platform{mqtt: s.mqtt, kafka: s.kafka, database: s.ingestionDB, projectionsDB: s.eventhandlerDB, process: proc}
}

// mosquitto is a Mosquitto of the test's own, set up as the platform asks for: what it has acknowledged waits in our
// session, durable and without a bound.
type mosquitto struct {
	addr, conf, program string
	process             *process
}

// Further lines of its configuration win over those that it has by itself.
func startMosquitto(t *testing.T, more ...string) *mosquitto {
	t.Helper()
	program := needTool(t, "mosquitto")
	addr := fixedAddr(t)
	dir := newFolder(t)
	require.NoError(t, os.Chmod(dir, 0o777)) // it changes its user when this is root
	host, port, err := net.SplitHostPort(addr)
	require.NoError(t, err)
	conf := filepath.Join(dir, "mosquitto.conf")
	require.NoError(t, os.WriteFile(conf, fmt.Appendf(nil, `allow_anonymous true
listener %s %s
persistence true
persistence_location %s/
autosave_interval 1
max_queued_messages 0
log_dest stderr
%s
`, port, host, dir, strings.Join(more, "\n")), 0o644))
	m := &mosquitto{addr: addr, conf: conf, program: program}
	m.start(t)
	return m
}

func (m *mosquitto) start(t *testing.T) {
	t.Helper()
	proc, err := launch(nil, m.program, "-c", m.conf)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, proc.kill()) })
	m.process = proc
	require.Eventually(t, func() bool { return strings.Contains(proc.stderr.String(), " running") }, wait, tick, "mosquitto runs: %s", m.conf)
}

// The whole way through brokers that are not ours, with the platform in one process.
func TestRunWithExternalParts(t *testing.T) {
	t.Parallel()
	s := startParts(t)
	p := s.run(t)
	p.arrives(t)
	l := startLoad(t, p, 3, 6)
	l.reach(t, 1000)
	code, err := p.process.stop()
	require.NoError(t, err)
	require.Zero(t, code, "%s", p.process.stderr.tail())
	l.reach(t, 200) // devices go on while the platform is away

	l.stop()
	p = s.run(t)
	l.proven(t, p)
	l.published(t, p)
	require.Contains(t, p.process.stderr.String(), `"session_present":true`)
	p.stop(t)
}

// The platform is killed, and so is the broker, while devices are at work.
func TestRunKilledUnderLoad(t *testing.T) {
	t.Parallel()
	s := startParts(t)
	p := s.run(t)
	l := startLoad(t, p, 3, 6)
	l.reach(t, 1000)
	require.NoError(t, p.process.signal(syscall.SIGKILL))
	_, err := p.process.ended(wait)
	require.NoError(t, err)
	l.stop()
	p = s.run(t)
	l.proven(t, p)
	l.published(t, p)

	l = startLoad(t, p, 0, 6)
	l.reach(t, 500)
	code, err := s.mosquitto.process.stop() // cleanly: it writes its data only now and then
	require.NoError(t, err)
	require.Zero(t, code)
	require.Eventually(t, func() bool {
		status, r, err := askHealth(t.Context(), p.ingestion)
		return err == nil && status == 503 && r.Checks["mqtt"]["status"] == "failing"
	}, wait, tick, "ingestion says that the broker is away")
	s.mosquitto.start(t)
	l.reach(t, 500)
	l.stop()
	l.proven(t, p)
	p.stop(t)
}

// Each service in a process of its own, each with its own database; they come up in any order and outlive each other.
func TestRunInSeveralProcesses(t *testing.T) {
	t.Parallel()
	s := startParts(t)
	started := map[string]*platform{}
	for _, service := range []string{"eventhandler", "relay", "ingestion", "query"} {
		started[service] = s.run(t, "--services="+service)
	}
	p := &platform{
		ingestion: started["ingestion"].ingestion, query: started["query"].query, eventhandler: started["eventhandler"].eventhandler,
		relay: started["relay"].relay, mqtt: s.mqtt, kafka: s.kafka, database: s.ingestionDB, projectionsDB: s.eventhandlerDB,
	}
	p.arrives(t)
	standby := s.run(t, "--services=relay") // two are one too many: it stands by
	l := startLoad(t, p, 3, 3)
	l.reach(t, 300)
	require.NoError(t, started["relay"].process.kill())
	l.reach(t, 300) // clients do not notice
	require.NoError(t, started["eventhandler"].process.kill())
	l.reach(t, 300)
	started["eventhandler"] = s.run(t, "--services=eventhandler")
	l.stop()
	began := time.Now()
	l.proven(t, p)
	t.Logf("caught up %s after the last event", time.Since(began).Round(time.Millisecond))
	l.published(t, p)
	p.arrives(t)
	standby.stop(t)
	for _, service := range []string{"query", "ingestion", "eventhandler"} {
		started[service].stop(t)
	}
}

// Several ingestions share the devices' messages, and start at once on an empty database.
func TestRunTwice(t *testing.T) {
	t.Parallel()
	s := startParts(t)
	other := *s
	other.session = unique("second")
	a, b := s.begin(t), other.begin(t)
	require.NoError(t, a.awaitReady(t.Context(), ""))
	require.NoError(t, b.awaitReady(t.Context(), ""))
	a.arrives(t)
	b.arrives(t)
	la, lb := startLoad(t, a, 3, 3), startLoad(t, b, 3, 3)
	la.reach(t, 300)
	lb.reach(t, 300)
	a.stop(t)
	lb.reach(t, 300)
	la.stop()
	lb.stop()
	// Mosquitto goes on giving a member that is away its share, which waits in its session.
	a = s.run(t)
	lb.proven(t, b)
	la.proven(t, b)
	a.stop(t)
	b.stop(t)
}

// migrate is what operators use before a start and to begin anew.
func TestMigrate(t *testing.T) {
	t.Parallel()
	own(t)
	url := pgtest.URL(t)
	env := []string{"INGESTION_DATABASE_URL=" + url, "EVENTHANDLER_DATABASE_URL=" + url}
	said := func(args ...string) string {
		t.Helper()
		c := platformCommand(t, env, append([]string{"migrate"}, args...)...)
		require.Zero(t, c.code, "%s", c.stderr.tail())
		return c.stdout.String()
	}
	require.Contains(t, said("status"), "pending")
	said("up")
	require.NotContains(t, said("status"), "pending")
	require.Contains(t, said("up"), " 0 applied", "a second time there is nothing to do")

	db := pool(t, url)
	_, err := db.Exec(t.Context(), `INSERT INTO outbox (event_id, event_type, aggregate_id, event_time, ingested_at, payload, metadata)
		VALUES (gen_random_uuid(), 'a.b', 'c', now(), now(), '{}', '{}')`)
	require.NoError(t, err)
	said("reset", "--yes")
	var left int
	require.NoError(t, db.QueryRow(t.Context(), `SELECT count(*) FROM outbox`).Scan(&left))
	require.Zero(t, left)
	require.NotContains(t, said("status"), "pending")
}
