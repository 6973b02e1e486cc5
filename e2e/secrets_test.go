package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/internal/devstack"
	"github.com/cornjacket/platform-services/internal/pgtest"
	"github.com/cornjacket/platform-services/internal/tlstest"
)

// marker is in each secret of these tests, and in nothing else.
const marker = "Xq7-Geheim"

func secret(of string) string { return marker + "-" + of }

// silent asks that nothing the process has printed shows a secret.
func silent(t *testing.T, p *process) {
	t.Helper()
	require.NotContains(t, p.stdout.String()+p.stderr.String(), marker)
}

// secrets are in every setting that can hold one, also where they do not belong.
func secrets(database string) []string {
	return []string{
		"INGESTION_DATABASE_URL=" + database, "EVENTHANDLER_DATABASE_URL=" + database, "QUERY_DATABASE_URL=" + database,
		"REDPANDA_SASL_MECHANISM=scram-sha-256", "REDPANDA_SASL_USERNAME=bus-user", "REDPANDA_SASL_PASSWORD=" + secret("bus"),
		"MQTT_USERNAME=mqtt-user", "MQTT_PASSWORD=" + secret("mqtt"), "LOG_LEVEL=debug", "STARTUP_TIMEOUT=1s",
		"INGESTION_ADDR=127.0.0.1:0", "QUERY_ADDR=127.0.0.1:0", "EVENTHANDLER_HEALTH_ADDR=127.0.0.1:0", "RELAY_HEALTH_ADDR=127.0.0.1:0",
	}
}

// Starts that fail show no secret, whatever is wrong with the settings.
func TestNoSecretInAStartThatFails(t *testing.T) {
	t.Parallel()
	own(t)
	here, err := url.Parse(pgtest.URL(t))
	require.NoError(t, err)
	wrong := *here
	wrong.User = url.UserPassword("cornjacket", secret("database"))
	nowhere := "postgres://someone:" + secret("database") + "@127.0.0.1:1/d"
	dir := newFolder(t)
	badTokens, badKey := filepath.Join(dir, "tokens"), filepath.Join(dir, "key.pem")
	require.NoError(t, os.WriteFile(badTokens, []byte(secret("token")), 0o600))
	require.NoError(t, os.WriteFile(badKey, []byte(secret("key")), 0o600))
	for name, c := range map[string]struct {
		database string
		env      []string
		args     []string
	}{
		"no server":                 {database: nowhere},
		"wrong password":            {database: wrong.String()},
		"password as a parameter":   {database: "postgres://127.0.0.1:1/d?user=someone&password=" + secret("database")},
		"bad parameter":             {database: nowhere + "?sslmode=" + "bogus&password=" + secret("parameter")},
		"missing authority":         {database: nowhere + "?sslmode=verify-full&sslrootcert=/none&sslpassword=" + secret("parameter")},
		"not a URL":                 {database: "postgres://someone:" + secret("database") + "@[::1/d"},
		"key=value":                 {database: "host=127.0.0.1 port=1 password=" + secret("database")},
		"another scheme":            {database: "mysql://someone:" + secret("database") + "@127.0.0.1:1/d?password=" + secret("parameter")},
		"password with a space":     {database: "postgres://someone:a b" + secret("database") + "@127.0.0.1:1/d"},
		"user in the URL of MQTT":   {database: nowhere, env: []string{"MQTT_URL=mqtt://someone:" + secret("mqtt") + "@127.0.0.1:1"}},
		"user among the brokers":    {database: nowhere, env: []string{"REDPANDA_BROKERS=someone:" + secret("bus") + "@127.0.0.1:1"}},
		"token in place of entries": {database: nowhere, env: []string{"API_TOKENS=" + secret("token")}},
		"token in place of a hash":  {database: nowhere, env: []string{"API_TOKENS=me:read:" + secret("token")}},
		"token in place of a name":  {database: nowhere, env: []string{"API_TOKENS=" + secret("token") + "!:read:00"}},
		"token in a file":           {database: nowhere, env: []string{"API_TOKENS_FILE=" + badTokens}},
		"key that is none":          {database: nowhere, env: []string{"TLS_CERT_FILE=" + badKey, "TLS_KEY_FILE=" + badKey}},
		"password without login":    {database: nowhere, env: []string{"REDPANDA_SASL_MECHANISM=none"}},
		"migrate":                   {database: nowhere, args: []string{"migrate", "status"}},
		"migrate, wrong password":   {database: wrong.String(), args: []string{"migrate", "up"}},
		"migrate, bad parameter":    {database: nowhere + "?sslmode=bogus&password=" + secret("parameter"), args: []string{"migrate", "up"}},
		"simulate":                  {database: nowhere, args: []string{"simulate", "--url=mqtt://127.0.0.1:1", "--count=1", "--duration=1s"}},
		"flags":                     {database: nowhere, args: []string{"run", "--mqtt-password=" + secret("flag"), "--redpanda-sasl-password=" + secret("flag"), "--window=x"}},
		"unknown flag":              {database: nowhere, args: []string{"run", "--mqtt-passwort=" + secret("flag")}},
		"help":                      {database: nowhere, args: []string{"run", "--help"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			args := c.args
			if args == nil {
				args = []string{"run"}
			}
			p := platformCommand(t, append(secrets(c.database), c.env...), args...)
			require.NotEmpty(t, p.stdout.String()+p.stderr.String())
			if name != "help" {
				require.NotZero(t, p.code, "%s", p.stderr.tail())
			}
			silent(t, p)
		})
	}
}

