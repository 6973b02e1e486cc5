package api

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// guarded serves both APIs and further routes behind a guard that knows one token of each scope, named after it.
func guarded(t *testing.T) (base string, denied func() []string) {
	t.Helper()
	var mu sync.Mutex
	var reasons []string
	g := &Guard{Denied: func(reason string) {
		mu.Lock()
		defer mu.Unlock()
		reasons = append(reasons, reason)
	}}
	for _, scope := range []Scope{ScopeIngest, ScopeRead, ScopeOperate} {
		g.Tokens = append(g.Tokens, Token{Name: "n-" + string(scope), Hash: sha256.Sum256([]byte("t-" + scope)), Scopes: []Scope{scope}})
	}
	mux := http.NewServeMux()
	m := filled()
	MountQuery(mux, QueryConfig{Reader: m, Log: quiet()})
	ingestion := NewIngestion(IngestionConfig{Ingester: m, Log: quiet()})
	mux.Handle("POST "+eventPath, ingestion)
	mux.Handle("POST "+batchPath, ingestion)
	caller := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", mediaJSON)
		_, _ = fmt.Fprintf(w, "%q", Caller(r.Context()))
	}
	for _, route := range []string{"GET /health", "GET /livez", "GET /metrics", "GET /api/v1/dlq", "GET /api/v1/dlq/{id}", "POST /api/v1/dlq/{id}/replay", "GET /debug/pprof/",
		"GET /new", "POST /new", "PUT /api/v1/new/{id}", "DELETE /api/v1/events/{id}", "POST /api/v1/events/{id}/new"} {
		mux.HandleFunc(route, caller)
	}
	return serve(t, Wrap(quiet(), g.Protect(mux))), func() []string {
		mu.Lock()
		defer mu.Unlock()
		return reasons
	}
}

func TestEachRequestNeedsATokenOfItsScope(t *testing.T) {
	t.Parallel()
	base, _ := guarded(t)
	for _, c := range []struct {
		request string
		scope   Scope
		status  int
	}{
		{"GET /health", ScopeOpen, 200},
		{"HEAD /health", ScopeOpen, 200},
		{"GET /livez", ScopeOpen, 200},
		{"GET /openapi.json", ScopeOpen, 200},
		{"POST /health", ScopeOperate, 405},
		{"GET /health/", ScopeRead, 404},
		{"GET /metrics", ScopeRead, 200},
		{"GET /", ScopeRead, 404},
		{"GET /new", ScopeRead, 200},
		{"GET /api/v1/events", ScopeRead, 200},
		{"GET /api/v1/projections/sensor_state/device-001", ScopeRead, 200},
		{"GET /nowhere", ScopeRead, 404},
		{"GET /api/v1/dlqs", ScopeRead, 404},
		{"POST /api/v1/events", ScopeIngest, 202},
		{"POST /api/v1/events/batch", ScopeIngest, 400},
		{"POST /api/v1/events/7/new", ScopeOperate, 200},
		{"GET /api/v1/dlq", ScopeOperate, 200},
		{"HEAD /api/v1/dlq", ScopeOperate, 200},
		{"GET /api/v1/d%6cq", ScopeOperate, 200},
		{"GET /api/v1/dlq/7", ScopeOperate, 200},
		{"POST /api/v1/dlq/7/replay", ScopeOperate, 200},
		{"GET /debug/pprof/heap", ScopeOperate, 200},
		{"POST /new", ScopeOperate, 200},
		{"PUT /api/v1/new/7", ScopeOperate, 200},
		{"DELETE /api/v1/events/7", ScopeOperate, 200},
		{"OPTIONS /api/v1/events", ScopeOperate, 405},
		{"BREW /new", ScopeOperate, 405},
	} {
		method, path, _ := strings.Cut(c.request, " ")
		send := func(token string) answer {
			headers := []string{"Content-Type", mediaJSON}
			if token != "" {
				headers = append(headers, "Authorization", "Bearer "+token)
			}
			return call(t, method, base+path, strings.NewReader(reading), headers...)
		}
		bare := send("")
		if c.scope == ScopeOpen {
			require.Equal(t, c.status, bare.status, c.request)
			require.Equal(t, c.status, send("t-unknown").status, "%s: what is open does not look at tokens", c.request)
			continue
		}
		require.Equal(t, http.StatusUnauthorized, bare.status, c.request)
		for _, scope := range []Scope{ScopeIngest, ScopeRead, ScopeOperate} {
			res := send("t-" + string(scope))
			if scope == c.scope {
				require.Equal(t, c.status, res.status, "%s: %s", c.request, res.body)
			} else {
				require.Equal(t, http.StatusForbidden, res.status, "%s with %s", c.request, scope)
			}
		}
	}
}

