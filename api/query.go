package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/store"
)

// Reader reads what the platform has stored and computed. Its methods are called concurrently and must return soon
// after ctx ends. Errors: [fault.ErrNotFound], [fault.ErrUnavailable]; any other is a bug.
type Reader interface {
	// Projection returns one projection, or fault.ErrNotFound.
	Projection(ctx context.Context, projectionType, aggregateID string) (store.Projection, error)
	// Projections returns up to limit projections of a type whose aggregate ID is greater than afterAggregateID, in the
	// order of the aggregate IDs' bytes; an empty afterAggregateID starts at the first. A type that nobody has written
	// has none.
	Projections(ctx context.Context, projectionType, afterAggregateID string, limit int) ([]store.Projection, error)
	// Event returns one event, or fault.ErrNotFound.
	Event(ctx context.Context, id uuid.UUID) (event.Envelope, error)
	// Events returns up to f.Limit events, newest position first, each with its position in Metadata.Position.
	Events(ctx context.Context, f store.EventFilter) ([]event.Envelope, error)
}

// QueryConfig configures the query API.
type QueryConfig struct {
	Reader  Reader
	Log     *slog.Logger  // slog.Default() if nil
	Version string        // of the platform, for the document
	Timeout time.Duration // how long one request may read; 10 s if zero
}

type reads struct{ cfg QueryConfig }

// NewQuery returns the query API as a whole port.
func NewQuery(cfg QueryConfig) http.Handler {
	mux := http.NewServeMux()
	MountQuery(mux, cfg)
	return Wrap(orDefault(cfg.Log), mux)
}

// MountQuery adds the query API and its document to a mux, which must be served through [Wrap]. Other operations of
// the same port can be added to what it returns.
func MountQuery(mux *http.ServeMux, cfg QueryConfig) *API {
	cfg.Log = orDefault(cfg.Log)
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	s := &reads{cfg}
	a := New(mux, cfg.Log, Info{
		Title:       "Cornjacket query",
		Description: "Reads events, and the current state computed from them.",
		Version:     cfg.Version,
	})
	defineQuery(a)
	a.handle(getProjectionOperation(), s.getProjection)
	a.handle(listProjectionsOperation(), s.listProjections)
	a.handle(getEventOperation(), s.getEvent)
	a.handle(listEventsOperation(), s.listEvents)
	return a
}

func (s *reads) getProjection(w http.ResponseWriter, r *http.Request, _ url.Values) error {
	kind, err := checkText("type", r.PathValue("type"), maxType)
	if err != nil {
		return err
	}
	id, err := checkText("aggregate_id", r.PathValue("aggregate_id"), maxAggregateID)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.Timeout)
	defer cancel()
	p, err := s.cfg.Reader.Projection(ctx, kind, id)
	if errors.Is(err, fault.ErrNotFound) {
		return newProblem(http.StatusNotFound, fmt.Sprintf("there is no %s of %s", kind, id))
	}
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, &p)
}

func (s *reads) listProjections(w http.ResponseWriter, r *http.Request, query url.Values) error {
	kind, err := checkText("type", r.PathValue("type"), maxType)
	if err != nil {
		return err
	}
	limit, err := limitOf(query)
	if err != nil {
		return err
	}
	list := newListing("projections", kind)
	after := ""
	if query.Has("cursor") {
		if after, err = list.aggregateID(query.Get("cursor")); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.Timeout)
	defer cancel()
	items, err := s.cfg.Reader.Projections(ctx, kind, after, limit+1)
	if err != nil {
		return err
	}
	return writePage(w, s.cfg.Log, items, limit, func(last *store.Projection) string {
		return list.cursor([]byte(last.AggregateID))
	})
}

func (s *reads) getEvent(w http.ResponseWriter, r *http.Request, _ url.Values) error {
	id, err := uuidOf(r, "event_id")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.Timeout)
	defer cancel()
	e, err := s.cfg.Reader.Event(ctx, id)
	if errors.Is(err, fault.ErrNotFound) {
		return newProblem(http.StatusNotFound, fmt.Sprintf("there is no event %s", id))
	}
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, &e)
}

func (s *reads) listEvents(w http.ResponseWriter, r *http.Request, query url.Values) error {
	filter, list, err := filterOf(query)
	if err != nil {
		return err
	}
	limit := filter.Limit
	filter.Limit = limit + 1
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.Timeout)
	defer cancel()
	items, err := s.cfg.Reader.Events(ctx, filter)
	if err != nil {
		return err
	}
	return writePage(w, s.cfg.Log, items, limit, func(last *event.Envelope) string {
		return list.positionCursor(last.Metadata.Position)
	})
}

func filterOf(query url.Values) (f store.EventFilter, list listing, err error) {
	if f.AggregateID, err = textOf(query, "aggregate_id", maxAggregateID); err != nil {
		return f, list, err
	}
	if f.EventType, err = textOf(query, "event_type", maxType); err != nil {
		return f, list, err
	}
	if f.From, f.To, err = rangeOf(query); err != nil {
		return f, list, err
	}
	if f.Limit, err = limitOf(query); err != nil {
		return f, list, err
	}
	list = newListing("events", f.AggregateID, f.EventType, f.From.Format(time.RFC3339Nano), f.To.Format(time.RFC3339Nano))
	if query.Has("cursor") {
		f.Before, err = list.position(query.Get("cursor"))
	}
	return f, list, err
}

// chunk is how many bytes of a page are encoded before they are sent: a page can be large and is not held twice.
const chunk = 64 << 10

// writePage sends up to limit items; that there are more of them means that there is a next page.
func writePage[T any](w http.ResponseWriter, log *slog.Logger, items []T, limit int, cursor func(last *T) string) error {
	next := ""
	if len(items) > limit {
		items = items[:limit]
		next = cursor(&items[limit-1])
	}
	w.Header()["Content-Type"] = contentJSON
	buf := bytes.NewBufferString(`{"items":[`)
	sent := false
	for i := range items {
		if i > 0 {
			buf.WriteByte(',')
		}
		if err := json.MarshalWrite(buf, &items[i], jsonOut); err != nil {
			err = fmt.Errorf("encode item %d of a page: %w", i, err)
			if !sent {
				return err
			}
			log.Error("response broken off", "error", err)
			panic(http.ErrAbortHandler) // half a page must not look like a whole one
		}
		if buf.Len() >= chunk {
			if _, err := w.Write(buf.Bytes()); err != nil {
				return nil //nolint:nilerr // the client has gone: there is nobody to tell
			}
			sent = true
			buf.Reset()
		}
	}
	buf.WriteByte(']')
	if next != "" {
		buf.WriteString(`,"next_cursor":"` + next + `"`) // base64url: nothing to escape
	}
	buf.WriteByte('}')
	_, _ = w.Write(buf.Bytes())
	return nil
}
