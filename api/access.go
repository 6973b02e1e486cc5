package api

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// Scope is what a bearer token must allow for a request to be answered.
type Scope string

// Scopes of tokens. None of them includes another.
const (
	ScopeOpen    Scope = ""        // needs no token
	ScopeIngest  Scope = "ingest"  // send events
	ScopeRead    Scope = "read"    // read events, what is computed from them, and metrics
	ScopeOperate Scope = "operate" // dead letters, profiles, and all that is not named here
)

// accessRule gives the requests of some paths their scope.
type accessRule struct {
	method string // empty: every method; GET is HEAD too
	path   string
	below  bool // what stands below the path too
	scope  Scope
}

// accessRules decides, alone, which scope a request needs. The first rule that matches counts; what none matches
// takes ScopeOperate, so that a route that was forgotten here is closed and not open.
var accessRules = []accessRule{
	{http.MethodGet, "/health", false, ScopeOpen}, // of load balancers and orchestrators, which have no tokens
	{http.MethodGet, "/livez", false, ScopeOpen},
	{http.MethodGet, "/openapi.json", false, ScopeOpen}, // says which tokens are needed
	{"", "/api/v1/dlq", true, ScopeOperate},             // dead letters hold what others have sent
	{"", "/debug/pprof", true, ScopeOperate},
	{http.MethodPost, "/api/v1/events", false, ScopeIngest},
	{http.MethodPost, "/api/v1/events/batch", false, ScopeIngest},
	{http.MethodGet, "/", true, ScopeRead},
}

// ScopeOf returns what a request needs; path is the decoded path, or the pattern of an operation.
func ScopeOf(method, path string) Scope {
	if method == http.MethodHead {
		method = http.MethodGet
	}
	for _, rule := range accessRules {
		if (rule.method == "" || rule.method == method) && rule.covers(path) {
			return rule.scope
		}
	}
	return ScopeOperate
}

func (r accessRule) covers(path string) bool {
	return path == r.path || r.below && strings.HasPrefix(path, strings.TrimSuffix(r.path, "/")+"/")
}

// Token is a bearer token that is accepted. The token itself is not kept: it must have so much randomness (32 bytes)
// that its hash needs neither salt nor stretching.
type Token struct {
	Name   string
	Hash   [sha256.Size]byte // SHA-256 of the token as it is sent
	Scopes []Scope
}

// Guard lets only requests with a token of the right scope pass (RFC 6750).
type Guard struct {
	// Tokens are those that are accepted.
	Tokens []Token
	// Reload, if set, returns them as they are now, in place of Tokens. It is called concurrently, with each request.
	Reload func() []Token
	// Denied is called with each request that was turned away, if set: "no token", "invalid token", "insufficient scope".
	// It is called concurrently.
	Denied func(reason string)
}

type callerKey struct{}

// Caller returns the name of the token that the request of ctx came with, empty without one.
func Caller(ctx context.Context) string {
	name, _ := ctx.Value(callerKey{}).(string)
	return name
}

// Protect puts the guard before a port. It must stand inside of [Wrap].
func (g *Guard) Protect(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scope := ScopeOf(r.Method, r.URL.Path)
		if scope == ScopeOpen {
			next.ServeHTTP(w, r)
			return
		}
		secret, given := bearer(r.Header)
		token := g.find(secret)
		switch {
		case !given:
			g.deny(w, r, "no token", newProblem(http.StatusUnauthorized,
				"this needs a bearer token with the scope "+string(scope)).with("WWW-Authenticate", challenge))
		case token == nil:
			g.deny(w, r, "invalid token", newProblem(http.StatusUnauthorized,
				"the bearer token is not known here").with("WWW-Authenticate", challenge+`, error="invalid_token"`))
		case !slices.Contains(token.Scopes, scope):
			g.deny(w, r, "insufficient scope", newProblem(http.StatusForbidden,
				"the bearer token does not have the scope "+string(scope)).
				with("WWW-Authenticate", challenge+`, error="insufficient_scope", scope="`+string(scope)+`"`))
		default:
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, token.Name)))
		}
	})
}

const challenge = `Bearer realm="cornjacket"`

func (g *Guard) deny(w http.ResponseWriter, r *http.Request, reason string, p *Problem) {
	if g.Denied != nil {
		g.Denied(reason)
	}
	writeProblem(w, r, p)
}

// bearer returns the token of a request. It is read from the header only: a URL ends up in logs.
func bearer(h http.Header) (token string, given bool) {
	values := h["Authorization"]
	if len(values) != 1 {
		return "", false
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	token = strings.Trim(token, " ")
	return token, strings.EqualFold(scheme, "Bearer") && token != ""
}

// find returns the token with a secret, nil if there is none. How long it takes tells nothing: hashes are compared, each
// with all that are known, and each in constant time.
func (g *Guard) find(secret string) *Token {
	hash := sha256.Sum256([]byte(secret))
	known := g.Tokens
	if g.Reload != nil {
		known = g.Reload()
	}
	var found *Token
	for i := range known {
		if subtle.ConstantTimeCompare(hash[:], known[i].Hash[:]) == 1 {
			found = &known[i]
		}
	}
	return found
}

const bearerScheme = "bearer"

func securitySchemes() map[string]*huma.SecurityScheme {
	return map[string]*huma.SecurityScheme{bearerScheme: {
		Type: "http", Scheme: "bearer",
		Description: "An API token (`platform token` makes one). Whether this port asks for tokens is a setting, API_AUTH; by default it does " +
			"when its address is not loopback. Each operation names the scope that it needs.",
	}}
}

// secure says in the document what an operation needs, and how it is refused without. The empty requirement stands for
// ports that ask for no tokens.
func secure(op *huma.Operation) {
	scope := ScopeOf(op.Method, op.Path)
	if scope == ScopeOpen {
		return
	}
	op.Security = []map[string][]string{{bearerScheme: {string(scope)}}, {}}
	op.Responses["401"] = &huma.Response{Description: "This port asks for a bearer token, and there was none or one that is not known."}
	op.Responses["403"] = &huma.Response{Description: "The bearer token does not have the scope " + string(scope) + "."}
}