// sqlText is what no answer may hold: statements, and what PostgreSQL says of them.
var sqlText = regexp.MustCompile(`(?i)\b(select|insert|update|delete)\b.*\b(from|into|set|where)\b|sqlstate|\brelation\b|\bcolumn\b|syntax error|pgx|pgconn`)

// A platform that loses all it depends on, and is asked for everything meanwhile, shows neither secrets nor SQL.
func TestNoSecretAndNoSQLWhileEverythingFails(t *testing.T) {
	t.Parallel()
	own(t)
	admin := pgtest.URL(t)
	role := strings.ReplaceAll(unique("role"), "-", "_")
	conn, err := pgx.Connect(t.Context(), admin)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(context.WithoutCancel(t.Context()))) }()
	execute := func(sql string) {
		t.Helper()
		_, err := conn.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	execute(fmt.Sprintf(`CREATE ROLE %s LOGIN PASSWORD '%s'`, role, secret("database")))
	execute(`GRANT ALL ON SCHEMA public TO ` + role)
	u, err := url.Parse(admin)
	require.NoError(t, err)
	u.User = url.UserPassword(role, secret("database"))

	files := tlstest.Write(t, newFolder(t))
	bus, err := devstack.StartKafka(devstack.KafkaConfig{
		Addr: "127.0.0.1:0", TLS: files.Server(t), Log: slog.New(slog.DiscardHandler),
		Users: []devstack.KafkaUser{{Mechanism: "SCRAM-SHA-256", Name: "bus-user", Password: secret("bus")}},
	})
	require.NoError(t, err)
	closeBus := func() {
		if bus != nil {
			bus.Close()
			bus = nil
		}
	}
	t.Cleanup(closeBus)
	broker := startMosquitto(t)
	token := platformCommand(t, nil, "token", "--scopes=ingest,read,operate", "everything")
	lines := strings.Split(token.stdout.String(), "\n")
	bearer, entry := strings.TrimSpace(lines[1]), strings.TrimSpace(lines[3])

	proc, err := launch(append(secrets(u.String()),
		"REDPANDA_BROKERS="+bus.Addr(), "REDPANDA_TLS=true", "REDPANDA_TLS_CA_FILE="+files.CA, "MQTT_URL=mqtt://"+broker.addr,
		"API_AUTH=on", "API_TOKENS="+entry, "STARTUP_TIMEOUT=30s", "INGEST_TIMEOUT=1s"), binary, "run")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, proc.kill()) })
	p := &platform{process: proc}
	require.NoError(t, p.awaitReady(t.Context(), ""))

	// ask requests all there is, with a good token and with one that is not, and returns the statuses.
	ask := func() (statuses []int) {
		for _, target := range []string{
			"GET " + p.query + "/api/v1/events", "GET " + p.query + "/api/v1/events/0190a5c0-7b1e-7c3a-9d3e-5f6a7b8c9d0e",
			"GET " + p.query + "/api/v1/projections/sensor_state", "GET " + p.query + "/api/v1/projections/sensor_state/device-1",
			"GET " + p.query + "/api/v1/events?access_token=" + secret("in-the-url"), "GET " + p.query + "/" + secret("in-the-path"),
			"POST " + p.ingestion + eventsPath, "POST " + p.ingestion + batchPath,
			"GET " + p.ingestion + "/health", "GET " + p.query + "/health", "GET " + p.relay + "/health", "GET " + p.eventhandler + "/health",
			"GET " + p.ingestion + "/metrics", "GET " + p.ingestion + "/openapi.json", "GET " + p.query + "/openapi.json",
		} {
			method, address, _ := strings.Cut(target, " ")
			body := envelope("extra", "")
			if strings.HasSuffix(address, batchPath) {
				body = "[" + body + "]"
			}
			for _, with := range []string{bearer, secret("wrong-token")} {
				a, err := request(t.Context(), method, address, []byte(body), "Content-Type", typeJSON, "Authorization", "Bearer "+with)
				require.NoError(t, err)
				require.NotContains(t, string(a.body), marker, target)
				require.NotContains(t, string(a.body), bearer, target)
				if !strings.HasSuffix(address, "/openapi.json") && !strings.HasSuffix(address, "/metrics") {
					require.NotRegexp(t, sqlText, string(a.body), target)
				}
				if with == bearer {
					statuses = append(statuses, a.status)
				}
			}
		}
		return statuses
	}
	failing := func(check string, ports ...string) {
		t.Helper()
		for _, port := range ports {
			require.Eventually(t, func() bool {
				status, r, err := askHealth(t.Context(), port)
				return err == nil && status == http.StatusServiceUnavailable && r.Checks[check]["status"] == "failing"
			}, wait, tick, "%s of %s", check, port)
		}
	}
	require.Contains(t, ask(), http.StatusAccepted)

	for _, table := range []string{"outbox", "event_store", "projections"} { // statements fail, the database does not
		execute(`ALTER TABLE ` + table + ` RENAME TO away_` + table)
	}
	statuses := ask()
	require.Contains(t, statuses, http.StatusInternalServerError, "the query API's own fault")
	require.Contains(t, statuses, http.StatusServiceUnavailable, "%v", statuses)
	for _, table := range []string{"outbox", "event_store", "projections"} {
		execute(`ALTER TABLE away_` + table + ` RENAME TO ` + table)
	}

	execute(`ALTER ROLE ` + role + ` PASSWORD 'another'`)
	execute(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '` + role + `'`)
	failing("postgres", p.ingestion, p.query, p.eventhandler, p.relay)
	require.NotContains(t, ask(), http.StatusAccepted)

	closeBus()
	require.NoError(t, broker.process.kill())
	failing("bus", p.relay, p.eventhandler)
	failing("mqtt", p.ingestion)
	ask()

	require.NoError(t, proc.signal(syscall.SIGQUIT)) // prints all stacks
	_, err = proc.ended(wait)
	require.NoError(t, err)
	silent(t, proc)
	require.NotContains(t, proc.stderr.String(), bearer)
	require.Contains(t, proc.stderr.String(), "goroutine ")
}
