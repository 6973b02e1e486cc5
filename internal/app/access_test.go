package app

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/internal/pgtest"
	"github.com/cornjacket/platform-services/internal/tlstest"
	"github.com/cornjacket/platform-services/routers"
)

const everywhere = "0.0.0.0:0"

// apiToken is a token whose secret is its name.
func apiToken(name string, scopes ...string) config.APIToken {
	return config.APIToken{Name: name, Scopes: scopes, Hash: sha256.Sum256([]byte(name))}
}

// here is where a port that listens everywhere is reached.
func here(t *testing.T, addr string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(addr)
	require.NoError(t, err)
	return net.JoinHostPort("127.0.0.1", port)
}

// knock sends a request with a token, and returns the status; 0 without an answer.
func knock(t *testing.T, client *http.Client, method, url, token string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url,
		strings.NewReader(`{"event_type":"sensor.reading","aggregate_id":"device-1","payload":{"value":1,"unit":"c"}}`))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

func TestTokensAreAskedForOffLoopback(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "tokens")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, "# operators\n\n%s\n", apiToken("o", "operate")), 0o600))
	cfg := settings(t, pgtest.URL(t), bus(t).Addr())
	cfg.Listen = cfg.Listen.With("INGESTION_ADDR", everywhere).With("EVENTHANDLER_HEALTH_ADDR", everywhere)
	cfg.APITokens = []config.APIToken{apiToken("i", "ingest"), apiToken("ir", "ingest", "read")}
	cfg.APITokensFile = file
	p := start(t, cfg)
	ingestion, eventhandler := "http://"+here(t, p.addrs[routers.Ingestion]), "http://"+here(t, p.addrs[routers.Eventhandler])
	for _, c := range []struct {
		request, token string
		want           int
	}{
		{"POST " + ingestion + "/api/v1/events", "", 401},
		{"POST " + ingestion + "/api/v1/events", "x", 401},
		{"POST " + ingestion + "/api/v1/events", "o", 403},
		{"POST " + ingestion + "/api/v1/events", "i", 202},
		{"POST " + ingestion + "/api/v1/events", "ir", 202},
		{"GET " + ingestion + "/metrics", "", 401},
		{"GET " + ingestion + "/metrics", "i", 403},
		{"GET " + ingestion + "/metrics", "ir", 200},
		{"GET " + ingestion + "/health", "", 200},
		{"GET " + ingestion + "/livez", "", 200},
		{"GET " + ingestion + "/openapi.json", "", 200},
		{"GET " + eventhandler + "/health", "", 200},
		{"GET " + eventhandler + "/metrics", "", 401},
		{"DELETE " + eventhandler + "/new", "ir", 403},
		{"DELETE " + eventhandler + "/new", "o", 404},
		{"GET http://" + p.addrs[routers.Query] + "/api/v1/events", "", 200}, // on loopback
		{"GET http://" + p.addrs[routers.Relay] + "/metrics", "", 200},
	} {
		method, url, _ := strings.Cut(c.request, " ")
		require.Equal(t, c.want, knock(t, client, method, url, c.token), "%s with %q", c.request, c.token)
	}
	resp, err := client.Get("http://" + p.addrs[routers.Relay] + "/metrics")
	require.NoError(t, err)
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Contains(t, string(text), `cornjacket_http_denied_total{reason="insufficient scope"} 3`)
	require.Contains(t, string(text), `cornjacket_http_denied_total{reason="invalid token"} 1`)
	require.Contains(t, string(text), `cornjacket_http_denied_total{reason="no token"} 3`)
}

