package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cornjacket/platform-services/event"
)

// Projections writes projections. It may be used concurrently.
type Projections struct{ pool *pgxpool.Pool }

// NewProjections returns a writer on pool, which stays the caller's.
func NewProjections(pool *pgxpool.Pool) *Projections { return &Projections{pool: pool} }

// errConflict says that another writer created a row between our reading and our writing.
var errConflict = errors.New("projection was written by another instance at the same time")

// Update reads the rows of keys, lets fold change them, and writes those whose position has grown, all in one
// transaction that holds the rows. Rows that don't exist are missing from the map; fold adds them. An error of fold
// undoes everything and is returned as it is. Errors that no retry mends are marked with [event.Permanent].
func (p *Projections) Update(ctx context.Context, keys []event.ProjectionKey, fold func(rows map[event.ProjectionKey]*event.Projection) error) error {
	slices.SortFunc(keys, func(a, b event.ProjectionKey) int { // one order for all writers: no deadlocks
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.AggregateID, b.AggregateID))
	})
	keys = slices.Compact(keys)
	conn, err := p.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	// A connection that is still in a transaction is closed by the pool, which undoes the transaction.
	defer conn.Release()
	rows, err := lockRows(ctx, conn, keys)
	if err != nil {
		return err
	}
	before := make(map[event.ProjectionKey]int64, len(rows))
	for k, r := range rows {
		before[k] = r.Position
	}
	if err := fold(rows); err != nil {
		return rollback(ctx, conn, err)
	}
	if err := writeRows(ctx, conn, keys, rows, before); err != nil {
		return rollback(ctx, conn, err)
	}
	return nil
}

// rollback keeps the connection for others, if that is possible, and returns err.
func rollback(ctx context.Context, conn *pgxpool.Conn, err error) error {
	_, _ = conn.Exec(ctx, "ROLLBACK") // else the pool closes the connection
	return err
}

// lockRows begins the transaction and reads the rows, in one round trip.
func lockRows(ctx context.Context, conn *pgxpool.Conn, keys []event.ProjectionKey) (map[event.ProjectionKey]*event.Projection, error) {
	types, ids := make([]string, len(keys)), make([]string, len(keys))
	for i, k := range keys {
		types[i], ids[i] = k.Type, k.AggregateID
	}
	batch := &pgx.Batch{}
	batch.Queue("BEGIN")
	batch.Queue(`
		SELECT p.projection_type, p.aggregate_id, p.state::text, p.last_event_id, p.last_event_timestamp, p.position, p.event_count
		FROM unnest($1::text[], $2::text[]) AS k (type, id)
		JOIN projections p ON p.projection_type = k.type AND p.aggregate_id = k.id
		ORDER BY 1, 2 FOR UPDATE OF p`, types, ids)
	results := conn.SendBatch(ctx, batch)
	defer func() { _ = results.Close() }() // its errors have been seen
	if _, err := results.Exec(); err != nil {
		return nil, fmt.Errorf("begin: %w", err)
	}
	rows, err := results.Query()
	if err != nil {
		return nil, fmt.Errorf("read projections: %w", err)
	}
	defer rows.Close()
	found := make(map[event.ProjectionKey]*event.Projection, len(keys))
	for rows.Next() {
		var r event.Projection
		err := rows.Scan(&r.Type, &r.AggregateID, (*[]byte)(&r.State), (*[16]byte)(&r.LastEventID), &r.LastEventTimestamp, &r.Position, &r.EventCount)
		if err != nil {
			return nil, fmt.Errorf("read projection: %w", err)
		}
		found[event.ProjectionKey{Type: r.Type, AggregateID: r.AggregateID}] = &r
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read projections: %w", err)
	}
	return found, nil
}

// columns are the arguments of a multi-row write.
type columns struct {
	types, ids, states []string
	events             []uuid.UUID
	times              []time.Time
	positions, counts  []int64
}

func (c *columns) add(k event.ProjectionKey, r *event.Projection) {
	c.types = append(c.types, k.Type)
	c.ids = append(c.ids, k.AggregateID)
	c.states = append(c.states, string(r.State))
	c.events = append(c.events, r.LastEventID)
	c.times = append(c.times, r.LastEventTimestamp)
	c.positions = append(c.positions, r.Position)
	c.counts = append(c.counts, r.EventCount)
}

func (c *columns) args() []any {
	return []any{c.types, c.ids, c.states, c.events, c.times, c.positions, c.counts}
}

const unnestRows = `unnest($1::text[], $2::text[], $3::text[], $4::uuid[], $5::timestamptz[], $6::bigint[], $7::bigint[])
	AS n (type, id, state, event, time, position, count)`

// writeRows writes what has changed and commits, in one round trip if no row is new.
func writeRows(ctx context.Context, conn *pgxpool.Conn, keys []event.ProjectionKey, rows map[event.ProjectionKey]*event.Projection, before map[event.ProjectionKey]int64) error {
	var created, changed columns
	for _, k := range keys {
		r := rows[k]
		position, existed := before[k]
		switch {
		case r == nil || existed && r.Position <= position:
		case existed:
			changed.add(k, r)
		default:
			created.add(k, r)
		}
	}
	if err := insertRows(ctx, conn, &created); err != nil {
		return err
	}
	batch := &pgx.Batch{}
	if len(changed.ids) > 0 { // they are locked: each is there
		batch.Queue(`UPDATE projections p SET state = n.state::jsonb, last_event_id = n.event,
				last_event_timestamp = n.time, position = n.position, event_count = n.count, updated_at = now()
			FROM `+unnestRows+` WHERE p.projection_type = n.type AND p.aggregate_id = n.id`, changed.args()...)
	}
	batch.Queue("COMMIT")
	if err := conn.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("write projections: %w", classify(err))
	}
	return nil
}

// insertRows adds rows. One that is there by now has been added by another instance, whose effect must not be lost.
func insertRows(ctx context.Context, conn *pgxpool.Conn, created *columns) error {
	if len(created.ids) == 0 {
		return nil
	}
	tag, err := conn.Exec(ctx, `INSERT INTO projections (projection_type, aggregate_id, state, last_event_id, last_event_timestamp, position, event_count)
		SELECT type, id, state::jsonb, event, time, position, count FROM `+unnestRows+` ON CONFLICT DO NOTHING`, created.args()...)
	if err != nil {
		return fmt.Errorf("add projections: %w", classify(err))
	}
	if tag.RowsAffected() != int64(len(created.ids)) {
		return errConflict
	}
	return nil
}
