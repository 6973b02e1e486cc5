// Package api is the HTTP side of the platform: ingestion, query and dead letters, problem details (RFC 9457),
// correlation, and an OpenAPI 3.1 document of each port at /openapi.json. It does no I/O beside HTTP: what it reads and
// writes goes through its own small interfaces.
//
// The framework is huma: the input and output structs of an operation are its wire format, its schema and its
// validation. Only the two operations that take events in are written by hand.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	jsonx "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
	"golang.org/x/sync/semaphore"
)

// defaultTimeout is how long a request may wait for what stands behind the API.
const defaultTimeout = 10 * time.Second

// API is the HTTP interface of one port: operations and the document that describes them. Operations are added before
// the port serves, not while it does.
type API struct {
	huma.API
	log     *slog.Logger
	timeout time.Duration // how long one request may take
	bodies  bodies        // of operations that huma reads the body for
}

// Info names an API in its document.
type Info struct {
	Title, Description, Version string
}

// New starts the API of a port on mux and serves its document at /openapi.json. The mux must be served through [Wrap].
func New(mux *http.ServeMux, log *slog.Logger, info Info) *API {
	schemas := huma.NewMapRegistry("#/components/schemas/", schemaName)
	schemas.RegisterTypeAlias(reflect.TypeFor[uuid.UUID](), reflect.TypeFor[uuidSchema]())
	schemas.RegisterTypeAlias(reflect.TypeFor[jsontext.Value](), reflect.TypeFor[map[string]any]())
	schemas.Schema(reflect.TypeFor[Problem](), true, "")
	format := huma.Format{Marshal: writeAs, Unmarshal: readAs}
	config := huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info:    &huma.Info{Title: info.Title, Description: info.Description, Version: info.Version},
			// A relative server: the document is right behind a gateway too.
			Servers:    []*huma.Server{{URL: "/"}},
			Components: &huma.Components{Schemas: schemas, SecuritySchemes: securitySchemes()},
		},
		Formats:       map[string]huma.Format{mediaJSON: format, "json": format},
		DefaultFormat: mediaJSON,
		Transformers: []huma.Transformer{func(ctx huma.Context, _ string, v any) (any, error) {
			if p, ok := v.(*Problem); ok {
				p.CorrelationID = CorrelationID(ctx.Context())
			}
			return v, nil
		}},
	}
	a := &API{
		API: humago.New(mux, config), log: orDefault(log), timeout: defaultTimeout,
		bodies: bodies{semaphore.NewWeighted(16 * maxOptionalBody)},
	}
	a.UseMiddleware(a.admit)
	mux.HandleFunc("GET /openapi.json", a.serveDocument(sync.OnceValues(func() ([]byte, error) {
		return json.Marshal(a.OpenAPI())
	})))
	return a
}

func orDefault(log *slog.Logger) *slog.Logger {
	if log == nil {
		return slog.Default()
	}
	return log
}

func (a *API) serveDocument(document func() ([]byte, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		data, err := document()
		if err != nil {
			a.fail(w, r, fmt.Errorf("encode OpenAPI document: %w", err))
			return
		}
		w.Header().Set("Content-Type", mediaJSON)
		writeBody(w, http.StatusOK, data)
	}
}

// reply is the output of an operation that has nothing but a body.
type reply[T any] struct{ Body T }

// register adds an operation to the port and to its document. The operation may take as long as a request of this API;
// its error is answered as [problemOf] says. Which token it needs is not its own choice: see accessRules.
func register[I, O any](a *API, op huma.Operation, h func(context.Context, *I) (O, error)) {
	op.MaxBodyBytes, op.BodyReadTimeout = -1, -1 // admit has read the body
	huma.Register(a, op, func(ctx context.Context, in *I) (*reply[O], error) {
		ctx, cancel := context.WithTimeout(ctx, a.timeout)
		defer cancel()
		body, err := h(ctx, in)
		if err != nil {
			return nil, a.problem(ctx, op.Method, op.Path, err)
		}
		return &reply[O]{body}, nil
	})
}

// admit is what each operation has in common before its own input is read.
func (a *API) admit(ctx huma.Context, next func(huma.Context)) {
	r, w := humago.Unwrap(ctx)
	op := ctx.Operation()
	w.Header()["Cache-Control"] = noStore
	r.Header.Del("Accept") // there is one format, and nothing to negotiate
	if isStream(op) {
		// The request's context ends with the read deadline; each write of the stream has a deadline of its own.
		rc := http.NewResponseController(w)
		if err := errors.Join(rc.SetReadDeadline(time.Time{}), rc.SetWriteDeadline(time.Time{})); err != nil {
			a.fail(w, r, fmt.Errorf("lift deadlines of a stream: %w", err))
			return
		}
	}
	err := checkParams(r, op)
	if err == nil && op.RequestBody != nil {
		var held int64
		held, err = a.readBody(w, r)
		defer a.bodies.release(held)
	}
	if err != nil {
		a.fail(w, r, err)
		return
	}
	next(ctx)
}

var noStore = []string{"no-store"}

func isStream(op *huma.Operation) bool {
	ok := op.Responses["200"]
	return ok != nil && ok.Content["text/event-stream"] != nil
}

// handler answers an operation that is written by hand. An error is for an answer that has not begun.
type handler func(w http.ResponseWriter, r *http.Request) error

// handle adds an operation whose body is read by its handler.
func (a *API) handle(op *huma.Operation, h handler) {
	a.DocumentOperation(op)
	a.Adapter().Handle(op, func(c huma.Context) {
		r, w := humago.Unwrap(c)
		w.Header()["Cache-Control"] = noStore
		err := checkParams(r, op)
		if err == nil {
			err = h(w, r)
		}
		if err != nil {
			a.fail(w, r, err)
		}
	})
}

// jsonOut encodes whatever is stored or was sent: an answer must not fail on what the platform has once accepted.
var jsonOut = jsonx.JoinOptions(jsontext.AllowInvalidUTF8(true), jsontext.AllowDuplicateNames(true))

// sink remembers that its writer has failed.
type sink struct {
	io.Writer
	failed bool
}

func (s *sink) Write(p []byte) (int, error) {
	n, err := s.Writer.Write(p)
	s.failed = s.failed || err != nil
	return n, err
}

// writeAs encodes an answer piece by piece: a page can be large. A failed write means that the client has gone: there is
// nobody to tell.
func writeAs(w io.Writer, v any) error {
	to := &sink{Writer: w}
	if err := jsonx.MarshalWrite(to, v, jsonOut); err != nil && !to.failed {
		return err
	}
	return nil
}

// readAs decodes a body. What a schema can't say is found here, and told by its member.
func readAs(data []byte, v any) error {
	err := jsonx.Unmarshal(data, v)
	var semantic *jsonx.SemanticError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &semantic) && semantic.Err != nil:
		return fmt.Errorf("%s: %w", strings.TrimPrefix(string(semantic.JSONPointer), "/"), semantic.Err)
	default:
		return errors.New("is not valid JSON")
	}
}

// Server returns a server with explicit limits on time and headers; the caller sets the handler. Streams lift the
// deadlines of their own requests, see [API].
func Server(log *slog.Logger) *http.Server {
	return &http.Server{
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      60 * time.Second, // counts from the header, so it covers reading, waiting and writing
		IdleTimeout:       120 * time.Second,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}
