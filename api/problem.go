package api

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
)

// jsonOut encodes whatever is stored or was sent: an answer must not fail on what the platform has once accepted.
var jsonOut = json.JoinOptions(jsontext.AllowInvalidUTF8(true), jsontext.AllowDuplicateNames(true))

// Problem is an answer that says what was wrong: RFC 9457 problem details. As an error it is returned by handlers.
type Problem struct {
	Type          string   `json:"type"`
	Title         string   `json:"title"`
	Status        int      `json:"status"`
	Detail        string   `json:"detail"`
	Errors        []Detail `json:"errors,omitempty"`
	CorrelationID string   `json:"correlation_id,omitempty"`

	header     http.Header
	retryAfter int // seconds; no header if zero
}

// Detail is one mistake and where it was made.
type Detail struct {
	Location string `json:"location"` // dotted path into the body, or the name of a parameter
	Message  string `json:"message"`
}

func (p *Problem) Error() string { return p.Title + ": " + p.Detail }

func newProblem(status int, detail string) *Problem {
	return &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail}
}

// mistake is a problem with one thing that the caller gave.
func mistake(status int, location, message string) *Problem {
	p := newProblem(status, location+": "+message)
	p.Errors = []Detail{{Location: location, Message: message}}
	return p
}

func (p *Problem) with(header, value string) *Problem {
	if p.header == nil {
		p.header = http.Header{}
	}
	p.header.Set(header, value)
	return p
}

// fail answers with the problem that err stands for. What is the platform's own fault is logged and not shown.
func (a *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	p := problemOf(err)
	if p.Status == http.StatusInternalServerError {
		a.log.ErrorContext(r.Context(), "request failed",
			"method", r.Method, "path", r.URL.Path, "correlation_id", CorrelationID(r.Context()), "error", err)
	}
	writeProblem(w, r, p)
}

func problemOf(err error) *Problem {
	var own *Problem
	var broken *event.Error
	switch {
	case errors.As(err, &own):
		return own
	case errors.As(err, &broken):
		return eventProblem(broken)
	case errors.Is(err, fault.ErrNotFound):
		return newProblem(http.StatusNotFound, "there is no such thing here")
	case errors.Is(err, fault.ErrOverloaded):
		return overloaded("more is coming in than can be stored, try again later")
	case errors.Is(err, fault.ErrUnavailable), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		// Canceled: the client has gone, or the process is stopping.
		p := newProblem(http.StatusServiceUnavailable, "storage cannot be reached now, try again later; what was sent may have been stored")
		p.retryAfter = 2
		return p
	default:
		return newProblem(http.StatusInternalServerError, "something went wrong here; the log has more under the correlation ID")
	}
}

func overloaded(detail string) *Problem {
	p := newProblem(http.StatusTooManyRequests, detail)
	p.retryAfter = 1
	return p
}

func eventProblem(e *event.Error) *Problem {
	status := http.StatusUnprocessableEntity
	switch e.Kind {
	case event.Malformed:
		status = http.StatusBadRequest
	case event.TooLarge:
		status = http.StatusRequestEntityTooLarge
	case event.Invalid:
	}
	location := e.Field
	if location == "" {
		location = "body"
	}
	return mistake(status, location, e.Rule)
}

// writeProblem sends a problem, which must not be shared: it gets the request's correlation ID.
func writeProblem(w http.ResponseWriter, r *http.Request, p *Problem) {
	p.CorrelationID = CorrelationID(r.Context())
	h := w.Header()
	for name, values := range p.header {
		h[name] = values
	}
	if p.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(p.retryAfter))
	}
	h.Set("Content-Type", problemContentType)
	h.Set("Cache-Control", "no-store")
	data, err := json.Marshal(p, jsonOut)
	if err != nil { // strings and integers only: a bug
		panic(err)
	}
	writeBody(w, p.Status, data)
}

// writeBody sends a whole answer. A failed write means that the client has gone: there is nobody to tell.
func writeBody(w http.ResponseWriter, status int, data []byte) {
	w.WriteHeader(status)
	_, _ = w.Write(data)
}
