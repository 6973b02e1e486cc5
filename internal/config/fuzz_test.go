package config_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/internal/config"
)

// kindVariables are variables of each kind of setting.
var kindVariables = []string{
	"SERVICES", "INGESTION_ADDR", "INGESTION_DATABASE_URL", "REDPANDA_BROKERS", "MQTT_URL", "MQTT_CLIENT_ID", "TOPIC_PARTITIONS", "TOPIC_REPLICATION",
	"TOPIC_RETENTION", "WINDOW", "LOG_LEVEL", "EMBEDDED_MQTT", "API_TOKENS", "API_AUTH", "REDPANDA_SASL_MECHANISM", "RETRY_MAX",
}

// refusedIn asks that an error about a setting is one readable line.
func refusedIn(t *testing.T, err error) {
	t.Helper()
	var e *config.Error
	require.ErrorAs(t, err, &e)
	require.NotContains(t, e.Error(), "\n")
	require.Less(t, len(e.Error()), 1000)
}

func FuzzSettings(f *testing.F) {
	for i := range kindVariables {
		for _, value := range []string{
			"x", "1", "-1", "99999999999999999999", "1h", "a:1", "[::1]:1", "a:1,b:2", "ingestion", "postgres://u:p@h/d", "mqtt://h", "mqtts://[::1%25eth0]:1", "true",
			"a:read:" + strings.Repeat("ab", 32), "\x00", "\xff", "a\nb", "%zz", ":", ",", "://", "none",
		} {
			f.Add(uint8(i), value)
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, value string) {
		variable := kindVariables[int(kind)%len(kindVariables)]
		if _, err := parse(t, map[string]string{variable: value}, "run"); err != nil {
			refusedIn(t, err)
		}
	})
}

// FuzzSettingsKeepPasswords gives passwords where they belong and where they do not: no error shows them.
func FuzzSettingsKeepPasswords(f *testing.F) {
	for _, rest := range []string{"", "@h/d", "@h:x/d", "/d", "@", "@[::1/d", "?x=y", "@h/d?sslmode=bogus", "#x", "\n", "%zz@h", " @h/d", "@h@i/d", "\x7f"} {
		f.Add(rest)
	}
	f.Fuzz(func(t *testing.T, rest string) {
		for variable, scheme := range map[string]string{"QUERY_DATABASE_URL": "postgres://", "MQTT_URL": "mqtt://", "REDPANDA_BROKERS": "", "INGESTION_ADDR": "", "API_TOKENS": ""} {
			for _, user := range []string{"user:", "", ":"} {
				if user == "" && scheme == "" && variable != "API_TOKENS" {
					continue // it is no password then, but the value
				}
				_, err := parse(t, map[string]string{variable: scheme + user + "Xq7-geheim" + rest}, "run")
				if err != nil && user != "" {
					refusedIn(t, err)
					if strings.HasPrefix(rest, "@") || variable == "API_TOKENS" {
						require.NotContains(t, err.Error(), "geheim", variable)
					}
				}
			}
		}
	})
}

func FuzzTokensFile(f *testing.F) {
	hash := strings.Repeat("ab", 32)
	for _, text := range []string{"", "# x\n", "a:read:" + hash, "a:read+ingest:" + hash + "\r\n\r\nb:operate:" + strings.ToUpper(hash), "geheim", "a:read:geheim", "a:b:c:d", "\x00", ":::"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		list, err := config.ParseTokensFile(text)
		if err != nil {
			require.Empty(t, list)
			require.NotContains(t, err.Error(), "\n")
			require.Less(t, len(err.Error()), 300)
			return
		}
		var lines []string
		for _, token := range list {
			require.NotEmpty(t, token.Name)
			require.NotEmpty(t, token.Scopes)
			lines = append(lines, token.String())
		}
		again, err := config.ParseTokensFile(strings.Join(lines, "\n"))
		require.NoError(t, err)
		require.Equal(t, list, again)
	})
}
