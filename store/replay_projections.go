package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// errCreated says that another writer has created a row since it was looked for.
var errCreated = errors.New("projection was created by another writer at the same time")

// UpdateProjections locks the rows of keys within tx, lets fold change or add some, and writes those whose event count
// has grown: by it other writers see that they were not alone. Rows that don't exist are missing from the map.
func UpdateProjections(ctx context.Context, tx pgx.Tx, keys []ProjectionKey, fold func(rows map[ProjectionKey]*Projection) error) error {
	keys = slices.Clone(keys)
	slices.SortFunc(keys, func(a, b ProjectionKey) int { // the order of all writers: no deadlocks
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.AggregateID, b.AggregateID))
	})
	keys = slices.Compact(keys)
	if len(keys) == 0 {
		return nil
	}
	var err error
	for range 5 {
		err = pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { // a savepoint
			rows, err := lockProjections(ctx, tx, keys)
			if err != nil {
				return err
			}
			before := make(map[ProjectionKey]int64, len(rows))
			for k, r := range rows {
				before[k] = r.EventCount
			}
			if err := fold(rows); err != nil {
				return err
			}
			return writeProjections(ctx, tx, keys, rows, before)
		})
		if !errors.Is(err, errCreated) {
			break
		}
	}
	return err
}

func lockProjections(ctx context.Context, tx pgx.Tx, keys []ProjectionKey) (map[ProjectionKey]*Projection, error) {
	found := make(map[ProjectionKey]*Projection, len(keys))
	for _, k := range keys {
		r := Projection{Type: k.Type, AggregateID: k.AggregateID}
		err := tx.QueryRow(ctx, `SELECT state::text, last_event_id, last_event_timestamp, position, event_count
			FROM projections WHERE projection_type = $1 AND aggregate_id = $2 FOR UPDATE`, k.Type, k.AggregateID).
			Scan((*[]byte)(&r.State), (*[16]byte)(&r.LastEventID), &r.LastEventTimestamp, &r.Position, &r.EventCount)
		switch {
		case err == nil:
			found[k] = &r
		case !errors.Is(err, pgx.ErrNoRows):
			return nil, fmt.Errorf("read projection %s of %s: %w", k.Type, k.AggregateID, err)
		}
	}
	return found, nil
}

// writeProjections writes what has changed since the rows had these event counts.
func writeProjections(ctx context.Context, tx pgx.Tx, keys []ProjectionKey, rows map[ProjectionKey]*Projection, before map[ProjectionKey]int64) error {
	for _, k := range keys {
		r := rows[k]
		if r == nil {
			continue
		}
		query := `UPDATE projections SET state = $3::text::jsonb, last_event_id = $4, last_event_timestamp = $5,
				position = greatest(position, $6), event_count = $7, updated_at = now()
			WHERE projection_type = $1 AND aggregate_id = $2`
		count, existed := before[k]
		switch {
		case existed && r.EventCount <= count:
			continue
		case !existed:
			query = `INSERT INTO projections (projection_type, aggregate_id, state, last_event_id, last_event_timestamp, position, event_count)
				VALUES ($1, $2, $3::text::jsonb, $4, $5, $6, $7) ON CONFLICT DO NOTHING`
		}
		tag, err := tx.Exec(ctx, query, k.Type, k.AggregateID, string(r.State), r.LastEventID, r.LastEventTimestamp, r.Position, r.EventCount)
		if err != nil {
			return fmt.Errorf("write projection %s of %s: %w", k.Type, k.AggregateID, err)
		}
		if tag.RowsAffected() == 0 {
			return errCreated
		}
	}
	return nil
}
