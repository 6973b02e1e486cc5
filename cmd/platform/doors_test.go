package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/internal/tlstest"
)

func TestToken(t *testing.T) {
	t.Parallel()
	check := func(token, entry string) {
		require.Regexp(t, `^cornjacket_[A-Za-z0-9_-]{43}$`, token)
		hash := sha256.Sum256([]byte(token))
		require.Equal(t, "ci:ingest+read:"+hex.EncodeToString(hash[:]), entry)
		_, err := config.ParseTokensFile(entry)
		require.NoError(t, err)
	}
	seen := map[string]bool{}
	for range 3 {
		code, stdout, stderr := call(t, work{}, nil, "token", "ci", "--scopes=read,ingest")
		require.Equal(t, exitOK, code)
		require.Empty(t, stderr)
		lines := strings.Split(stdout, "\n")
		require.Len(t, lines, 5)
		check(strings.TrimSpace(lines[1]), strings.TrimSpace(lines[3]))
		require.False(t, seen[lines[1]])
		seen[lines[1]] = true
	}
	_, stdout, _ := call(t, work{}, nil, "token", "--json", "--scopes=ingest,read", "ci")
	var made struct{ Token, Entry string }
	require.NoError(t, json.Unmarshal([]byte(stdout), &made))
	check(made.Token, made.Entry)
}

func TestHealthOverTLS(t *testing.T) {
	t.Parallel()
	files, others := tlstest.Write(t, t.TempDir()), tlstest.Write(t, t.TempDir())
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"status":"ok"}`)
	}))
	s.TLS = files.Server(t)
	s.Config.ErrorLog = nil
	s.StartTLS()
	t.Cleanup(s.Close)
	addr := s.Listener.Addr().String()
	for name, c := range map[string]struct {
		env    map[string]string
		code   int
		stdout string
	}{
		"as the services have it":          {map[string]string{"TLS_CERT_FILE": files.Cert, "TLS_KEY_FILE": files.Key}, exitOK, "ok"},
		"an authority":                     {map[string]string{"HEALTH_TLS_CA_FILE": files.CA}, exitOK, "ok"},
		"an authority before all":          {map[string]string{"HEALTH_TLS_CA_FILE": files.CA, "TLS_CERT_FILE": others.Cert}, exitOK, "ok"},
		"another certificate":              {map[string]string{"TLS_CERT_FILE": others.Cert}, exitError, "certificate is not the one in"},
		"another authority":                {map[string]string{"HEALTH_TLS_CA_FILE": others.CA}, exitError, "unknown authority"},
		"in the clear":                     {nil, exitError, "answered 400"},
		"a certificate that can't be read": {map[string]string{"TLS_CERT_FILE": "/none.pem"}, exitError, ""},
	} {
		code, stdout, stderr := call(t, work{}, c.env, "health", "--addr", addr)
		require.Equal(t, c.code, code, "%s: %s%s", name, stdout, stderr)
		require.Contains(t, stdout, c.stdout, name)
	}
	_, _, stderr := call(t, work{}, map[string]string{"TLS_CERT_FILE": "/none.pem"}, "health")
	require.Contains(t, stderr, "TLS_CERT_FILE: read certificate to expect: open /none.pem")
}
