package app

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/internal/devstack"
	"github.com/cornjacket/platform-services/internal/pgtest"
	"github.com/cornjacket/platform-services/internal/tlstest"
	"github.com/cornjacket/platform-services/pubsub/mqtt"
	"github.com/cornjacket/platform-services/routers"
)

// securePostgres returns the URL of a server that speaks TLS, to be verified.
func securePostgres(t *testing.T) string {
	t.Helper()
	pg := pgtest.Server(t)
	conn, err := pgx.Connect(t.Context(), pg.URL())
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(t.Context())) }()
	var dir string
	require.NoError(t, conn.QueryRow(t.Context(), `SHOW data_directory`).Scan(&dir))
	files := tlstest.Write(t, dir)
	owner, err := os.Stat(filepath.Join(dir, "PG_VERSION"))
	require.NoError(t, err)
	stat := owner.Sys().(*syscall.Stat_t)
	for _, file := range []string{files.Key, files.Cert} { // the server takes no key that others can read
		require.NoError(t, os.Chown(file, int(stat.Uid), int(stat.Gid)))
	}
	for _, set := range []string{`ssl_cert_file = 'cert.pem'`, `ssl_key_file = 'key.pem'`, `ssl = on`} {
		_, err := conn.Exec(t.Context(), `ALTER SYSTEM SET `+set)
		require.NoError(t, err)
	}
	_, err = conn.Exec(t.Context(), `SELECT pg_reload_conf()`)
	require.NoError(t, err)
	authority := filepath.Join(t.TempDir(), "ca.pem") // the data folder is not everyone's
	data, err := os.ReadFile(files.CA)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(authority, data, 0o600))

	u, err := url.Parse(pg.URL())
	require.NoError(t, err)
	u.RawQuery = url.Values{"sslmode": {"verify-full"}, "sslrootcert": {authority}}.Encode()
	require.Eventually(t, func() bool {
		conn, err := pgx.Connect(t.Context(), u.String())
		return err == nil && conn.Close(t.Context()) == nil
	}, soon, every, "PostgreSQL never speaks TLS")
	return u.String()
}

// secureMQTT starts a Mosquitto that speaks TLS and asks for a password.
func secureMQTT(t *testing.T, user, password string) (broker string, files tlstest.Files) {
	t.Helper()
	program := func(name string) string {
		for _, candidate := range []string{name, "/usr/sbin/" + name} {
			if path, err := exec.LookPath(candidate); err == nil {
				return path
			}
		}
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is not installed, and CI must not skip this test", name)
		}
		t.Skipf("%s is not installed: apt-get install mosquitto", name)
		return ""
	}
	mosquitto, passwd := program("mosquitto"), program("mosquitto_passwd")
	dir := t.TempDir()
	files = tlstest.Write(t, dir)
	out, err := exec.Command(passwd, "-b", "-c", dir+"/passwords", user, password).CombinedOutput()
	require.NoError(t, err, "%s", out)
	addr := unused(t)
	_, port, _ := strings.Cut(addr, ":")
	conf := fmt.Sprintf("listener %s 127.0.0.1\ncertfile %s\nkeyfile %s\nallow_anonymous false\npassword_file %s/passwords\nuser root\n", port, files.Cert, files.Key, dir)
	require.NoError(t, os.WriteFile(dir+"/mosquitto.conf", []byte(conf), 0o600))
	cmd := exec.Command(mosquitto, "-c", dir+"/mosquitto.conf")
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait() // it was killed
	})
	return "mqtts://" + addr, files
}

// publish sends a message as a device does.
func publish(t *testing.T, broker string, files tlstest.Files, user, password, topic, body string) {
	t.Helper()
	u, err := url.Parse(broker)
	require.NoError(t, err)
	conn, err := mqtt.Dial(t.Context(), u, files.Client(t), soon)
	require.NoError(t, err)
	client := paho.NewClient(paho.ClientConfig{Conn: conn})
	_, err = client.Connect(t.Context(), &paho.Connect{
		ClientID: "device", CleanStart: true, KeepAlive: 30,
		Username: user, UsernameFlag: true, Password: []byte(password), PasswordFlag: true,
	})
	require.NoError(t, err)
	_, err = client.Publish(t.Context(), &paho.Publish{Topic: topic, QoS: 1, Payload: []byte(body)})
	require.NoError(t, err)
	require.NoError(t, client.Disconnect(&paho.Disconnect{}))
}

