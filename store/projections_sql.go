package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ProjectionSettings are server settings for connections that write projections: rows are visited one by one, by their
// place or by their key, whatever the statistics say. The statistics know the size of the table as it was; a plan made for
// a small table that reads all of it would be kept for a big one, or for one that is full of dead rows.
func ProjectionSettings() map[string]string {
	return map[string]string{
		"jit":             "off", // what is switched off here counts as endlessly costly, and so as worth compiling
		"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off", "enable_bitmapscan": "off",
		"enable_hashjoin": "off", "enable_mergejoin": "off",
	}
}

// readRows adds the rows of keys that exist.
func readRows(ctx context.Context, pool *pgxpool.Pool, keys []ProjectionKey, found map[ProjectionKey]*located) error {
	types, ids := make([]string, len(keys)), make([]string, len(keys))
	for i, k := range keys {
		types[i], ids[i] = k.Type, k.AggregateID
	}
	rows, err := pool.Query(ctx, `
		SELECT p.ctid, p.projection_id, p.projection_type, p.aggregate_id, p.state::text, p.last_event_id, p.last_event_timestamp,
			p.position, p.event_count
		FROM unnest($1::text[], $2::text[]) AS k (type, id)
		JOIN projections p ON p.projection_type = k.type AND p.aggregate_id = k.id`, types, ids)
	if err != nil {
		return fmt.Errorf("read projections: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var r located
		err := rows.Scan(&r.at, (*[16]byte)(&r.ID), &r.Type, &r.AggregateID, (*[]byte)(&r.State), (*[16]byte)(&r.LastEventID),
			&r.LastEventTimestamp, &r.Position, &r.EventCount)
		if err != nil {
			return fmt.Errorf("read projection: %w", err)
		}
		found[r.key()] = &r
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read projections: %w", err)
	}
	return nil
}

// columns are the arguments of a multi-row write.
type columns struct {
	rows []*located // as they will be

	places           []pgtype.TID  // where the old versions are
	before           []int64       // their event_count
	ids, events      []pgtype.UUID // uuid.UUID would travel as text
	types, keys      []string
	states           []string
	times            []time.Time
	positions, count []int64
}

// add adds a row; old is what it was, nil if it is new.
func (c *columns) add(k ProjectionKey, r *Projection, old *located) {
	row := &located{Projection: *r}
	row.Type, row.AggregateID = k.Type, k.AggregateID
	if old == nil {
		row.ID = uuid.New()
	} else {
		row.ID = old.ID
		c.places = append(c.places, old.at)
		c.before = append(c.before, old.EventCount)
	}
	c.rows = append(c.rows, row)
	c.ids = append(c.ids, pgtype.UUID{Bytes: row.ID, Valid: true})
	c.types = append(c.types, k.Type)
	c.keys = append(c.keys, k.AggregateID)
	c.states = append(c.states, string(r.State))
	c.events = append(c.events, pgtype.UUID{Bytes: r.LastEventID, Valid: true})
	c.times = append(c.times, r.LastEventTimestamp)
	c.positions = append(c.positions, r.Position)
	c.count = append(c.count, r.EventCount)
}

// Both statements fail, by dividing by zero, unless they have written as many rows as they were given: in one round trip
// all rows are written or none. They return where the rows are now.
const (
	changeRows = `
WITH written AS (
	UPDATE projections p SET state = n.state::jsonb, last_event_id = n.event, last_event_timestamp = n.time,
		position = n.position, event_count = n.count, updated_at = now()
	FROM unnest($1::tid[], $2::bigint[], $3::uuid[], $4::text[], $5::uuid[], $6::timestamptz[], $7::bigint[], $8::bigint[])
		AS n (place, before, id, state, event, time, position, count)
	WHERE p.ctid = n.place AND p.projection_id = n.id AND p.event_count = n.before
	RETURNING p.projection_id AS id, p.ctid AS place
) SELECT array_agg(id), array_agg(place), 1 / (count(*) = cardinality($1::tid[]))::int FROM written`

	createRows = `
WITH written AS (
	INSERT INTO projections (projection_id, projection_type, aggregate_id, state, last_event_id, last_event_timestamp,
		position, event_count)
	SELECT id, type, key, state::jsonb, event, time, position, count
	FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::uuid[], $6::timestamptz[], $7::bigint[], $8::bigint[])
		AS n (id, type, key, state, event, time, position, count)
	ON CONFLICT DO NOTHING
	RETURNING projection_id AS id, ctid AS place
) SELECT array_agg(id), array_agg(place), 1 / (count(*) = cardinality($1::uuid[]))::int FROM written`
)

// writeRows writes what has changed in one round trip, which is one transaction, and notes where the rows are then.
func writeRows(ctx context.Context, pool *pgxpool.Pool, w *writing) (conflict bool, err error) {
	places := make(map[uuid.UUID]pgtype.TID, len(w.changed.rows)+len(w.created.rows))
	note := func(row pgx.Row) error {
		var ids []pgtype.UUID
		var at []pgtype.TID
		if err := row.Scan(&ids, &at, nil); err != nil {
			return err
		}
		for i, id := range ids {
			places[id.Bytes] = at[i]
		}
		return nil
	}
	batch := &pgx.Batch{}
	if c := &w.changed; len(c.rows) > 0 {
		batch.Queue(changeRows, c.places, c.before, c.ids, c.states, c.events, c.times, c.positions, c.count).QueryRow(note)
	}
	if c := &w.created; len(c.rows) > 0 {
		batch.Queue(createRows, c.ids, c.types, c.keys, c.states, c.events, c.times, c.positions, c.count).QueryRow(note)
	}
	if err := pool.SendBatch(ctx, batch).Close(); err != nil {
		if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) && pg.Code == "22012" { // division_by_zero
			return true, nil
		}
		return false, fmt.Errorf("write projections: %w", fault.Refused(err))
	}
	for _, c := range []*columns{&w.changed, &w.created} {
		for _, r := range c.rows {
			r.at = places[r.ID]
		}
	}
	return false, nil
}
