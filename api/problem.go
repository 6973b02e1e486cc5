package api

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/validation"
	"github.com/go-json-experiment/json"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
)

// Problem is an answer that says what was wrong: RFC 9457 problem details. As an error it is returned by handlers.
type Problem struct {
	Type          string   `json:"type" format:"uri-reference" doc:"Kind of problem; about:blank means what the status says."`
	Title         string   `json:"title" doc:"The status in words."`
	Status        int      `json:"status" minimum:"400" maximum:"599"`
	Detail        string   `json:"detail" doc:"What was wrong, and where."`
	Errors        []Detail `json:"errors,omitempty"`
	CorrelationID string   `json:"correlation_id,omitempty" doc:"That of the request."`

	header http.Header
}

// Detail is one mistake and where it was made.
type Detail struct {
	Location string `json:"location" doc:"Dotted path into the body, or the name of a parameter or header."`
	Message  string `json:"message" doc:"What it must be."`
}

func (p *Problem) Error() string { return p.Title + ": " + p.Detail }

// GetStatus returns the status; see [huma.StatusError].
func (p *Problem) GetStatus() int { return p.Status }

// GetHeaders returns the headers of the answer; see [huma.HeadersError].
func (p *Problem) GetHeaders() http.Header { return p.header }

// ContentType returns the media type of problems; see [huma.ContentTypeFilter].
func (p *Problem) ContentType(string) string { return problemContentType }

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

func (p *Problem) retryAfter(seconds int) *Problem {
	return p.with("Retry-After", strconv.Itoa(seconds))
}

// The framework's settings are global: its problems and their words are ours, members of a body are told from each other
// by case as in [encoding/json/v2], and an empty list is a list.
func init() {
	huma.NewError = func(status int, detail string, errs ...error) huma.StatusError {
		return invalid(status, detail, errs)
	}
	huma.ValidateStrictCasing = true
	huma.DefaultArrayNullable = false
	validation.MsgUnexpectedProperty = "is not known here"
	validation.MsgExpectedOneOf = "must be one of %s"
	validation.MsgExpectedMinimumNumber = "must be at least %v"
	validation.MsgExpectedMaximumNumber = "must be at most %v"
	validation.MsgExpectedMinLength = "must have at least %d characters"
	validation.MsgExpectedMaxLength = "must have at most %d characters"
	validation.MsgExpectedBePattern = "must be %s"
}

// wrongTypes are what the framework says of a member of another JSON type.
var wrongTypes = []string{
	validation.MsgExpectedBoolean, validation.MsgExpectedNumber, validation.MsgExpectedInteger, validation.MsgExpectedString,
	validation.MsgExpectedArray, validation.MsgExpectedObject,
}

// invalid is the problem with a request that breaks the schema of its operation.
func invalid(status int, detail string, errs []error) *Problem {
	const most = 10 // a problem stays readable
	p := newProblem(status, detail)
	for _, err := range errs[:min(len(errs), most)] {
		var told *huma.ErrorDetail
		if !errors.As(err, &told) {
			continue
		}
		in, location, inside := strings.Cut(told.Location, ".") // "query.limit", "body.reason", "body"
		if !inside {
			location = in
		}
		if in == "body" && slices.Contains(wrongTypes, told.Message) {
			p = newProblem(http.StatusBadRequest, detail)
		}
		message := strings.TrimPrefix(told.Message, "invalid value: ")
		p.Errors = append(p.Errors, Detail{Location: clip(location), Message: message})
	}
	if len(p.Errors) > 0 {
		p.Detail = p.Errors[0].Location + ": " + p.Errors[0].Message
	}
	return p
}

// problem returns what err stands for. What is the platform's own fault is logged and not shown.
func (a *API) problem(ctx context.Context, method, path string, err error) *Problem {
	p := problemOf(method, err)
	if p.Status == http.StatusInternalServerError {
		a.log.ErrorContext(ctx, "request failed", "method", method, "path", path, "correlation_id", CorrelationID(ctx), "error", err)
	}
	return p
}

// fail answers with the problem that err stands for.
func (a *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	writeProblem(w, r, a.problem(r.Context(), r.Method, r.URL.Path, err))
}

// problemOf returns the problem for a [*Problem], an [*event.Error], one of the sentinels of package fault, or a bug.
func problemOf(method string, err error) *Problem {
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
		detail := "storage cannot be reached now, try again later"
		if method != http.MethodGet && method != http.MethodHead {
			detail += "; what was sent may have been stored"
		}
		return newProblem(http.StatusServiceUnavailable, detail).retryAfter(2)
	default:
		return newProblem(http.StatusInternalServerError, "something went wrong here; the log has more under the correlation ID")
	}
}

func overloaded(detail string) *Problem {
	return newProblem(http.StatusTooManyRequests, detail).retryAfter(1)
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
	h.Set("Content-Type", problemContentType)
	h.Set("Cache-Control", "no-store")
	data, err := json.Marshal(p, jsonOut)
	if err != nil { // strings and integers only: a bug
		panic(err)
	}
	writeBody(w, p.Status, data)
}

// writeBody sends a whole answer. A failed write means that the client has gone; there is nothing to report to.
func writeBody(w http.ResponseWriter, status int, data []byte) {
	w.WriteHeader(status)
	_, _ = w.Write(data)
}
