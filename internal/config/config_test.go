package config_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/routers"
)

type grammar struct {
	Run      config.Run      `cmd:""`
	Dev      config.Dev      `cmd:""`
	Migrate  config.Migrate  `cmd:""`
	Simulate config.Simulate `cmd:""`
	Health   config.Health   `cmd:""`
	DLQ      config.DLQ      `cmd:"" name:"dlq"`
	Token    config.Token    `cmd:""`
}

func parse(t *testing.T, env map[string]string, args ...string) (*grammar, error) {
	t.Helper()
	lookup := func(name string) (string, bool) { v, ok := env[name]; return v, ok }
	var g grammar
	k, err := kong.New(&g, config.Options(lookup)...)
	require.NoError(t, err)
	_, err = k.Parse(args)
	return &g, err
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	g, err := parse(t, map[string]string{"HOME": "/home/someone"}, "run")
	require.NoError(t, err)
	const database = "postgres://cornjacket:cornjacket@localhost:5432/cornjacket?sslmode=disable"
	require.NotEqual(t, "cornjacket-ingestion-", g.Run.MQTTClientID)
	require.True(t, strings.HasPrefix(g.Run.MQTTClientID, "cornjacket-ingestion-"))
	for variable, want := range map[string]string{
		"INGESTION_ADDR": "127.0.0.1:8080", "QUERY_ADDR": "127.0.0.1:8081",
		"EVENTHANDLER_HEALTH_ADDR": "127.0.0.1:8084", "RELAY_HEALTH_ADDR": "127.0.0.1:8086",
	} {
		require.Equal(t, want, g.Run.Listen.Get(variable))
	}
	for _, variable := range []string{"INGESTION_DATABASE_URL", "EVENTHANDLER_DATABASE_URL", "QUERY_DATABASE_URL"} {
		require.Equal(t, database, g.Run.URLs.Get(variable))
	}
	require.Equal(t, config.Run{
		Services:  routers.ServiceNames(),
		Addresses: config.Addresses{Listen: g.Run.Listen},
		Doors:     config.Doors{APIAuth: config.AuthAuto, MaxConnections: 4096},
		Databases: config.OneDatabase(database),
		Broker: config.Broker{
			RedpandaBrokers: []string{"localhost:9092"}, Bus: config.Bus{RedpandaSASLMechanism: config.SASLNone}, MQTTURL: "mqtt://localhost:1883", MQTTClientID: g.Run.MQTTClientID,
		},
		Tuning: config.Tuning{RetryMax: 3, RetryInterval: 100 * time.Millisecond, IngestQueue: 20000, OutboxMax: 1_000_000, DLQMaxBytes: 1 << 30, BatchSize: 1000, Window: 2000,
			EventTimeMaxAhead: 10 * time.Minute, EventTimeMin: time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)},
		Topics:   config.Topics{TopicPartitions: 8, TopicReplication: -1, TopicRetention: 7 * 24 * time.Hour},
		Timeouts: config.Timeouts{StartupTimeout: 30 * time.Second, ShutdownTimeout: 15 * time.Second, HandlerTimeout: 30 * time.Second, IngestTimeout: 5 * time.Second},
		Log:      config.Log{LogLevel: "info", LogFormat: "json"},
	}, g.Run)

	direct, err := config.Defaults()
	require.NoError(t, err)
	require.Equal(t, g.Run, direct)

	g, err = parse(t, map[string]string{"HOME": "/home/someone"}, "dev")
	require.NoError(t, err)
	require.Equal(t, "/home/someone/.local/state/cornjacket", g.Dev.DataDir)
	require.Equal(t, config.Log{LogLevel: "info", LogFormat: "text"}, g.Dev.Log)
	require.Equal(t, []string{"127.0.0.1:5432", "127.0.0.1:9092", "127.0.0.1:1883"}, []string{g.Dev.PostgresAddr, g.Dev.KafkaAddr, g.Dev.MQTTAddr})
	require.False(t, g.Dev.Fresh)

	dev, err := config.DevDefaults()
	require.NoError(t, err)
	require.Equal(t, g.Dev.Tuning, dev.Tuning)
}

