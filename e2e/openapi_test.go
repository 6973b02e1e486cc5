package e2e

import (
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// number reads a variable that is a number.
func number(t *testing.T, variable string, fallback uint64) uint64 {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return fallback
	}
	n, err := strconv.ParseUint(text, 10, 64)
	require.NoError(t, err, variable)
	return n
}

// Requests made of the documents at /openapi.json, good and bad: every answer has a documented status, headers and
// content, and none is a fault of the platform. E2E_FUZZ_SEED repeats a run, E2E_FUZZ_COUNT is the number of requests
// for each operation.
func TestEveryAnswerIsAsDocumented(t *testing.T) {
	t.Parallel()
	own(t)
	seed := number(t, "E2E_FUZZ_SEED", uint64(time.Now().UnixNano()))
	count := number(t, "E2E_FUZZ_COUNT", 150)
	t.Logf("E2E_FUZZ_SEED=%d E2E_FUZZ_COUNT=%d", seed, count)
	made := platformCommand(t, nil, "token", "--scopes=ingest,read,operate", "all")
	lines := strings.Split(made.stdout.String(), "\n")
	token := strings.TrimSpace(lines[1])
	p := dev(t, newFolder(t), "--api-auth=on", "--api-tokens="+strings.TrimSpace(lines[3]))
	operations := 0
	for service, base := range p.services() {
		doc := readOpenAPI(t, base)
		if doc == nil {
			continue
		}
		for _, o := range doc.operations {
			operations++
			t.Run(service+" "+o.String(), func(t *testing.T) {
				t.Parallel()
				g := &generator{rand.New(rand.NewPCG(seed, uint64(len(o.String())))), doc} //nolint:gosec // repeatable on purpose
				statuses := make(map[int]int)
				for i := range count {
					with := token
					if i%20 == 7 {
						with = ""
					}
					statuses[o.try(t, g, with)]++
				}
				t.Log(statuses)
				require.Equal(t, int((count+12)/20), statuses[http.StatusUnauthorized], "those without a token are turned away, and no others")
				succeeded := 0
				for status, n := range statuses {
					if status < 300 {
						succeeded += n
					}
				}
				// What has a random ID is seldom there, and other requests may need more than a schema says.
				if o.method == http.MethodGet && !strings.Contains(o.path, "id}") || strings.HasPrefix(o.path, eventsPath) && o.method == http.MethodPost {
					require.NotZero(t, succeeded, "none of the good requests was answered: %v", statuses)
				}
			})
		}
	}
	require.GreaterOrEqual(t, operations, 6)
	t.Cleanup(func() { // after the subtests, before the platform is killed
		require.NotContains(t, p.process.stderr.String(), "panic")
		require.NotContains(t, p.process.stderr.String(), `"request failed"`)
	})
}

// try sends one request and returns the status of its answer.
func (o *operation) try(t *testing.T, g *generator, token string) int {
	t.Helper()
	m := g.request(o)
	r, err := http.NewRequestWithContext(t.Context(), o.method, o.doc.base+m.target, strings.NewReader(string(m.body)))
	require.NoError(t, err, m)
	for i := 0; i < len(m.headers); i += 2 {
		r.Header.Set(m.headers[i], m.headers[i+1])
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := httpClient.Do(r)
	require.NoError(t, err, m)
	defer resp.Body.Close()
	var body []byte
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") { // which does not end
		body, err = io.ReadAll(resp.Body)
		require.NoError(t, err, m)
	}
	require.Less(t, resp.StatusCode, 500, "%s %s\n%s", o.method, m, body)
	if err := o.check(resp.StatusCode, resp.Header, body); err != nil {
		require.Failf(t, "not as documented", "%s %s\nanswered %d %s\n%s", o.method, m, resp.StatusCode, body, err)
	}
	return resp.StatusCode
}
