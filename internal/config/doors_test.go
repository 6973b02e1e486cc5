package config_test

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/internal/config"
)

var hashOfX = hex.EncodeToString(func() []byte { h := sha256.Sum256([]byte("x")); return h[:] }())

func TestTokens(t *testing.T) {
	t.Parallel()
	g, err := parse(t, map[string]string{"API_TOKENS": "gateway:ingest:" + hashOfX + ", ops.team:read+operate:" + strings.ToUpper(hashOfX) + ","}, "run")
	require.NoError(t, err)
	hash := sha256.Sum256([]byte("x"))
	want := []config.APIToken{
		{Name: "gateway", Scopes: []string{"ingest"}, Hash: hash},
		{Name: "ops.team", Scopes: []string{"read", "operate"}, Hash: hash},
	}
	require.Equal(t, want, g.Run.APITokens)
	require.Equal(t, "ops.team:read+operate:"+hashOfX, want[1].String())

	list, err := config.ParseTokensFile("# who\r\n\r\n  " + want[0].String() + "  \r\n#\n" + want[1].String())
	require.NoError(t, err)
	require.Equal(t, want, list)

	g, err = parse(t, map[string]string{"API_TOKENS": want[0].String(), "API_AUTH": "ON"}, "dev")
	require.NoError(t, err)
	require.Equal(t, config.AuthOn, g.Dev.APIAuth)
	require.Equal(t, want[:1], g.Dev.APITokens)
}

func TestTokensThatAreRefused(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		"geheim":                                     "entry 1 is not name:scopes:hash",
		"a:read:geheim":                              "entry 1 (a) has a hash that is not the 64 hexadecimal digits of SHA-256",
		"a:read:" + hashOfX[:62]:                     "entry 1 (a) has a hash that is not the 64 hexadecimal digits of SHA-256",
		"a:read:" + hashOfX + "00":                   "entry 1 (a) has a hash that is not the 64 hexadecimal digits of SHA-256",
		"a:write:" + hashOfX:                         "entry 1 (a) has a scope that is not one of ingest, read, operate",
		"a::" + hashOfX:                              "entry 1 (a) has a scope that is not one of ingest, read, operate",
		"a:read+:" + hashOfX:                         "entry 1 (a) has a scope that is not one of ingest, read, operate",
		":read:" + hashOfX:                           "entry 1 has a name that is not 1 to 64 of letters, digits, '.', '_' and '-'",
		"ge heim:read:" + hashOfX:                    "entry 1 has a name that is not 1 to 64 of letters, digits, '.', '_' and '-'",
		"a:read:" + hashOfX + ",geheim":              "entry 2 is not name:scopes:hash",
		"a:read:" + hashOfX + ",a:ingest:" + hashOfX: "has two tokens with the name a",
	} {
		_, err := parse(t, map[string]string{"API_TOKENS": value}, "run")
		var e *config.Error
		require.ErrorAs(t, err, &e, value)
		require.Equal(t, "API_TOKENS", e.Env)
		require.Equal(t, want, e.Problem)
		require.NotContains(t, err.Error(), "heim")
		require.NotContains(t, err.Error(), hashOfX[:62])
	}
	_, err := config.ParseTokensFile("\n# x\ngeheim\n")
	require.EqualError(t, err, "line 3 is not name:scopes:hash")
}

func TestTokenCommand(t *testing.T) {
	t.Parallel()
	g, err := parse(t, nil, "token", "ci", "--scopes=operate,ingest")
	require.NoError(t, err)
	require.Equal(t, config.Token{Name: "ci", Scopes: []string{"ingest", "operate"}}, g.Token)
	for _, args := range [][]string{{"token", "ci"}, {"token", "--scopes=read"}, {"token", "a b", "--scopes=read"}, {"token", "a", "--scopes=write"}, {"token", "a", "--scopes=,"}} {
		_, err := parse(t, nil, args...)
		require.Error(t, err, args)
	}
}

func TestDoorsThatDoNotGoTogether(t *testing.T) {
	t.Parallel()
	for want, env := range map[string]map[string]string{
		"TLS_KEY_FILE (--tls-key-file): must be given with TLS_CERT_FILE; takes a file":                                                            {"TLS_CERT_FILE": "/c"},
		"TLS_CERT_FILE (--tls-cert-file): must be given with TLS_KEY_FILE; takes a file":                                                           {"TLS_KEY_FILE": "/k"},
		"API_TOKENS (--api-tokens): must be given with API_AUTH=on; takes a comma-separated list of name:scopes:hash, as platform token prints it": {"API_AUTH": "on"},
		"API_AUTH (--api-auth): \"maybe\" is not one of them; takes auto, on or off":                                                               {"API_AUTH": "maybe"},
	} {
		for _, command := range []string{"run", "dev"} {
			_, err := parse(t, env, command)
			require.EqualError(t, refusal(t, err), want, command)
		}
	}
	for want, env := range map[string]map[string]string{
		"REDPANDA_TLS (--redpanda-tls): must be given with REDPANDA_TLS_CA_FILE; takes true or false":                                                                 {"REDPANDA_TLS_CA_FILE": "/c"},
		"REDPANDA_SASL_USERNAME (--redpanda-sasl-username): must be given with REDPANDA_SASL_MECHANISM; takes a name":                                                 {"REDPANDA_SASL_MECHANISM": "plain"},
		"REDPANDA_SASL_MECHANISM (--redpanda-sasl-mechanism): must be given with a user or a password for the bus; takes none, plain, scram-sha-256 or scram-sha-512": {"REDPANDA_SASL_PASSWORD": "geheim"},
		"REDPANDA_SASL_MECHANISM (--redpanda-sasl-mechanism): \"gssapi\" is not one of them; takes none, plain, scram-sha-256 or scram-sha-512":                       {"REDPANDA_SASL_MECHANISM": "gssapi"},
	} {
		_, err := parse(t, env, "run")
		require.EqualError(t, refusal(t, err), want)
	}
	g, err := parse(t, map[string]string{"REDPANDA_TLS": "true", "REDPANDA_SASL_MECHANISM": "SCRAM-SHA-512", "REDPANDA_SASL_USERNAME": "u", "REDPANDA_SASL_PASSWORD": "p"}, "run")
	require.NoError(t, err)
	require.Equal(t, config.Bus{RedpandaTLS: true, RedpandaSASLMechanism: "scram-sha-512", RedpandaSASLUsername: "u", RedpandaSASLPassword: "p"}, g.Run.Bus)
}

func refusal(t *testing.T, err error) error {
	t.Helper()
	var e *config.Error
	require.ErrorAs(t, err, &e)
	return e
}
