package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"

	"github.com/google/uuid"

	"github.com/cornjacket/platform-services/event"
)

const (
	correlationHeader  = "X-Correlation-Id" // canonical form of X-Correlation-ID
	traceparentHeader  = "Traceparent"
	problemContentType = "application/problem+json"
)

type correlationKey struct{}

// CorrelationID returns the correlation ID of the request that ctx belongs to, empty outside of [Wrap].
func CorrelationID(ctx context.Context) string {
	id, _ := ctx.Value(correlationKey{}).(string)
	return id
}

// Wrap puts around the mux of a port what each of its answers has: the correlation ID, which is the caller's if it is
// valid and else a new one; a problem instead of a broken connection when a handler panics; and a problem where the mux
// would answer in plain text, that no path or no method matches.
func Wrap(log *slog.Logger, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get(correlationHeader)
		if !event.ValidCorrelationID(id) {
			id = uuid.NewString()
		}
		w.Header()[correlationHeader] = []string{id}
		r = r.WithContext(context.WithValue(r.Context(), correlationKey{}, id))
		rw := &response{ResponseWriter: w, r: r}
		defer rw.recover(log)
		if r.Method != http.MethodConnect && unclean(r.URL.EscapedPath()) {
			rw.unrouted(http.StatusNotFound)
			return
		}
		next.ServeHTTP(rw, r)
	})
}

// unclean paths are not found. The mux would redirect them, to a path that it escapes a second time.
func unclean(path string) bool {
	return strings.Contains(path, "//") || strings.Contains(path, "/./") || strings.Contains(path, "/../") ||
		strings.HasSuffix(path, "/.") || strings.HasSuffix(path, "/..")
}

// response sees when an answer begins, and turns the mux's own errors into problems.
type response struct {
	http.ResponseWriter
	r       *http.Request // the mux writes its pattern into it
	began   bool
	swallow bool // the mux's own text, after a problem took its place
}

func (w *response) WriteHeader(code int) {
	if w.began {
		if !w.swallow {
			w.ResponseWriter.WriteHeader(code) // superfluous: net/http says where
		}
		return
	}
	if code >= 400 && w.r.Pattern == "" && plain(w.Header().Get("Content-Type")) {
		w.unrouted(code)
		return
	}
	w.began = code >= 200
	w.ResponseWriter.WriteHeader(code)
}

func plain(contentType string) bool {
	return contentType == "" || strings.HasPrefix(contentType, "text/plain")
}

func (w *response) Write(p []byte) (int, error) {
	if w.swallow {
		return len(p), nil
	}
	w.began = true
	return w.ResponseWriter.Write(p)
}

// Flush sends what has been written; see [http.Flusher].
func (w *response) Flush() { _ = w.FlushError() }

// FlushError sends what has been written; see [http.ResponseController].
func (w *response) FlushError() error {
	w.began = true
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Unwrap lets [http.ResponseController] reach the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *response) unrouted(code int) {
	detail := "the request cannot be answered"
	switch code {
	case http.StatusNotFound:
		detail = "there is nothing at this path"
	case http.StatusMethodNotAllowed:
		detail = "this path takes " + w.Header().Get("Allow")
	}
	w.began, w.swallow = true, true
	writeProblem(w.ResponseWriter, w.r, newProblem(code, detail))
}

func (w *response) recover(log *slog.Logger) {
	reason := recover()
	if reason == nil {
		return
	}
	if err, ok := reason.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(http.ErrAbortHandler) // a handler that wants the connection cut says so this way
	}
	log.ErrorContext(w.r.Context(), "request handler panicked",
		"method", w.r.Method, "path", w.r.URL.Path, "correlation_id", CorrelationID(w.r.Context()),
		"panic", fmt.Sprint(reason), "stack", string(debug.Stack()))
	if w.began {
		panic(http.ErrAbortHandler) // half an answer must not look like a whole one
	}
	w.began, w.swallow = true, true
	writeProblem(w.ResponseWriter, w.r, problemOf(w.r.Method, fmt.Errorf("panic: %v", reason)))
}