// Everything the platform depends on speaks TLS and asks for a password.
func TestRunWithTLSAndPasswordsEverywhere(t *testing.T) {
	t.Parallel()
	const user, password = "platform", "pass,w0rd:%/"
	files := tlstest.Write(t, t.TempDir())
	broker, err := devstack.StartKafka(devstack.KafkaConfig{
		Addr: free, TLS: files.Server(t), Log: quiet,
		Users: []devstack.KafkaUser{{Mechanism: "SCRAM-SHA-512", Name: user, Password: password}},
	})
	require.NoError(t, err)
	t.Cleanup(broker.Close)
	database := securePostgres(t)
	mqttURL, mqttFiles := secureMQTT(t, user, password)

	cfg := settings(t, database, broker.Addr())
	cfg.Bus = config.Bus{
		RedpandaTLS: true, RedpandaTLSCAFile: files.CA,
		RedpandaSASLMechanism: "scram-sha-512", RedpandaSASLUsername: user, RedpandaSASLPassword: password,
	}
	cfg.EmbeddedMQTT, cfg.MQTTURL, cfg.MQTTTLSCAFile = false, mqttURL, mqttFiles.CA
	cfg.MQTTUsername, cfg.MQTTPassword = user, password
	p := start(t, cfg)
	require.Equal(t, http.StatusAccepted, post(t, p.addrs[routers.Ingestion], "device-http", 7))
	arrives(t, p.addrs[routers.Query], "device-http", 7)
	publish(t, mqttURL, mqttFiles, user, password, "devices/device-mqtt/events/sensor.reading", `{"value":8,"unit":"c"}`)
	arrives(t, p.addrs[routers.Query], "device-mqtt", 8)

	pool := pgtest.Pool(t, database)
	var plain int
	require.NoError(t, pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
		WHERE application_name LIKE 'cornjacket-%' AND NOT ssl`).Scan(&plain))
	require.Zero(t, plain, "each connection to PostgreSQL is encrypted")

	publish(t, mqttURL, mqttFiles, user, password, "devices/device-mqtt/events/sensor.reading", `{"value":"hot"}`)
	consumer, err := kgo.NewClient(kgo.SeedBrokers(broker.Addr()), kgo.ConsumeTopics("sensor-events.dlq"), kgo.DialTLSConfig(files.Client(t)),
		kgo.SASL(scram.Auth{User: user, Pass: password}.AsSha512Mechanism()))
	require.NoError(t, err)
	defer consumer.Close()
	fetches := consumer.PollFetches(t.Context())
	require.NoError(t, fetches.Err())
	require.Equal(t, `{"value":"hot"}`, string(fetches.Records()[0].Value), "the publisher of dead letters logs in too")
}

func TestAuthoritiesThatCanNotBeRead(t *testing.T) {
	t.Parallel()
	missing := filepath.Join(t.TempDir(), "none.pem")
	for variable, change := range map[string]func(*config.Run){
		"REDPANDA_TLS_CA_FILE": func(c *config.Run) { c.RedpandaTLS, c.RedpandaTLSCAFile = true, missing },
		"MQTT_TLS_CA_FILE":     func(c *config.Run) { c.MQTTTLSCAFile = missing },
	} {
		cfg := settings(t, "postgres://u:p@127.0.0.1:1/d", "127.0.0.1:1")
		cfg.StartupTimeout = 10 * time.Second
		change(&cfg)
		err := Run(t.Context(), cfg, quiet)
		require.ErrorContains(t, err, variable)
		require.ErrorContains(t, err, missing)
	}
}
