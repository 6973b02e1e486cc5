package api

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// ask sends a request to a handler and holds the answer against what all answers have in common.
func ask(t *testing.T, h http.Handler, r *http.Request, statuses ...int) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	require.Contains(t, statuses, w.Code, "%s", w.Body)
	require.NotEmpty(t, w.Header().Get("X-Correlation-ID"))
	require.True(t, json.Valid(w.Body.Bytes()), "%s", w.Body)
	if w.Code >= 400 {
		require.Equal(t, problemContentType, w.Header().Get("Content-Type"))
		require.Less(t, w.Body.Len(), 4096, "an answer that repeats what was wrong, however large")
		require.True(t, utf8.Valid(w.Body.Bytes()))
		var p Problem
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &p))
		require.Equal(t, w.Code, p.Status)
		require.NotEmpty(t, p.Detail)
	}
	return w
}

func FuzzQuery(f *testing.F) {
	for _, s := range []string{
		"", "limit=1", "limit=0", "limit=9999999999999999999999", "limit=1&limit=2", "cursor=", "cursor=AQ", "cursor=%zz", "a;b", "&&=&", "limit",
		"aggregate_id=%00", "aggregate_id=%ff", "event_type=a.b&limit=7", "from=2026-02-07T10:00:00Z&to=0001-01-01T00:00:00%2B14:00",
		"from=9999-12-31T23:59:59.9999999Z", "to=0000-01-01T00:00:00Z", "from=2026-02-07T10:00:00.0000000000000001Z", "%6cimit=2", strings.Repeat("x", 100) + "=1",
	} {
		f.Add(s)
	}
	m := filled()
	h := NewQuery(QueryConfig{Reader: m, Log: quiet()})
	f.Fuzz(func(t *testing.T, query string) {
		for _, path := range []string{eventPath, "/api/v1/projections/sensor_state", "/api/v1/projections/sensor_state/device-001"} {
			r := httptest.NewRequest(http.MethodGet, path, nil)
			r.URL.RawQuery = query
			ask(t, h, r, 200, 400, 422)
		}
	})
}

func FuzzPath(f *testing.F) {
	for _, s := range []string{
		"a", "a/b", "%00", "%ff", "%2f", "%2e%2e", "..", ".", "//", "a%0a", strings.Repeat("x", 300), "0190a5c0-7b1e-7c3a-9d3e-5f6a7b8c9d0e", "%zz", "a b", "?", "é",
	} {
		f.Add(s)
	}
	h := NewQuery(QueryConfig{Reader: filled(), Log: quiet()})
	f.Fuzz(func(t *testing.T, rest string) {
		for _, path := range []string{"/api/v1/projections/", "/api/v1/projections/sensor_state/", eventPath + "/"} {
			r, err := http.NewRequest(http.MethodGet, "http://x"+path+rest, nil)
			if err != nil {
				return // no server sees it either
			}
			ask(t, h, r, 200, 400, 404, 422)
		}
	})
}

func FuzzCursor(f *testing.F) {
	list := newListing("events", "a")
	for _, s := range []string{"", "AQ", list.cursor("device-001"), list.cursor(1), list.cursor(int64(1) << 62), newListing("b").cursor(7), "====", "AQ==\n"} {
		f.Add(s, "a")
	}
	f.Fuzz(func(t *testing.T, cursor, part string) {
		l := newListing("events", part)
		for _, key := range []any{new(int64), new(string), new(letterPlace)} {
			if err := l.after(cursor, key); err == nil && cursor != "" {
				require.Equal(t, cursor, l.cursor(key), "a cursor has one form")
			}
		}
		var position int64
		require.NoError(t, l.after(l.cursor(42), &position))
		require.EqualValues(t, 42, position)
	})
}

// FuzzSubmit sends bodies with content types to both operations of the ingestion API.
func FuzzSubmit(f *testing.F) {
	for _, media := range []string{mediaJSON, "application/x-ndjson", "application/json; charset=utf-8", "application/json;charset=latin1", "text/plain", "", ";;", "application/vnd.x+json"} {
		for _, body := range []string{"", "{}", "[]", reading, "[" + reading + "]", reading + "\n" + reading, "[7," + reading + "]", "\ufeff{}", "{\"a\":\"\xff\"}", "[[[[", "null"} {
			f.Add(media, []byte(body))
		}
	}
	f.Fuzz(func(t *testing.T, media string, body []byte) {
		m := &memory{}
		h := NewIngestion(IngestionConfig{Ingester: m, Log: quiet()})
		for _, path := range []string{eventPath, batchPath} {
			before := len(m.stored())
			r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(string(body)))
			r.Header.Set("Content-Type", media)
			w := ask(t, h, r, 202, 400, 413, 415, 422)
			stored := len(m.stored()) - before
			if w.Code != http.StatusAccepted {
				require.Zero(t, stored)
				continue
			}
			if path == eventPath {
				require.Equal(t, 1, stored)
				continue
			}
			var answer BatchResult
			require.NoError(t, json.Unmarshal(w.Body.Bytes(), &answer))
			require.Equal(t, answer.Accepted, stored)
			require.Positive(t, answer.Accepted+len(answer.Rejected))
		}
	})
}

// FuzzHeaders sends the headers that are read from every request, through a guard that knows no token.
func FuzzHeaders(f *testing.F) {
	for _, s := range []string{"", "Bearer x", "bearer", "Bearer  ", "Basic eDp4", "Bearer x y", "\x00", strings.Repeat("Bearer ", 50)} {
		f.Add("GET", "/api/v1/events", s, "c")
	}
	f.Add("POST", "/api/v1/dlq/%2e%2e/x", "Bearer x", "\xff")
	f.Add("get", "/health", "", strings.Repeat("c", 300))
	h := Wrap(quiet(), (&Guard{}).Protect(http.NotFoundHandler()))
	open := []string{"/health", "/livez", "/openapi.json"}
	f.Fuzz(func(t *testing.T, method, path, authorization, correlation string) {
		r, err := http.NewRequest(method, "http://x"+path, nil)
		if err != nil {
			return
		}
		r.Header["Authorization"] = []string{authorization}
		r.Header[correlationHeader] = []string{correlation}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		want := []int{http.StatusUnauthorized}
		if method == "" || method == http.MethodGet || method == http.MethodHead {
			if slices.Contains(open, r.URL.Path) {
				want = []int{http.StatusNotFound}
			}
		}
		if unclean(r.URL.EscapedPath()) {
			want = append(want, http.StatusNotFound)
		}
		require.Contains(t, want, w.Code, "%s %s", strconv.Quote(method), strconv.Quote(path))
		id := w.Header().Get("X-Correlation-ID")
		require.NotEmpty(t, id)
		require.NotContains(t, id, "\n")
	})
}
