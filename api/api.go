// Package api is the HTTP side of the platform: ingestion and query, problem details (RFC 9457), correlation, and an
// OpenAPI 3.1 document of each port at /openapi.json. It does no I/O beside HTTP: what it reads and writes goes
// through its own small interfaces.
package api

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	jsonx "github.com/go-json-experiment/json"
)

// defaultTimeout is how long a request may wait for what stands behind the API.
const defaultTimeout = 10 * time.Second

// API is the HTTP interface of one port: operations and the document that describes them. Operations are added before
// the port serves, not while it does.
type API struct {
	huma huma.API
	log  *slog.Logger
}

// Info names an API in its document.
type Info struct {
	Title, Description, Version string
}

// New starts the API of a port on mux and serves its document at /openapi.json. The mux must be served through [Wrap].
func New(mux *http.ServeMux, log *slog.Logger, info Info) *API {
	format := huma.Format{
		Marshal:   func(w io.Writer, v any) error { return jsonx.MarshalWrite(w, v, jsonOut) },
		Unmarshal: func(data []byte, v any) error { return jsonx.Unmarshal(data, v) },
	}
	config := huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info:    &huma.Info{Title: info.Title, Description: info.Description, Version: info.Version},
			// A relative server: the document is right behind a gateway too.
			Servers: []*huma.Server{{URL: "/"}},
			Components: &huma.Components{
				Schemas:         huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer),
				SecuritySchemes: securitySchemes(),
			},
		},
		Formats:       map[string]huma.Format{"application/json": format, "json": format},
		DefaultFormat: "application/json",
	}
	a := &API{huma: humago.New(mux, config), log: log}
	a.define("Problem", problemSchema())
	mux.HandleFunc("GET /openapi.json", a.serveDocument(sync.OnceValues(func() ([]byte, error) {
		return json.Marshal(a.huma.OpenAPI())
	})))
	return a
}

func (a *API) serveDocument(document func() ([]byte, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		data, err := document()
		if err != nil {
			a.fail(w, r, fmt.Errorf("encode OpenAPI document: %w", err))
			return
		}
		w.Header().Set("Content-Type", "application/json")
		writeBody(w, http.StatusOK, data)
	}
}

// handler answers one operation. The query holds only parameters that the operation documents, each once. An error is
// for an answer that has not begun: a [*Problem], an [event.Error], one of the errors of this package, or a bug.
type handler func(w http.ResponseWriter, r *http.Request, query url.Values) error

// handle adds an operation to the port and to its document. Which token it needs is not its own choice: see accessRules.
func (a *API) handle(op *huma.Operation, h handler) {
	describe(op)
	var known []string
	for _, p := range op.Parameters {
		if p.In == "query" {
			known = append(known, p.Name)
		}
	}
	slices.Sort(known)
	a.huma.OpenAPI().AddOperation(op)
	a.huma.Adapter().Handle(op, func(c huma.Context) {
		r, w := humago.Unwrap(c)
		w.Header()["Cache-Control"] = noStore
		query, err := readQuery(r, known)
		if err == nil {
			err = h(w, r, query)
		}
		if err != nil {
			a.fail(w, r, err)
		}
	})
}

var noStore = []string{"no-store"}

// readQuery refuses what the operation does not know: a mistyped filter that is ignored would select everything.
func readQuery(r *http.Request, known []string) (url.Values, error) {
	if r.URL.RawQuery == "" {
		return nil, nil
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, mistake(http.StatusBadRequest, "query", "must be URL-encoded name=value pairs joined by '&'")
	}
	for name, values := range query {
		if _, ok := slices.BinarySearch(known, name); !ok {
			if len(known) == 0 {
				return nil, mistake(http.StatusUnprocessableEntity, clip(name), "is not known, there are no query parameters here")
			}
			return nil, mistake(http.StatusUnprocessableEntity, clip(name), "is not known, query parameters are "+strings.Join(known, ", "))
		}
		if len(values) > 1 {
			return nil, mistake(http.StatusUnprocessableEntity, name, "must be given once")
		}
	}
	return query, nil
}

// clip shortens a name that came from outside, so that a problem stays readable.
func clip(s string) string {
	const most = 64
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// Server returns a server with explicit limits on time and headers; the caller sets the handler. A handler that
// streams for longer must lift the deadlines of its own request with [http.ResponseController], the read deadline too:
// the request's context ends with it.
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