func TestVariablesAndFlags(t *testing.T) {
	t.Parallel()
	g, err := parse(t, map[string]string{
		"SERVICES":               "query, ingestion,query,",
		"INGESTION_ADDR":         "0.0.0.0:80",
		"INGESTION_DATABASE_URL": "postgresql://u:p%40ss@db/one?sslmode=disable",
		"QUERY_DATABASE_URL":     "postgres:///two?host=/run/postgresql",
		"REDPANDA_BROKERS":       "a:9092, b:9093",
		"MQTT_URL":               "mqtts://broker.example",
		"MQTT_USERNAME":          "user",
		"MQTT_PASSWORD":          "p,ss=word",
		"MQTT_CLIENT_ID":         "one",
		"LOG_LEVEL":              "DEBUG",
		"TOPIC_PARTITIONS":       "3",
		"TOPIC_REPLICATION":      "3",
		"BATCH_SIZE":             "oops",
		"RETRY_MAX":              "",
	}, "run", "--batch-size", "7", "--topic-partitions=4", "--retry-interval=1s")
	require.NoError(t, err, "a flag wins over a variable, also over one that is malformed")
	r := g.Run
	require.Equal(t, []string{"ingestion", "query"}, r.Services, "in the order of the flow, each once")
	require.Equal(t, "0.0.0.0:80", r.Of(routers.Ingestion))
	require.Equal(t, "postgresql://u:p%40ss@db/one?sslmode=disable", r.DatabaseOf(routers.Ingestion))
	require.Equal(t, "postgres:///two?host=/run/postgresql", r.DatabaseOf(routers.Query))
	require.Equal(t, []string{"a:9092", "b:9093"}, r.RedpandaBrokers)
	require.Equal(t, "mqtts://broker.example:8883", r.MQTTURL, "with the port that the scheme means")
	require.Equal(t, []string{"user", "p,ss=word", "one"}, []string{r.MQTTUsername, r.MQTTPassword, r.MQTTClientID})
	require.Equal(t, "debug", r.LogLevel)
	require.Equal(t, []int{4, 3, 7}, []int{int(r.TopicPartitions), int(r.TopicReplication), r.BatchSize})
	require.Equal(t, 3, r.RetryMax, "a variable set to nothing counts as not set")
	require.Equal(t, time.Second, r.RetryInterval)
}

func TestOtherCommands(t *testing.T) {
	t.Parallel()
	g, err := parse(t, nil, "migrate", "up", "--services=eventhandler")
	require.NoError(t, err)
	require.Equal(t, "up", g.Migrate.Action)
	require.Equal(t, []string{"eventhandler"}, g.Migrate.Services)
	g, err = parse(t, nil, "migrate", "reset", "--yes")
	require.NoError(t, err)
	require.True(t, g.Migrate.Yes)

	g, err = parse(t, map[string]string{"MQTT_URL": "mqtts://broker"}, "simulate", "-n", "5", "--rate=0", "-d", "0s", "-c", "100")
	require.NoError(t, err)
	require.Equal(t, config.Simulate{URL: "mqtts://broker:8883", Devices: 5, Count: 100, Prefix: "device-", Inflight: 20}, g.Simulate)

	g, err = parse(t, map[string]string{"SERVICES": "relay"}, "health", "--addr", "a:1,b:2")
	require.NoError(t, err)
	require.Equal(t, []string{"a:1", "b:2"}, g.Health.Addr)
	require.Equal(t, "127.0.0.1:8086", g.Health.Of(g.Health.Services[0]))

	g, err = parse(t, map[string]string{"XDG_STATE_HOME": "/state", "FRESH": "true"}, "dev")
	require.NoError(t, err)
	require.Equal(t, "/state/cornjacket", g.Dev.DataDir)
	require.True(t, g.Dev.Fresh)
	g, err = parse(t, map[string]string{"XDG_STATE_HOME": "relative", "HOME": "/h", "DATA_DIR": "here"}, "dev")
	require.NoError(t, err)
	require.True(t, filepath.IsAbs(g.Dev.DataDir))
	require.Equal(t, "here", filepath.Base(g.Dev.DataDir))
}