func TestPagesOfOtherSitesDoNotGetIn(t *testing.T) {
	t.Parallel()
	cfg := settings(t, pgtest.URL(t), bus(t).Addr())
	cfg.Listen = cfg.Listen.With("QUERY_ADDR", everywhere).With("RELAY_HEALTH_ADDR", everywhere)
	cfg.APITokens = []config.APIToken{apiToken("o", "operate", "read")}
	p := start(t, cfg)
	ask := func(method, addr, path, host string, header ...string) int {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+addr+path, nil)
		require.NoError(t, err)
		req.Host = host
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := client.Do(req)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		return resp.StatusCode
	}
	own, query := p.addrs[routers.Eventhandler], here(t, p.addrs[routers.Query])
	require.Equal(t, 202, ask("POST", own, "/api/v1/dlq/replay", ""))
	require.Equal(t, 403, ask("POST", own, "/api/v1/dlq/replay", "", "Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"))
	require.Equal(t, 421, ask("GET", own, "/api/v1/dlq", "evil.example"))
	require.Equal(t, 200, ask("GET", query, "/health", "platform:8081"), "a guarded port is asked under any name")
	require.Equal(t, 200, ask("GET", query, "/api/v1/events", "platform:8081", "Authorization", "Bearer o"))
	require.Equal(t, 403, ask("POST", query, "/api/v1/x", "platform:8081", "Authorization", "Bearer o", "Sec-Fetch-Site", "cross-site"))
	require.NoError(t, p.stop())

	cfg.AllowedHosts = []string{"platform"}
	p = start(t, cfg)
	own, query = p.addrs[routers.Eventhandler], here(t, p.addrs[routers.Query])
	require.Equal(t, 200, ask("GET", own, "/api/v1/dlq", "platform"))
	require.Equal(t, 200, ask("GET", query, "/health", "platform:8081"))
	require.Equal(t, 421, ask("GET", query, "/health", "evil.example"), "a set list holds on every port")
}

func TestTokensAreReadAgain(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "tokens")
	write := func(text string, age time.Duration) {
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		require.NoError(t, os.Chtimes(file, time.Now(), time.Now().Add(-age)))
	}
	write(apiToken("old", "read").String(), 3*time.Hour)
	cfg := settings(t, pgtest.URL(t), bus(t).Addr())
	cfg.APIAuth, cfg.APITokensFile = config.AuthOn, file
	p := start(t, cfg)
	ask := func(token string) int {
		return knock(t, client, "GET", "http://"+p.addrs[routers.Query]+"/api/v1/events", token)
	}
	require.Equal(t, []int{200, 401}, []int{ask("old"), ask("new")})
	write(apiToken("new", "read").String(), 2*time.Hour)
	require.Equal(t, []int{401, 200}, []int{ask("old"), ask("new")}, "revoked without a restart")
	write("half of a li", time.Hour)
	require.Equal(t, []int{401, 200}, []int{ask("old"), ask("new")}, "what can't be read changes nothing")
	require.NoError(t, os.Remove(file))
	require.Equal(t, 200, ask("new"))
}

func TestAPIAuthOnAndOff(t *testing.T) {
	t.Parallel()
	database, brokers := pgtest.URL(t), bus(t).Addr()
	cfg := settings(t, database, brokers)
	cfg.APIAuth, cfg.APITokens = config.AuthOn, []config.APIToken{apiToken("r", "read")}
	p := start(t, cfg)
	require.Equal(t, 401, knock(t, client, "GET", "http://"+p.addrs[routers.Query]+"/api/v1/events", ""))
	require.Equal(t, 200, knock(t, client, "GET", "http://"+p.addrs[routers.Query]+"/api/v1/events", "r"))
	require.NoError(t, p.stop())

	cfg.APIAuth, cfg.APITokens, cfg.Listen = config.AuthOff, nil, cfg.Listen.With("QUERY_ADDR", everywhere)
	p = start(t, cfg)
	require.Equal(t, 200, knock(t, client, "GET", "http://"+here(t, p.addrs[routers.Query])+"/api/v1/events", ""))
}

