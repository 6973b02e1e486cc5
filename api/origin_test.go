package api_test

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/api"
)

func TestPagesOfOtherSitesAreRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		method, host string
		header       map[string]string
		hosts        []string
		unchecked    bool
		want         int
	}{
		"a program":                        {"POST", "127.0.0.1:8080", nil, nil, false, 200},
		"another site's form":              {"POST", "127.0.0.1:8080", map[string]string{"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}, nil, false, 403},
		"an old browser's":                 {"POST", "127.0.0.1:8080", map[string]string{"Origin": "https://evil.example"}, nil, false, 403},
		"a page of another port":           {"POST", "localhost:8080", map[string]string{"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"}, nil, false, 403},
		"another site's, with the gateway": {"DELETE", "shop.example", map[string]string{"Sec-Fetch-Site": "cross-site"}, nil, true, 403},
		"its own page":                     {"POST", "localhost:8080", map[string]string{"Origin": "http://localhost:8080", "Sec-Fetch-Site": "same-origin"}, nil, false, 200},
		"another site's link":              {"GET", "localhost:8080", map[string]string{"Sec-Fetch-Site": "cross-site"}, nil, false, 200},
		"localhost":                        {"GET", "LocalHost.:8080", nil, nil, false, 200},
		"below localhost":                  {"GET", "a.localhost", nil, nil, false, 200},
		"IPv6":                             {"GET", "[::1]:8080", nil, nil, false, 200},
		"IPv6 without a port":              {"GET", "[::1]", nil, nil, false, 200},
		"an address":                       {"GET", "10.0.0.1", nil, nil, false, 200},
		"a foreign name":                   {"GET", "evil.example", nil, nil, false, 421},
		"a foreign name with a port":       {"GET", "evil.example:8080", nil, nil, false, 421},
		"an address in a name":             {"GET", "127.0.0.1.evil.example", nil, nil, false, 421},
		"localhost in a name":              {"GET", "localhost.evil.example", nil, nil, false, 421},
		"a foreign name where none counts": {"GET", "evil.example", nil, nil, true, 200},
		"one of its names":                 {"GET", "Platform:8080", nil, []string{"platform"}, false, 200},
		"one below its names":              {"GET", "a.corp.example", nil, []string{".corp.example"}, false, 200},
		"one beside its names":             {"GET", "evilcorp.example", nil, []string{".corp.example"}, false, 421},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			denied := 0
			o := api.Origins{Hosts: c.hosts, CheckHost: !c.unchecked, Denied: func(string) { denied++ }}
			handler := api.Wrap(slog.New(slog.DiscardHandler), o.Protect(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusOK)
			})))
			r := httptest.NewRequestWithContext(t.Context(), c.method, "/api/v1/dlq/replay", nil)
			r.Host = c.host
			for name, value := range c.header {
				r.Header.Set(name, value)
			}
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			require.Equal(t, c.want, w.Code)
			if c.want != http.StatusOK {
				body, err := io.ReadAll(w.Body)
				require.NoError(t, err)
				require.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
				require.Contains(t, string(body), `"correlation_id"`)
				require.Equal(t, 1, denied)
			}
		})
	}
}
