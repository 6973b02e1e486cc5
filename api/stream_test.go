package api

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/sse"
	"github.com/stretchr/testify/require"
)

type tick struct {
	N int `json:"n"`
}

type ticking struct {
	Type Text `query:"type" maxLength:"8"`
}

// A stream outlives the deadlines of the server, also over HTTP/2, which resets a stream whose deadline has passed even
// if nothing is written. It is an operation like any other: documented, and its parameters are checked.
func TestStreamsOutliveTheServersDeadlines(t *testing.T) {
	t.Parallel()
	const deadline = 200 * time.Millisecond
	mux := http.NewServeMux()
	a := New(mux, quiet(), Info{Title: "x", Version: "test"})
	sse.Register(a, huma.Operation{OperationID: "stream", Method: http.MethodGet, Path: "/api/v1/stream"}, map[string]any{"tick": tick{}},
		func(ctx context.Context, _ *ticking, send sse.Sender) {
			select {
			case <-time.After(3 * deadline):
				_ = send.Data(tick{7})
			case <-ctx.Done():
			}
		})
	for _, http2 := range []bool{false, true} {
		srv := httptest.NewUnstartedServer(Wrap(quiet(), mux))
		srv.Config.WriteTimeout, srv.Config.ReadTimeout, srv.Config.ErrorLog = deadline, deadline, Server(quiet()).ErrorLog
		srv.EnableHTTP2 = http2
		srv.StartTLS()
		t.Cleanup(srv.Close)
		for query, status := range map[string]int{"": 200, "?typ=x": 422, "?type=": 422} {
			res, err := srv.Client().Get(srv.URL + "/api/v1/stream" + query)
			require.NoError(t, err)
			body, err := io.ReadAll(res.Body)
			require.NoError(t, err, res.Proto)
			require.NoError(t, res.Body.Close())
			require.Equal(t, status, res.StatusCode)
			require.NotEmpty(t, res.Header.Get("X-Correlation-ID"))
			if status == 200 {
				require.Equal(t, "text/event-stream", res.Header.Get("Content-Type"))
				require.Equal(t, "event: tick\ndata: {\"n\":7}\n\n", string(body))
			}
		}
	}
	_, doc := documentOf(t, serve(t, Wrap(quiet(), mux)))
	require.Contains(t, string(doc.body), `"text/event-stream"`)
}