func TestEveryServiceHasAnAddress(t *testing.T) {
	t.Parallel()
	g, err := parse(t, nil, "run")
	require.NoError(t, err)
	seen := map[string]bool{}
	for _, service := range routers.ServiceNames() {
		addr := g.Run.Of(service)
		require.NotEmpty(t, addr, service)
		require.False(t, seen[addr], addr)
		seen[addr] = true
		require.NotEmpty(t, g.Run.DatabaseOf(service), service)
	}
	require.Empty(t, g.Run.Listen.Get("NOTHING"))
}

func TestValuesAreNotChangedInPlace(t *testing.T) {
	t.Parallel()
	before := config.EveryAddress("a:1")
	after := before.Listen.With("QUERY_ADDR", "b:2")
	require.Equal(t, []string{"a:1", "b:2", "a:1"}, []string{before.Listen.Get("QUERY_ADDR"), after.Get("QUERY_ADDR"), after.Get("INGESTION_ADDR")})
}

func TestRefused(t *testing.T) {
	t.Parallel()
	const (
		pgTakes   = "takes a URL such as postgres://user:password@host:5432/database?sslmode=disable"
		mqttTakes = "takes a URL such as mqtt://host:1883, mqtts://host:8883, ws://host/mqtt or wss://host/mqtt"
		addrTakes = "takes host:port, such as 127.0.0.1:8080, [::1]:8080 or 0.0.0.0:8080"
	)
	known := "takes a comma-separated list of: " + strings.Join(routers.ServiceNames(), ", ")
	for _, c := range []struct {
		env, value, want string
	}{
		{"TOPIC_PARTITIONS", "abc", `TOPIC_PARTITIONS (--topic-partitions): "abc" is not a number; takes a number of partitions, at least 1`},
		{"TOPIC_PARTITIONS", "0", `TOPIC_PARTITIONS (--topic-partitions): "0" is too small; takes a number of partitions, at least 1`},
		{"TOPIC_PARTITIONS", "4294967296", `TOPIC_PARTITIONS (--topic-partitions): "4294967296" is too large; takes a number of partitions, at least 1`},
		{"TOPIC_PARTITIONS", "1e3", `TOPIC_PARTITIONS (--topic-partitions): "1e3" is not a number; takes a number of partitions, at least 1`},
		{"TOPIC_REPLICATION", "0", `TOPIC_REPLICATION (--topic-replication): "0" is too small; takes a number of replicas, at least 1, or -1 for the broker's default`},
		{"TOPIC_REPLICATION", "40000", `TOPIC_REPLICATION (--topic-replication): "40000" is too large; takes a number of replicas, at least 1, or -1 for the broker's default`},
		{"RETRY_MAX", "-1", `RETRY_MAX (--retry-max): "-1" is too small; takes a number of attempts, at least 0`},
		{"WINDOW", "65536", `WINDOW (--window): "65536" is too large; takes a number of messages from 1 to 65535`},
		{"WINDOW", "99999999999999999999", `WINDOW (--window): "99999999999999999999" is too large; takes a number of messages from 1 to 65535`},
		{"CONSUMER_GROUP_SUFFIX", "-a b", `CONSUMER_GROUP_SUFFIX (--consumer-group-suffix): "-a b" can't be part of the name of a group; takes up to 100 letters, digits, '.', '_' and '-'`},
		{"TOPIC_RETENTION", "1 day", `TOPIC_RETENTION (--topic-retention): "1 day" is not a duration; takes a duration of at least 1ms, such as 500ms, 30s, 5m or 24h`},
		{"SHUTDOWN_TIMEOUT", "-5s", `SHUTDOWN_TIMEOUT (--shutdown-timeout): "-5s" is too short; takes a duration of at least 1ms, such as 500ms, 30s, 5m or 24h`},
		{"INGESTION_ADDR", "8080", `INGESTION_ADDR (--ingestion-addr): "8080" is not host:port; ` + addrTakes},
		{"INGESTION_ADDR", "http://x:80", `INGESTION_ADDR (--ingestion-addr): "http://x:80" is not host:port; ` + addrTakes},
		{"INGESTION_ADDR", "me:geheim@x:80", `INGESTION_ADDR (--ingestion-addr): is not host:port; ` + addrTakes},
		{"QUERY_ADDR", "x:http", `QUERY_ADDR (--query-addr): "x:http" has no port from 0 to 65535; ` + addrTakes},
		{"QUERY_ADDR", "x:65536", `QUERY_ADDR (--query-addr): "x:65536" has no port from 0 to 65535; ` + addrTakes},
		{"REDPANDA_BROKERS", "a:1,b", `REDPANDA_BROKERS (--redpanda-brokers): "b" is not host:port; takes a comma-separated list of host:port, such as localhost:9092`},
		{"REDPANDA_BROKERS", "a:0", `REDPANDA_BROKERS (--redpanda-brokers): "a:0" is not host:port; takes a comma-separated list of host:port, such as localhost:9092`},
		{"REDPANDA_BROKERS", " , ", `REDPANDA_BROKERS (--redpanda-brokers): " , " names no address; takes a comma-separated list of host:port`},
		{"SERVICES", "ingestion,everything", `SERVICES (--services): "everything" is not a service; ` + known},
		{"SERVICES", ",", `SERVICES (--services): "," names no service; ` + known},
		{"LOG_LEVEL", "loud", `LOG_LEVEL (--log-level): "loud" is not one of them; takes debug, info, warn or error`},
		{"LOG_FORMAT", "xml", `LOG_FORMAT (--log-format): "xml" is not one of them; takes json or text`},
		{"EMBEDDED_MQTT", "maybe", `EMBEDDED_MQTT (--embedded-mqtt): "maybe" is neither true nor false; takes true or false`},
		{"MQTT_CLIENT_ID", "a/b", `MQTT_CLIENT_ID (--mqtt-client-id): "a/b" is not a client identifier; takes 1 to 256 bytes of printable text without '/', '+' and '#'`},
		{"MQTT_URL", "kafka://x", `MQTT_URL (--mqtt-url): "kafka://x" is not a URL of an MQTT broker; ` + mqttTakes},
		{"MQTT_URL", "mqtt://", `MQTT_URL (--mqtt-url): "mqtt:" names no host; ` + mqttTakes},
		{"MQTT_URL", "localhost:1883", `MQTT_URL (--mqtt-url): is not a URL; ` + mqttTakes},
		{"MQTT_URL", "mqtt://x:99999", `MQTT_URL (--mqtt-url): "mqtt://x:99999" has no port from 0 to 65535; ` + mqttTakes},
		{"MQTT_URL", "mqtt://me:geheim@x", `MQTT_URL (--mqtt-url): "mqtt://me:xxxxx@x" holds a user; ` + mqttTakes + "; the user goes into MQTT_USERNAME and MQTT_PASSWORD"},
		{"QUERY_DATABASE_URL", "mysql://u:geheim@h/d?password=geheim", `QUERY_DATABASE_URL (--query-database-url): "mysql://u:xxxxx@h/d" is not a URL of PostgreSQL; ` + pgTakes},
		{"QUERY_DATABASE_URL", "postgres://u:geheim@h:port/d", `QUERY_DATABASE_URL (--query-database-url): is not a URL; ` + pgTakes},
		{"QUERY_DATABASE_URL", "host=h password=geheim", `QUERY_DATABASE_URL (--query-database-url): is not a URL of PostgreSQL; ` + pgTakes},
		{"QUERY_DATABASE_URL", "u:geheim@h/d", `QUERY_DATABASE_URL (--query-database-url): is not a URL; ` + pgTakes},
		{"QUERY_DATABASE_URL", "postgres:///d", `QUERY_DATABASE_URL (--query-database-url): "postgres:///d" names no host; ` + pgTakes},
	} {
		t.Run(c.env+"="+c.value, func(t *testing.T) {
			t.Parallel()
			_, err := parse(t, map[string]string{c.env: c.value}, "run")
			var e *config.Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, c.want, e.Error())
			require.NotContains(t, err.Error(), "geheim")
			require.NotContains(t, err.Error(), "\n")

			_, err = parse(t, nil, "run", "--"+strings.ToLower(strings.ReplaceAll(c.env, "_", "-"))+"="+c.value)
			require.ErrorAs(t, err, &e)
			require.Equal(t, c.want, e.Error(), "the flag is refused as the variable is")
		})
	}
}