func TestRefusalsSayWhatIsNeeded(t *testing.T) {
	t.Parallel()
	base, denied := guarded(t)
	for name, headers := range map[string][]string{
		"nothing":         nil,
		"another scheme":  {"Authorization", "Basic dC1yZWFkOg=="},
		"no token":        {"Authorization", "Bearer"},
		"only blanks":     {"Authorization", "Bearer   "},
		"token alone":     {"Authorization", "t-read"},
		"in another name": {"X-Api-Key", "t-read"},
	} {
		res := get(t, base+"/new", headers...)
		p := res.problem(t, http.StatusUnauthorized)
		require.Equal(t, `Bearer realm="cornjacket"`, res.header.Get("WWW-Authenticate"), name)
		require.Equal(t, "this needs a bearer token with the scope read", p.Detail)
	}
	get(t, base+"/new?access_token=t-read").problem(t, http.StatusUnauthorized)
	for _, token := range []string{"t-rea", "t-read2", "T-READ", "t-read,t-operate", strings.Repeat("x", 10_000)} {
		res := get(t, base+"/new", "Authorization", "Bearer "+token)
		p := res.problem(t, http.StatusUnauthorized)
		require.Equal(t, `Bearer realm="cornjacket", error="invalid_token"`, res.header.Get("WWW-Authenticate"))
		require.NotContains(t, string(res.body), token)
		require.Equal(t, "the bearer token is not known here", p.Detail)
	}
	res := get(t, base+"/api/v1/dlq", "Authorization", "Bearer t-read")
	res.problem(t, http.StatusForbidden)
	require.Equal(t, `Bearer realm="cornjacket", error="insufficient_scope", scope="operate"`, res.header.Get("WWW-Authenticate"))

	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/new", nil)
	require.NoError(t, err)
	req.Header["Authorization"] = []string{"Bearer t-read", "Bearer t-operate"}
	twice, err := http.DefaultTransport.RoundTrip(req)
	require.NoError(t, err)
	require.NoError(t, twice.Body.Close())
	require.Equal(t, http.StatusUnauthorized, twice.StatusCode, "two headers: which of them is meant is not guessed")

	for _, authorization := range []string{"Bearer t-read", "bearer t-read", "BEARER   t-read "} {
		require.Equal(t, `"n-read"`, string(get(t, base+"/new", "Authorization", authorization).body))
	}
	require.Contains(t, denied(), "insufficient scope")
	require.Subset(t, []string{"no token", "invalid token", "insufficient scope"}, denied())
}

func TestNobodyPassesAGuardWithoutTokens(t *testing.T) {
	t.Parallel()
	base := serve(t, Wrap(quiet(), (&Guard{}).Protect(http.NewServeMux())))
	get(t, base+"/", "Authorization", "Bearer x").problem(t, http.StatusUnauthorized)
	// The hash of nothing is no token either.
	base = serve(t, Wrap(quiet(), (&Guard{Tokens: []Token{{Hash: sha256.Sum256(nil), Scopes: []Scope{ScopeRead}}}}).Protect(http.NewServeMux())))
	get(t, base+"/", "Authorization", "Bearer ").problem(t, http.StatusUnauthorized)
}

// A route that nobody thought of must not be open: only these are.
func TestOnlyTheseAreOpen(t *testing.T) {
	t.Parallel()
	var open []string
	for _, rule := range accessRules {
		if rule.scope == ScopeOpen {
			require.Equal(t, http.MethodGet, rule.method)
			require.False(t, rule.below)
			open = append(open, rule.path)
		}
	}
	require.Equal(t, []string{"/health", "/livez", "/openapi.json"}, open)
	for _, method := range []string{"", "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW", "get"} {
		for _, path := range []string{"", "*", "/", "/new", "/api/v2/new", "/health/x", "/healthz", "/livez/", "//health", "/Health"} {
			require.NotEqual(t, ScopeOpen, ScopeOf(method, path), "%s %s", method, path)
		}
	}
}

func TestDocumentsNameTheScopes(t *testing.T) {
	t.Parallel()
	for base, paths := range map[string]map[string]string{
		ingestionServer(t, &memory{}): {"post " + eventPath: "ingest", "post " + batchPath: "ingest"},
		queryServer(t, &memory{}): {
			"get " + eventPath: "read", "get /api/v1/events/{event_id}": "read",
			"get /api/v1/projections/{type}": "read", "get /api/v1/projections/{type}/{aggregate_id}": "read",
		},
	} {
		var doc struct {
			Components struct {
				SecuritySchemes map[string]struct{ Type, Scheme string } `json:"securitySchemes"`
			}
			Paths map[string]map[string]struct {
				Security  []map[string][]string
				Responses map[string]struct{ Headers map[string]any }
			}
		}
		get(t, base+"/openapi.json").json(t, &doc)
		require.Equal(t, "http", doc.Components.SecuritySchemes["bearer"].Type)
		require.Equal(t, "bearer", doc.Components.SecuritySchemes["bearer"].Scheme)
		found := map[string]string{}
		for path, operations := range doc.Paths {
			for method, op := range operations {
				require.Len(t, op.Security, 2, path)
				require.Empty(t, op.Security[1], "ports on loopback ask for no token")
				found[method+" "+path] = op.Security[0]["bearer"][0]
				for _, status := range []string{"401", "403"} {
					require.Contains(t, op.Responses[status].Headers, "WWW-Authenticate", path)
				}
			}
		}
		require.Equal(t, paths, found)
	}
}
