package e2e

import (
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/internal/pgtest"
)

// stopWithin is how long a clean stop may take, by the contract.
const stopWithin = 15 * time.Second

// SIGTERM while clients are at work: a clean end, in time, and everything that was acknowledged is there.
func TestStopUnderLoad(t *testing.T) {
	t.Parallel()
	own(t)
	p := dev(t, newFolder(t))
	l := startLoad(t, p, 6, 6)
	l.reach(t, 3000)
	started := time.Now()
	code, err := p.process.stop()
	took := time.Since(started)
	require.NoError(t, err)
	require.Zero(t, code, "%s", p.process.stderr.tail())
	require.Less(t, took, stopWithin)
	require.NotContains(t, p.process.stderr.String(), "panic")
	l.stop()
	t.Logf("%d events acknowledged, stopped in %s", l.total.Load(), took.Round(time.Millisecond))

	p = dev(t, p.dir)
	l.proven(t, p)
	l.published(t, p)
	p.arrives(t)
	p.stop(t)
}

// kill -9 while clients are at work, again and again: everything that was acknowledged is there, each once, in order.
func TestKillUnderLoad(t *testing.T) {
	t.Parallel()
	own(t)
	p := dev(t, newFolder(t))
	for round := range 3 {
		l := startLoad(t, p, 6, 6)
		l.reach(t, 1500)
		require.NoError(t, p.process.signal(syscall.SIGKILL))
		code, err := p.process.ended(wait)
		require.NoError(t, err)
		require.Equal(t, -1, code)
		l.stop()

		started := time.Now()
		p = dev(t, p.dir)
		t.Logf("round %d: %d events acknowledged, ready %s after the kill", round, l.total.Load(), time.Since(started).Round(time.Millisecond))
		l.proven(t, p)
		t.Logf("round %d: all projected %s after the kill", round, time.Since(started).Round(time.Millisecond))
		l.published(t, p)
	}
	p.arrives(t)
	p.stop(t)
}

// A second signal is the first one once more when both come at once, as from timeout(1), which signals the process and
// then its group.
func TestTwoSignalsAtOnce(t *testing.T) {
	t.Parallel()
	own(t)
	p := dev(t, newFolder(t))
	require.NoError(t, p.process.signal(syscall.SIGTERM))
	require.NoError(t, p.process.signal(syscall.SIGINT))
	code, err := p.process.ended(stopWithin)
	require.NoError(t, err)
	require.Zero(t, code, "%s", p.process.stderr.tail())
}

// A port that is taken ends the start with one line that says whose it is, which and why.
func TestPortTaken(t *testing.T) {
	t.Parallel()
	own(t)
	for flag, service := range map[string]string{
		"ingestion-addr": "ingestion", "query-addr": "query", "eventhandler-health-addr": "eventhandler", "relay-health-addr": "relay",
		"postgres-addr": "PostgreSQL", "kafka-addr": "Kafka", "mqtt-addr": "MQTT",
	} {
		addr := taken(t)
		_, port, _ := strings.Cut(addr, ":")
		check := func(t *testing.T, args ...string) {
			t.Helper()
			c := platformCommand(t, nil, append(args, "--"+flag, addr)...)
			require.Equal(t, 1, c.code, "%s", c.stderr.tail())
			line := c.oneLine(t)
			for _, part := range []string{service, port, "address already in use"} {
				require.Contains(t, line, part)
			}
		}
		t.Run("dev "+flag, func(t *testing.T) {
			t.Parallel()
			check(t, devArgs(newFolder(t))...)
		})
		if slices.Contains([]string{"postgres-addr", "kafka-addr", "mqtt-addr"}, flag) {
			continue
		}
		t.Run("run "+flag, func(t *testing.T) {
			t.Parallel()
			check(t, "run", "--ingestion-addr=127.0.0.1:0", "--query-addr=127.0.0.1:0", "--eventhandler-health-addr=127.0.0.1:0", "--relay-health-addr=127.0.0.1:0")
		})
	}
	t.Run("run with embedded MQTT", func(t *testing.T) {
		t.Parallel()
		addr := taken(t)
		c := platformCommand(t, nil, "run", "--services=ingestion", "--ingestion-addr=127.0.0.1:0", "--embedded-mqtt", "--mqtt-url=mqtt://"+addr,
			"--ingestion-database-url="+pgtest.URL(t))
		require.Equal(t, 1, c.code)
		lines := strings.Split(strings.TrimSpace(c.stderr.String()), "\n")
		last := lines[len(lines)-1]
		require.True(t, strings.HasPrefix(last, "platform: "), last)
		for _, part := range []string{"MQTT", addr, "address already in use"} {
			require.Contains(t, last, part)
		}
	})
}