func TestSettingsThatDoNotGoTogether(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		env  map[string]string
		args []string
		want string
	}{
		{"reset unconfirmed", nil, []string{"migrate", "reset"}, "--yes: must be given with reset, which deletes all data"},
		{"unknown action", nil, []string{"migrate", "down"}, `<action>: "down" is not one of them; takes up, status or reset`},
		{"embedded broker over TLS", map[string]string{"MQTT_URL": "mqtts://x"}, []string{"run", "--embedded-mqtt"},
			`MQTT_URL (--mqtt-url): "mqtts://x:8883" is not what --embedded-mqtt can listen on; takes mqtt://host:port with it`},
		{"rate", nil, []string{"simulate", "--rate=NaN"}, `SIMULATE_RATE (--rate): "NaN" is not a number; takes a number of events a second, at least 0`},
		{"simulation over WebSocket", nil, []string{"simulate", "--url=ws://x"},
			`MQTT_URL (--url): "ws://x" is not a URL of an MQTT broker; takes a URL such as mqtt://host:1883 or mqtts://host:8883`},
		{"no value", nil, []string{"run", "--services"}, "SERVICES (--services): has no value"},
		{"line breaks", map[string]string{"LOG_LEVEL": "a\nb"}, []string{"run"}, `LOG_LEVEL (--log-level): "a\nb" is not one of them; takes debug, info, warn or error`},
		{"much of it", map[string]string{"LOG_LEVEL": strings.Repeat("x", 1000)}, []string{"run"},
			`LOG_LEVEL (--log-level): "` + strings.Repeat("x", 120) + `…" is not one of them; takes debug, info, warn or error`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, err := parse(t, c.env, c.args...)
			var e *config.Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, c.want, e.Error())
		})
	}
}

