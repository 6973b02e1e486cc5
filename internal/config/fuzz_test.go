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
	for i, value := range []string{ // a good one for each
		"ingestion", "[::1]:1", "postgres://u:p@h/d", "a:1,b:2", "mqtts://[::1%25eth0]:1", "id", "1", "-1", "1h", "65535", "debug", "true",
		"a:read:" + strings.Repeat("ab", 32), "auto", "none", "0",
	} {
		f.Add(uint8(i), value)
	}
	for i, value := range []string{"x", "-1", "99999999999999999999", "a:1", "\x00", "\xff", "a\nb", "%zz", ":", ",", "://", ",,", "a:b:c", "  ", strings.Repeat("x", 300)} {
		f.Add(uint8(i), value)
		f.Add(uint8(i+7), value)
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
	for _, rest := range []string{"", "@h:x/d", "@[::1/d", "?x=y", "%zz@h", " @h/d"} {
		f.Add(rest)
	}
	f.Fuzz(func(t *testing.T, rest string) {
		for variable, scheme := range map[string]string{"QUERY_DATABASE_URL": "postgres://", "MQTT_URL": "mqtt://", "REDPANDA_BROKERS": "", "INGESTION_ADDR": "", "API_TOKENS": ""} {
			_, err := parse(t, map[string]string{variable: scheme + "user:Xq7-geheim" + rest}, "run")
			if err == nil {
				continue
			}
			refusedIn(t, err)
			if strings.HasPrefix(rest, "@") || variable == "API_TOKENS" { // else it need not be a password
				require.NotContains(t, err.Error(), "geheim", variable)
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