func TestDoorsThatCanNotBeOpened(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	files := tlstest.Write(t, dir)
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	for name, tc := range map[string]struct {
		change func(*config.Run)
		wants  []string
	}{
		"not loopback without tokens": {
			func(c *config.Run) { c.Listen = c.Listen.With("QUERY_ADDR", everywhere) },
			[]string{"API_TOKENS: is empty, and QUERY_ADDR=0.0.0.0:0 is not loopback", "API_AUTH=off"},
		},
		"profiles not on loopback without tokens": {
			func(c *config.Run) { c.PprofAddr = ":0" },
			[]string{"API_TOKENS: is empty, and PPROF_ADDR=:0 is not loopback"},
		},
		"on without tokens": {
			func(c *config.Run) { c.APIAuth = config.AuthOn },
			[]string{"API_TOKENS: there is no token, but API_AUTH=on"},
		},
		"no file of tokens":    {func(c *config.Run) { c.APITokensFile = dir + "/none" }, []string{"API_TOKENS_FILE", dir + "/none"}},
		"file that is no list": {func(c *config.Run) { c.APITokensFile = write("bad", "\nthe-s3cret-itself\n") }, []string{"API_TOKENS_FILE", "line 2 is not name:scopes:hash"}},
		"two of the same name": {func(c *config.Run) {
			c.APITokens = []config.APIToken{apiToken("r", "read")}
			c.APITokensFile = write("two", apiToken("r", "read").String())
		}, []string{"API_TOKENS_FILE", "two tokens with the name r"}},
		"no certificate": {func(c *config.Run) { c.TLSCertFile, c.TLSKeyFile = dir+"/none.pem", files.Key }, []string{"TLS_CERT_FILE", dir + "/none.pem"}},
		"key of another": {func(c *config.Run) { c.TLSCertFile, c.TLSKeyFile = files.CA, files.Key }, []string{"TLS_CERT_FILE", "private key does not match"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := settings(t, "postgres://u:p@127.0.0.1:1/d", "127.0.0.1:1")
			tc.change(&cfg)
			ctx, cancel := context.WithTimeout(t.Context(), soon)
			defer cancel()
			err := Run(ctx, cfg, quiet)
			require.Error(t, err)
			for _, want := range tc.wants {
				require.ErrorContains(t, err, want)
			}
			require.NotContains(t, err.Error(), "s3cret")
			require.NotContains(t, err.Error(), "\n", "one line")
		})
	}
}

func TestPortsSpeakTLS(t *testing.T) {
	t.Parallel()
	files := tlstest.Write(t, t.TempDir())
	cfg := settings(t, pgtest.URL(t), bus(t).Addr())
	cfg.TLSCertFile, cfg.TLSKeyFile = files.Cert, files.Key
	cfg.PprofAddr = free
	p := start(t, cfg)
	for _, h2 := range []bool{false, true} {
		secure := &http.Client{Timeout: soon, Transport: &http.Transport{DisableKeepAlives: !h2, TLSClientConfig: files.Client(t), ForceAttemptHTTP2: h2}}
		for _, service := range routers.ServiceNames() {
			resp, err := secure.Get("https://" + p.addrs[service] + "/health")
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			require.Equal(t, http.StatusOK, resp.StatusCode)
			require.Equal(t, h2, resp.ProtoMajor == 2)
			require.GreaterOrEqual(t, int(resp.TLS.Version), 0x0303)
		}
		require.Equal(t, http.StatusAccepted, knock(t, secure, "POST", "https://"+p.addrs[routers.Ingestion]+"/api/v1/events", ""))
		secure.CloseIdleConnections()
	}
	require.Equal(t, http.StatusBadRequest, knock(t, client, "GET", "http://"+p.addrs[routers.Query]+"/health", ""), "nothing is answered in the clear")
	require.NoError(t, p.stop())
}

func TestConnectionsBeyondTheLimitAreClosed(t *testing.T) {
	t.Parallel()
	cfg := settings(t, pgtest.URL(t), bus(t).Addr())
	cfg.MaxConnections = 3
	p := start(t, cfg)
	addr := p.addrs[routers.Query]
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", addr)
		require.NoError(t, err)
		require.NoError(t, conn.SetDeadline(time.Now().Add(soon)))
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	asks := func(conn net.Conn, path string) bool {
		_, err := io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: localhost\r\n\r\n")
		if err != nil {
			return false
		}
		_, err = conn.Read(make([]byte, 4096))
		return err == nil
	}
	ask := func(conn net.Conn) bool { return asks(conn, "/api/v1/ledger") }
	var open []net.Conn
	require.Eventually(t, func() bool { // those of the start may not be closed yet
		for len(open) < 3 {
			conn := dial()
			if !ask(conn) {
				return false
			}
			open = append(open, conn)
		}
		return true
	}, soon, every)
	require.False(t, ask(dial()), "one too many")
	for range 3 * spareConns {
		dial() // and says nothing
		require.True(t, asks(dial(), "/health"), "a probe is answered all the same")
	}
	require.False(t, ask(dial()), "and nothing else")
	for _, conn := range open {
		require.True(t, ask(conn), "the others go on")
	}
	require.NoError(t, open[0].Close())
	require.Eventually(t, func() bool { return ask(dial()) }, soon, every, "there is room again")
}