// A variable that another command reads must not stop this one.
func TestOnlyTheCommandsOwnVariablesAreRead(t *testing.T) {
	t.Parallel()
	_, err := parse(t, map[string]string{"TOPIC_PARTITIONS": "abc", "SIMULATE_RATE": "abc"}, "migrate", "status")
	require.NoError(t, err)
}

func TestEmbeddedMQTTAddr(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{"mqtt://localhost": "localhost:1883", "tcp://[::1]:1": "[::1]:1", "mqtt://127.0.0.1:0": "127.0.0.1:0"} {
		g, err := parse(t, map[string]string{"MQTT_URL": url}, "run", "--embedded-mqtt")
		require.NoError(t, err)
		addr, err := g.Run.EmbeddedMQTTAddr()
		require.NoError(t, err)
		require.Equal(t, want, addr)
	}
}

// The help must name flag, variable, default and meaning of each setting.
func TestEverySettingIsDocumented(t *testing.T) {
	t.Parallel()
	var g grammar
	k, err := kong.New(&g, config.Options(func(string) (string, bool) { return "", false })...)
	require.NoError(t, err)
	for _, command := range k.Model.Children {
		for _, flag := range command.Flags {
			require.NotEmpty(t, flag.Help, flag.Name)
			if needsVariable := command.Name == "run" || command.Name == "dev"; needsVariable {
				require.NotEmpty(t, flag.Tag.Get("var")+flag.Tag.Get("table"), "%s --%s", command.Name, flag.Name)
			}
			if flag.HasDefault {
				require.Contains(t, strings.ToLower(helpOf(t, k, flag)), "default", flag.Name)
			}
		}
	}
}

func helpOf(t *testing.T, k *kong.Kong, flag *kong.Flag) string {
	t.Helper()
	var b strings.Builder
	k.Stdout, k.Exit = &b, func(int) {}
	for _, command := range k.Model.Children {
		if !containsFlag(command.Flags, flag) {
			continue
		}
		_, _ = k.Parse([]string{command.Name, "--help"}) // migrate goes on to miss its argument
		_, after, found := strings.Cut(b.String(), "--"+flag.Name+"=")
		require.True(t, found, "--%s in the help of %s", flag.Name, command.Name)
		about, _, _ := strings.Cut(after, "\n  --")
		return about
	}
	t.Fatalf("--%s belongs to no command", flag.Name)
	return ""
}

func containsFlag(flags []*kong.Flag, flag *kong.Flag) bool {
	for _, f := range flags {
		if f == flag {
			return true
		}
	}
	return false
}