// Settings that can't be used are named, with what they take, before anything is started.
func TestBadSettings(t *testing.T) {
	t.Parallel()
	own(t)
	for _, c := range []struct {
		env  string
		args []string
		says []string
	}{
		{"", []string{"dev", "--no-such"}, []string{"--no-such"}},
		{"", []string{"fly"}, []string{"fly"}},
		{"", []string{"run", "--services=ingestion,cooking"}, []string{"SERVICES", "cooking", "relay"}},
		{"INGESTION_ADDR=8080", []string{"run"}, []string{"INGESTION_ADDR", "8080", "host:port"}},
		{"QUERY_ADDR=localhost:http", []string{"dev"}, []string{"QUERY_ADDR", "port"}},
		{"RELAY_HEALTH_ADDR=:99999", []string{"run"}, []string{"RELAY_HEALTH_ADDR", "65535"}},
		{"EVENTHANDLER_HEALTH_ADDR=x", []string{"health"}, []string{"EVENTHANDLER_HEALTH_ADDR"}},
		{"INGESTION_DATABASE_URL=mysql://localhost/x", []string{"run"}, []string{"INGESTION_DATABASE_URL", "postgres://"}},
		{"EVENTHANDLER_DATABASE_URL=cornjacket", []string{"migrate", "up"}, []string{"EVENTHANDLER_DATABASE_URL"}},
		{"QUERY_DATABASE_URL=postgres://%zz", []string{"run"}, []string{"QUERY_DATABASE_URL"}},
		{"REDPANDA_BROKERS=localhost", []string{"run"}, []string{"REDPANDA_BROKERS", "host:port"}},
		{"MQTT_URL=http://localhost", []string{"run"}, []string{"MQTT_URL", "mqtt://"}},
		{"LOG_LEVEL=loud", []string{"dev"}, []string{"LOG_LEVEL", "debug, info, warn or error"}},
		{"LOG_FORMAT=xml", []string{"run"}, []string{"LOG_FORMAT", "json or text"}},
		{"SHUTDOWN_TIMEOUT=15", []string{"run"}, []string{"SHUTDOWN_TIMEOUT", "duration"}},
		{"WINDOW=70000", []string{"run"}, []string{"WINDOW", "65535"}},
		{"BATCH_SIZE=0", []string{"dev"}, []string{"BATCH_SIZE", "at least 1"}},
		{"FRESH=perhaps", []string{"dev"}, []string{"FRESH", "true or false"}},
		{"", []string{"migrate", "sideways"}, []string{"up, status or reset"}},
		{"", []string{"migrate", "reset"}, []string{"--yes"}},
		{"", []string{"simulate", "--devices=-1"}, []string{"--devices", "at least 1"}},
	} {
		t.Run(c.env+" "+strings.Join(c.args, " "), func(t *testing.T) {
			t.Parallel()
			p := platformCommand(t, []string{c.env, "XDG_STATE_HOME=" + root}, c.args...)
			code := 2 // bad usage
			if c.env != "" {
				code = 1 // a start that failed
			}
			require.Equal(t, code, p.code, "%s", p.stderr.tail())
			line := p.oneLine(t)
			for _, part := range c.says {
				require.Contains(t, line, part)
			}
			require.Empty(t, p.stdout.String())
		})
	}
}

// What can't be reached is said in one line that names the variable.
func TestNothingThere(t *testing.T) {
	t.Parallel()
	own(t)
	c := platformCommand(t, []string{"INGESTION_DATABASE_URL=postgres://someone:geheim@127.0.0.1:1/nothing"}, "run", "--startup-timeout=500ms",
		"--ingestion-addr=127.0.0.1:0", "--query-addr=127.0.0.1:0", "--eventhandler-health-addr=127.0.0.1:0", "--relay-health-addr=127.0.0.1:0")
	require.Equal(t, 1, c.code)
	text := c.stderr.String()
	require.Contains(t, text, "INGESTION_DATABASE_URL")
	require.Contains(t, text, "refused")
	require.NotContains(t, text, "geheim")

	c = platformCommand(t, nil, "health", "--addr", "127.0.0.1:1")
	require.Equal(t, 1, c.code)
	c = platformCommand(t, nil, "simulate", "--url", "mqtt://127.0.0.1:1", "--count", "1", "--duration", "5s")
	require.Equal(t, 1, c.code)
	require.Contains(t, c.oneLine(t), "refused")
}

// Commands that only print.
func TestPrinted(t *testing.T) {
	t.Parallel()
	c := platformCommand(t, nil, "version")
	require.Zero(t, c.code)
	require.Contains(t, c.stdout.String(), "platform ")
	c = platformCommand(t, nil, "routes")
	require.Zero(t, c.code)
	for _, part := range []string{"ingestion", "relay", "eventhandler", "outbox", "sensor-events", "projections", ":8080", ":8084", ":8086"} {
		require.Contains(t, c.stdout.String(), part)
	}
	c = platformCommand(t, nil, "run", "--help")
	require.Zero(t, c.code)
	for _, name := range []string{
		"INGESTION_ADDR", "QUERY_ADDR", "EVENTHANDLER_HEALTH_ADDR", "RELAY_HEALTH_ADDR", "INGESTION_DATABASE_URL", "EVENTHANDLER_DATABASE_URL",
		"QUERY_DATABASE_URL", "REDPANDA_BROKERS", "MQTT_URL", "MQTT_USERNAME", "MQTT_PASSWORD", "LOG_LEVEL", "LOG_FORMAT",
	} {
		require.Contains(t, c.stdout.String(), name)
	}
}

// While it stops, the platform says so: /health is red, and clients find no half-open door afterwards.
func TestPortsAreFreeAfterTheStop(t *testing.T) {
	t.Parallel()
	own(t)
	p := dev(t, newFolder(t))
	p.stop(t)
	for service, url := range p.services() {
		_, err := request(t.Context(), http.MethodGet, url+"/livez", nil)
		require.ErrorContains(t, err, "refused", service)
	}
	again := dev(t, p.dir, "--ingestion-addr", strings.TrimPrefix(p.ingestion, "http://"), "--mqtt-addr", p.mqtt, "--kafka-addr", p.kafka)
	require.Equal(t, p.ingestion, again.ingestion)
	again.arrives(t)
	again.stop(t)
}
