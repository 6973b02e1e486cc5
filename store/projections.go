package store

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Projections writes projections. It remembers the rows it has written, and where they are, so that a batch is one
// statement that goes straight to its rows: it reads nothing, locks nothing beforehand, and does not walk the dead
// versions of a row, of which an old transaction of another session may keep thousands. What it remembers is only ever a
// guess, which the statement checks: should anybody else have written, deleted or moved a row, nothing is written and
// the rows are read anew. It may be used concurrently.
type Projections struct {
	pool  *pgxpool.Pool
	known *rowCache
}

// NewProjections returns a writer on pool, which stays the caller's; its connections should have [ProjectionSettings].
func NewProjections(pool *pgxpool.Pool) *Projections {
	return &Projections{pool: pool, known: newRowCache(rowCacheBytes)}
}

// errConflict says that another writer was faster again and again.
var errConflict = errors.New("projections are being written by another instance at the same time")

// maxConflicts is how often a batch is tried anew. Two instances have the same rows only around a rebalance.
const maxConflicts = 5

// Update gives fold the rows of keys and writes those whose position it has made grow, all in one transaction. Rows that
// don't exist are missing from the map; fold adds them. Fold must raise EventCount with each event, which makes it the
// version of a row, and may be called again with newer rows if those were no longer true. An error of fold is returned
// as it is, and nothing is written. Errors that no retry mends are marked with [fault.Permanent].
func (p *Projections) Update(ctx context.Context, keys []ProjectionKey, fold func(rows map[ProjectionKey]*Projection) error) error {
	slices.SortFunc(keys, func(a, b ProjectionKey) int { // one order for all writers: no deadlocks
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.AggregateID, b.AggregateID))
	})
	keys = slices.Compact(keys)
	for attempt := 1; ; attempt++ {
		before, guessed, err := p.load(ctx, keys)
		if err != nil {
			return err
		}
		rows := make(map[ProjectionKey]*Projection, len(before))
		for k, r := range before {
			row := r.Projection
			rows[k] = &row
		}
		if err := fold(rows); err != nil {
			return err
		}
		w := changes(keys, before, rows)
		if guessed && w.untouched {
			// An event that comes again changes nothing. That must not be decided by what is remembered: the row may have
			// been deleted since, for a rebuild.
			p.known.forget(keys)
			continue
		}
		conflict, err := p.write(ctx, w)
		if err == nil && !conflict {
			return nil
		}
		p.known.forget(keys) // also when it is not known whether they were written
		if err != nil {
			return err
		}
		if attempt >= maxConflicts {
			return errConflict
		}
	}
}

// load returns the rows of keys as they are believed to be; guessed says that some are only remembered.
func (p *Projections) load(ctx context.Context, keys []ProjectionKey) (rows map[ProjectionKey]*located, guessed bool, err error) {
	rows, unknown := p.known.lookup(keys)
	guessed = len(rows) > 0
	if len(unknown) > 0 {
		if err := readRows(ctx, p.pool, unknown, rows); err != nil {
			return nil, false, err
		}
	}
	return rows, guessed, nil
}

// writing is what a batch changes.
type writing struct {
	changed, created columns
	untouched        bool // some row stays as it was
}

func changes(keys []ProjectionKey, before map[ProjectionKey]*located, rows map[ProjectionKey]*Projection) writing {
	var w writing
	for _, k := range keys {
		old, r := before[k], rows[k]
		switch {
		case r == nil:
		case old == nil:
			w.created.add(k, r, nil)
		case r.Position > old.Position:
			w.changed.add(k, r, old)
		default:
			w.untouched = true
		}
	}
	return w
}

// write writes a batch and remembers it; conflict says that nothing was written since a row is not what it was taken for.
func (p *Projections) write(ctx context.Context, w writing) (conflict bool, err error) {
	if len(w.changed.rows)+len(w.created.rows) == 0 {
		return false, nil
	}
	conflict, err = writeRows(ctx, p.pool, &w)
	if err == nil && !conflict {
		p.known.remember(w.changed.rows)
		p.known.remember(w.created.rows)
	}
	return conflict, err
}
