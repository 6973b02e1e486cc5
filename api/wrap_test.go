package api

import (
	"bufio"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestUnknownPathsAndMethods(t *testing.T) {
	t.Parallel()
	ingestion, query := ingestionServer(t, &memory{}), queryServer(t, &memory{})
	for _, path := range []string{"/nowhere", "/", "/api/v1/events/", "/api//v1/events", "/api/v1/./events", "/api/v1/x/../events", "/api/v1/events/.."} {
		get(t, ingestion+path).problem(t, 404)
	}
	get(t, query+"/api/v1/projections/sensor_state/").problem(t, 404)
	for _, c := range []struct{ method, url, allow string }{
		{http.MethodGet, ingestion + eventPath, "POST"},
		{http.MethodPut, ingestion + eventPath, "POST"},
		{http.MethodOptions, ingestion + batchPath, "POST"},
		{http.MethodPost, query + eventPath, "GET, HEAD"},
		{http.MethodDelete, query + "/api/v1/projections/a/b", "GET, HEAD"},
		{http.MethodPost, query + "/openapi.json", "GET, HEAD"},
		{"BREW", query + eventPath, "GET, HEAD"},
	} {
		res := call(t, c.method, c.url, nil)
		p := res.problem(t, 405)
		require.Equal(t, c.allow, res.header.Get("Allow"))
		require.Equal(t, "this path takes "+c.allow, p.Detail)
	}
}

// wrapped serves further routes beside an API, as the composition root does.
func wrapped(t *testing.T, log *slog.Logger) string {
	t.Helper()
	mux := http.NewServeMux()
	MountQuery(mux, QueryConfig{Reader: &memory{}, Log: log})
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", mediaJSON)
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, `{"status":"failing"}`)
	})
	mux.HandleFunc("GET /plain", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "my own words", http.StatusTeapot)
	})
	mux.HandleFunc("GET /panic", func(http.ResponseWriter, *http.Request) { panic("hunter2") })
	mux.HandleFunc("GET /late", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "half")
		panic("hunter2")
	})
	mux.HandleFunc("GET /stream", func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		if errors.Join(rc.SetReadDeadline(time.Time{}), rc.SetWriteDeadline(time.Time{})) != nil {
			panic("no deadlines")
		}
		_, _ = io.WriteString(w, "first\n")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	return serve(t, Wrap(log, mux))
}

func TestWrapLeavesAnswersOfOthersAlone(t *testing.T) {
	t.Parallel()
	base := wrapped(t, quiet())
	res := get(t, base+"/health", "X-Correlation-ID", "h")
	require.Equal(t, 503, res.status)
	require.JSONEq(t, `{"status":"failing"}`, string(res.body))
	require.Equal(t, "h", res.header.Get("X-Correlation-ID"))
	res = get(t, base+"/plain")
	require.Equal(t, http.StatusTeapot, res.status)
	require.Equal(t, "my own words\n", string(res.body))
}

func TestPanicIsAProblem(t *testing.T) {
	t.Parallel()
	log := &logged{}
	base := wrapped(t, slog.New(slog.NewTextHandler(log, nil)))
	res := get(t, base+"/panic", "X-Correlation-ID", "find-me")
	res.problem(t, 500)
	require.NotContains(t, string(res.body), "hunter2")
	for _, part := range []string{"hunter2", "find-me", "wrap_test.go"} {
		require.Contains(t, log.String(), part)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/late", nil)
	require.NoError(t, err)
	half, err := http.DefaultTransport.RoundTrip(req)
	if err == nil {
		_, err = io.ReadAll(half.Body)
		require.NoError(t, half.Body.Close())
	}
	require.Error(t, err, "half an answer must not look like a whole one")
}

func TestStreamsPassThrough(t *testing.T) {
	t.Parallel()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, wrapped(t, quiet())+"/stream", nil)
	require.NoError(t, err)
	res, err := http.DefaultTransport.RoundTrip(req)
	require.NoError(t, err)
	line, err := bufio.NewReader(res.Body).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "first\n", line)
	require.NoError(t, res.Body.Close())
}

func TestServerCutsSlowBodies(t *testing.T) {
	t.Parallel()
	h := NewIngestion(IngestionConfig{Ingester: &memory{}, Log: quiet()})
	srv := Server(quiet())
	srv.Handler = h
	srv.ReadTimeout = 50 * time.Millisecond
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		require.NoError(t, srv.Close())
		require.ErrorIs(t, <-done, http.ErrServerClosed)
	})
	conn, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	require.NoError(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	_, err = io.WriteString(conn, "POST /api/v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{")
	require.NoError(t, err)
	data, err := io.ReadAll(conn)
	require.NoError(t, err, "the connection is closed")
	require.True(t, strings.HasPrefix(string(data), "HTTP/1.1 408 "), "%s", data)
}
