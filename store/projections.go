package store

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"
)

// Projections writes projections. It remembers the rows it has written, and where they are, so that a batch goes
// straight to its rows: it reads nothing, locks nothing beforehand, and does not walk the dead versions of a row, of which
// an old transaction of another session may keep thousands. What it remembers is only ever a guess, which the statement
// checks: should anybody else have written, deleted or moved a row, nothing is to be committed and the rows are read anew.
// It writes the tables of one set of versions, one batch at a time.
type Projections struct {
	tables map[string]string // by projection type
	known  *rowCache
	staged *writing // of the transaction that is being written
}

// NewProjections returns a writer to tables, by projection type. Its connections should have [ProjectionSettings].
func NewProjections(tables map[string]string) *Projections {
	return &Projections{tables: tables, known: newRowCache(rowCacheBytes)}
}

// Has reports whether a projection type has a table.
func (p *Projections) Has(projectionType string) bool { return p.tables[projectionType] != "" }

// Update gives fold the rows of keys and writes within tx those whose EventCount it has made grow. Rows that don't exist
// are missing from the map; fold adds them. An error of fold is returned as it is. [ErrConflict] says that tx must not be
// committed, and can be tried again at once. [Projections.Done] has to be told of the outcome of tx.
func (p *Projections) Update(ctx context.Context, tx pgx.Tx, keys []ProjectionKey, fold func(rows map[ProjectionKey]*Projection) error) error {
	slices.SortFunc(keys, func(a, b ProjectionKey) int { // one order for all writers: no deadlocks
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.AggregateID, b.AggregateID))
	})
	keys = slices.Compact(keys)
	before, unknown := p.known.lookup(keys)
	if err := readRows(ctx, tx, unknown, p.tables, before); err != nil {
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
	p.staged = w
	return w.write(ctx, tx, p.tables)
}

// Done notes whether the transaction of the last [Projections.Update] was committed.
func (p *Projections) Done(committed bool) {
	if p.staged == nil {
		return
	}
	for _, t := range p.staged.types {
		for _, c := range []*columns{&t.changed, &t.created} {
			if committed {
				p.known.remember(c.rows)
			} else {
				p.known.forget(c.rows)
			}
		}
	}
	p.staged = nil
}

// writing is what a batch changes, by projection type.
type writing struct{ types map[string]*typeWriting }

type typeWriting struct{ changed, created columns }

// rows returns how many rows are written.
func (w *writing) rows() (n int) {
	for _, t := range w.types {
		n += len(t.changed.rows) + len(t.created.rows)
	}
	return n
}

func changes(keys []ProjectionKey, before map[ProjectionKey]*located, rows map[ProjectionKey]*Projection) *writing {
	w := &writing{types: make(map[string]*typeWriting)}
	for _, k := range keys {
		old, r := before[k], rows[k]
		if r == nil || old != nil && r.EventCount <= old.EventCount {
			continue
		}
		t := w.types[k.Type]
		if t == nil {
			t = &typeWriting{}
			w.types[k.Type] = t
		}
		if old == nil {
			t.created.add(k, r, nil)
		} else {
			t.changed.add(k, r, old)
		}
	}
	return w
}

// write sends all statements at once.
func (w *writing) write(ctx context.Context, tx pgx.Tx, tables map[string]string) error {
	if len(w.types) == 0 {
		return nil
	}
	places := make(places, w.rows())
	statements := &pgx.Batch{}
	for _, projectionType := range slices.Sorted(maps.Keys(w.types)) {
		w.types[projectionType].queue(statements, tables[projectionType], projectionType, places)
	}
	if err := places.send(ctx, tx, statements); err != nil {
		return err
	}
	for _, t := range w.types {
		for _, c := range []*columns{&t.changed, &t.created} {
			for _, r := range c.rows {
				at, ok := places[r.ID]
				if !ok {
					return ErrConflict
				}
				r.at = at
			}
		}
	}
	return nil
}
