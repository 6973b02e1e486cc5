package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
)

// Reader answers the query API. Its errors wrap [fault.ErrNotFound] and [fault.ErrUnavailable]. It may be used concurrently.
type Reader struct {
	projections *pgxpool.Pool // of the event handler
	events      *pgxpool.Pool // of ingestion
}

// NewReader returns a reader of the event handler's projections and ingestion's event log; the pools stay the caller's.
func NewReader(projections, events *pgxpool.Pool) *Reader {
	return &Reader{projections: projections, events: events}
}

const projectionColumns = `projection_id, projection_type, aggregate_id, state::text, last_event_id,
	last_event_timestamp, position, event_count, updated_at`

func scanProjection(row pgx.CollectableRow) (Projection, error) {
	var p Projection
	err := row.Scan((*[16]byte)(&p.ID), &p.Type, &p.AggregateID, (*[]byte)(&p.State), (*[16]byte)(&p.LastEventID),
		&p.LastEventTimestamp, &p.Position, &p.EventCount, &p.UpdatedAt)
	p.LastEventTimestamp, p.UpdatedAt = p.LastEventTimestamp.UTC(), p.UpdatedAt.UTC()
	return p, err
}

// Projection returns one projection.
func (r *Reader) Projection(ctx context.Context, projectionType, aggregateID string) (Projection, error) {
	rows, err := r.projections.Query(ctx, `SELECT `+projectionColumns+` FROM projections
		WHERE projection_type = $1 AND aggregate_id = $2`, projectionType, aggregateID)
	return one(rows, err, scanProjection, "read projection")
}

// Projections returns up to limit projections of a type, ordered by aggregate_id, behind the given one.
func (r *Reader) Projections(ctx context.Context, projectionType, after string, limit int) ([]Projection, error) {
	rows, err := r.projections.Query(ctx, `SELECT `+projectionColumns+` FROM projections
		WHERE projection_type = $1 AND aggregate_id > $2 ORDER BY aggregate_id LIMIT $3`, projectionType, after, limit)
	return all(rows, err, scanProjection, "list projections")
}

const eventColumns = `event_id, event_type, aggregate_id, event_time, ingested_at, payload::text, metadata::text, position`

func scanEvent(row pgx.CollectableRow) (event.Envelope, error) {
	var e event.Envelope
	var metadata []byte
	var position int64
	err := row.Scan((*[16]byte)(&e.ID), &e.Type, &e.AggregateID, &e.Time, &e.IngestedAt, (*[]byte)(&e.Payload), &metadata, &position)
	if err != nil {
		return e, err
	}
	if err := json.Unmarshal(metadata, &e.Metadata); err != nil {
		return e, fmt.Errorf("read metadata: %w", err)
	}
	e.Metadata.Position = position
	e.Time, e.IngestedAt = e.Time.UTC(), e.IngestedAt.UTC()
	return e, nil
}

// Event returns one event of the log.
func (r *Reader) Event(ctx context.Context, id uuid.UUID) (event.Envelope, error) {
	rows, err := r.events.Query(ctx, `SELECT `+eventColumns+` FROM event_store WHERE event_id = $1`, id)
	return one(rows, err, scanEvent, "read event")
}

// Events returns events of the log that match a filter, the newest position first; see also [EventFilter.ByTime].
func (r *Reader) Events(ctx context.Context, f EventFilter) ([]event.Envelope, error) {
	var where []string
	var args []any
	and := func(condition string, arg any) {
		args = append(args, arg)
		where = append(where, fmt.Sprintf(condition, len(args)))
	}
	if f.AggregateID != "" {
		and("aggregate_id = $%d", f.AggregateID)
	}
	if f.EventType != "" {
		and("event_type = $%d", f.EventType)
	}
	if !f.From.IsZero() {
		and("event_time >= $%d", f.From)
	}
	if !f.To.IsZero() {
		and("event_time < $%d", f.To)
	}
	order := "position DESC"
	switch {
	case f.ByTime():
		order = "event_time DESC, position DESC"
		if f.Before > 0 {
			args = append(args, f.BeforeTime)
			and(fmt.Sprintf("(event_time, position) < ($%d, $%%d)", len(args)), f.Before)
		}
	case f.Before > 0:
		and("position < $%d", f.Before)
	}
	query := `SELECT ` + eventColumns + ` FROM event_store`
	if len(where) > 0 {
		query += ` WHERE ` + strings.Join(where, ` AND `)
	}
	args = append(args, f.Limit)
	query += fmt.Sprintf(` ORDER BY %s LIMIT $%d`, order, len(args))
	// Without a plan that is kept: one for any span and limit would sort what it finds.
	rows, err := r.events.Query(ctx, query, append([]any{pgx.QueryExecModeExec}, args...)...)
	return all(rows, err, scanEvent, "list events")
}

func one[T any](rows pgx.Rows, err error, scan pgx.RowToFunc[T], what string) (T, error) {
	var zero T
	if err != nil {
		return zero, fmt.Errorf("%s: %w", what, fault.Unavailable(err))
	}
	v, err := pgx.CollectExactlyOneRow(rows, scan)
	if errors.Is(err, pgx.ErrNoRows) || fault.Unmatchable(err) {
		return zero, fault.ErrNotFound
	}
	if err != nil {
		return zero, fmt.Errorf("%s: %w", what, fault.Unavailable(err))
	}
	return v, nil
}

func all[T any](rows pgx.Rows, err error, scan pgx.RowToFunc[T], what string) ([]T, error) {
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, fault.Unavailable(err))
	}
	list, err := pgx.CollectRows(rows, scan)
	if fault.Unmatchable(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, fault.Unavailable(err))
	}
	return list, nil
}
