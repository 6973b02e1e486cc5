package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
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
	// order of the aggregate IDs' bytes; an empty afterAggregateID starts at the first. A type that has no rows
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
	Timeout time.Duration // how long one request may take, also of operations that are added; 10 s if zero
}

type reads struct{ Reader }

// NewQuery returns the query API as a whole port.
func NewQuery(cfg QueryConfig) http.Handler {
	mux := http.NewServeMux()
	MountQuery(mux, cfg)
	return Wrap(orDefault(cfg.Log), mux)
}

// MountQuery adds the query API and its document to a mux, which must be served through [Wrap]. Other operations of
// the same port can be added to what it returns.
func MountQuery(mux *http.ServeMux, cfg QueryConfig) *API {
	a := New(mux, cfg.Log, Info{
		Title:       "Cornjacket query",
		Description: "Reads events, and the current state computed from them.",
		Version:     cfg.Version,
	})
	if cfg.Timeout > 0 {
		a.timeout = cfg.Timeout
	}
	s := reads{cfg.Reader}
	register(a, huma.Operation{
		OperationID: "get-projection", Method: http.MethodGet, Path: "/api/v1/projections/{type}/{aggregate_id}", Tags: []string{"projections"},
		Summary:   "Current state of one aggregate",
		Responses: explain(map[int]string{200: "The state.", 404: "No event of this aggregate has given such a state yet."}),
	}, s.projection)
	register(a, huma.Operation{
		OperationID: "list-projections", Method: http.MethodGet, Path: "/api/v1/projections/{type}", Tags: []string{"projections"},
		Summary: "Current state of all aggregates", Description: "Ordered by aggregate_id.",
		Responses: explain(map[int]string{200: "One page; empty for a type that has no projections."}),
	}, s.projections)
	register(a, huma.Operation{
		OperationID: "get-event", Method: http.MethodGet, Path: "/api/v1/events/{event_id}", Tags: []string{"events"},
		Summary:   "One event",
		Responses: explain(map[int]string{200: "The event.", 404: "There is no such event, or it is not sequenced yet."}),
	}, s.event)
	register(a, huma.Operation{
		OperationID: "list-events", Method: http.MethodGet, Path: "/api/v1/events", Tags: []string{"events"},
		Summary: "Events of the log", Description: "Newest position first; by event_time, the newest first, if nothing but from and to is given. Filters are joined by and.",
		Responses: explain(map[int]string{200: "One page."}),
	}, s.events)
	return a
}

type oneProjection struct {
	Type        Text `path:"type" maxLength:"128" doc:"Type of the projection, such as sensor_state."`
	AggregateID Text `path:"aggregate_id" maxLength:"256" doc:"What the state is about; percent-encoded."`
}

func (s reads) projection(ctx context.Context, in *oneProjection) (store.Projection, error) {
	p, err := s.Projection(ctx, string(in.Type), string(in.AggregateID))
	return p, notFound(err, "there is no %s of %s", in.Type, in.AggregateID)
}

type someProjections struct {
	Type Text `path:"type" maxLength:"128" doc:"Type of the projection, such as sensor_state."`
	Paging
}

func (s reads) projections(ctx context.Context, in *someProjections) (page Page[store.Projection], err error) {
	list := newListing("projections", string(in.Type))
	after := ""
	if err := list.after(in.Cursor, &after); err != nil {
		return page, err
	}
	items, err := s.Projections(ctx, string(in.Type), after, in.Limit+1)
	return pageOf(items, in.Limit, func(last *store.Projection) string { return list.cursor(last.AggregateID) }), err
}

type oneEvent struct {
	ID uuid.UUID `path:"event_id" doc:"ID of the event."`
}

func (s reads) event(ctx context.Context, in *oneEvent) (event.Envelope, error) {
	e, err := s.Event(ctx, in.ID)
	return e, notFound(err, "there is no event %s", in.ID)
}

type someEvents struct {
	AggregateID Text `query:"aggregate_id" maxLength:"256" doc:"Only events about this."`
	EventType   Text `query:"event_type" maxLength:"128" doc:"Only events of this type."`
	Span
	Paging
}

func (s reads) events(ctx context.Context, in *someEvents) (page Page[event.Envelope], err error) {
	f := store.EventFilter{AggregateID: string(in.AggregateID), EventType: string(in.EventType), From: in.From.at, To: in.To.at, Limit: in.Limit + 1}
	list := newListing("events", f.AggregateID, f.EventType, f.From.Format(time.RFC3339Nano), f.To.Format(time.RFC3339Nano))
	key := func(e *event.Envelope) any { return e.Metadata.Position }
	after := func() error { return list.after(in.Cursor, &f.Before) }
	if f.ByTime() {
		list = newListing("events by time", f.From.Format(time.RFC3339Nano), f.To.Format(time.RFC3339Nano))
		key = func(e *event.Envelope) any { return timePlace{e.Time, e.Metadata.Position} }
		after = func() error {
			if in.Cursor == "" {
				return nil
			}
			var place timePlace
			err := list.after(in.Cursor, &place)
			f.BeforeTime, f.Before = place.Time, place.Position
			return err
		}
	}
	if err := after(); err != nil {
		return page, err
	}
	items, err := s.Events(ctx, f)
	return pageOf(items, in.Limit, func(last *event.Envelope) string { return list.cursor(key(last)) }), err
}

// timePlace is the place of an event among those of a time.
type timePlace struct {
	Time     time.Time `json:"time"`
	Position int64     `json:"position"`
}

// notFound names what was not found; other errors stay as they are.
func notFound(err error, format string, args ...any) error {
	if errors.Is(err, fault.ErrNotFound) {
		return newProblem(http.StatusNotFound, fmt.Sprintf(format, args...))
	}
	return err
}
