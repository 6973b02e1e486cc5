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
func readRows(ctx context.Context, tx pgx.Tx, keys []ProjectionKey, tables map[string]string, found map[ProjectionKey]*located) error {
	byType := make(map[string][]string)
	for _, k := range keys {
		byType[k.Type] = append(byType[k.Type], k.AggregateID)
	}
	for projectionType, ids := range byType {
		rows, err := tx.Query(ctx, `
			SELECT p.ctid, p.projection_id, p.projection_type, p.aggregate_id, p.state::text, p.last_event_id, p.last_event_timestamp,
				p.position, p.event_count
			FROM unnest($1::text[]) AS k (id) JOIN `+tables[projectionType]+` p ON p.projection_type = '`+projectionType+`' AND p.aggregate_id = k.id`, ids)
		if err != nil {
			return fmt.Errorf("read projections %s: %w", projectionType, err)
		}
		list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*located, error) {
			var r located
			return &r, row.Scan(&r.at, (*[16]byte)(&r.ID), &r.Type, &r.AggregateID, (*[]byte)(&r.State), (*[16]byte)(&r.LastEventID),
				&r.LastEventTimestamp, &r.Position, &r.EventCount)
		})
		if err != nil {
			return fmt.Errorf("read projections %s: %w", projectionType, err)
		}
		for _, r := range list {
			found[r.key()] = r
		}
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

// The type is part of the text of what goes through the table projections, so that it is planned for the one partition.
// Both statements return where the rows are that they have written: all that they were given, or there is a conflict.
const (
	changeRows = `
UPDATE %[1]s p SET state = n.state::jsonb, last_event_id = n.event, last_event_timestamp = n.time,
	position = n.position, event_count = n.count, updated_at = now()
FROM unnest($1::tid[], $2::bigint[], $3::uuid[], $4::text[], $5::uuid[], $6::timestamptz[], $7::bigint[], $8::bigint[])
	AS n (place, before, id, state, event, time, position, count)
WHERE p.projection_type = '%[2]s' AND p.ctid = n.place AND p.projection_id = n.id AND p.event_count = n.before
RETURNING p.projection_id, p.ctid`

	createRows = `
INSERT INTO %[1]s AS p (projection_id, projection_type, aggregate_id, state, last_event_id, last_event_timestamp, position, event_count)
SELECT id, type, key, state::jsonb, event, time, position, count
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::uuid[], $6::timestamptz[], $7::bigint[], $8::bigint[])
	AS n (id, type, key, state, event, time, position, count)
ON CONFLICT DO NOTHING
RETURNING p.projection_id, p.ctid`
)

// queue adds the statements that write a type to its table; they note in places where the rows are then.
func (t *typeWriting) queue(statements *pgx.Batch, table, projectionType string, places places) {
	if c := &t.changed; len(c.rows) > 0 {
		statements.Queue(fmt.Sprintf(changeRows, table, projectionType), c.places, c.before, c.ids, c.states, c.events, c.times, c.positions, c.count).Query(places.note)
	}
	if c := &t.created; len(c.rows) > 0 {
		statements.Queue(fmt.Sprintf(createRows, table), c.ids, c.types, c.keys, c.states, c.events, c.times, c.positions, c.count).Query(places.note)
	}
}

// places says where rows are, by projection_id.
type places map[uuid.UUID]pgtype.TID

func (p places) note(rows pgx.Rows) error {
	var id pgtype.UUID
	var at pgtype.TID
	_, err := pgx.ForEachRow(rows, []any{&id, &at}, func() error {
		p[id.Bytes] = at
		return nil
	})
	return err
}

func (p places) send(ctx context.Context, tx pgx.Tx, statements *pgx.Batch) error {
	if err := tx.SendBatch(ctx, statements).Close(); err != nil {
		if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) && pg.Code == "40P01" { // deadlock_detected: we are its victim
			return fmt.Errorf("write projections: %w: %w", ErrConflict, err)
		}
		return fmt.Errorf("write projections: %w", fault.Refused(err))
	}
	return nil
}
