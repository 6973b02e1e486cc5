package store

import (
	"bytes"
	"container/list"
	"sync"

	"github.com/jackc/pgx/v5/pgtype"
)

// located is a row and where its newest version is.
type located struct {
	Projection
	at pgtype.TID
}

func (l *located) key() ProjectionKey {
	return ProjectionKey{Type: l.Type, AggregateID: l.AggregateID}
}

// size is about what a remembered row takes.
func (l *located) size() int { return len(l.State) + 2*len(l.AggregateID) + 512 }

// rowCacheBytes is enough for some ten thousand aggregates, and a small part of what the platform may take.
const rowCacheBytes = 8 << 20

// rowCache remembers the rows used last, within a bound of bytes. It may be used concurrently. Its rows are not changed.
type rowCache struct {
	mu    sync.Mutex
	max   int
	bytes int
	rows  map[ProjectionKey]*list.Element // of *located
	used  *list.List                      // newest first
}

func newRowCache(max int) *rowCache {
	return &rowCache{max: max, rows: make(map[ProjectionKey]*list.Element), used: list.New()}
}

// lookup returns the rows that are remembered, and the keys of the others.
func (c *rowCache) lookup(keys []ProjectionKey) (found map[ProjectionKey]*located, unknown []ProjectionKey) {
	found = make(map[ProjectionKey]*located, len(keys))
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range keys {
		e, ok := c.rows[k]
		if !ok {
			unknown = append(unknown, k)
			continue
		}
		c.used.MoveToFront(e)
		found[k] = e.Value.(*located)
	}
	return found, unknown
}

func (c *rowCache) remember(rows []*located) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range rows {
		r.State = bytes.Clone(r.State) // it may be a part of a whole batch of the bus
		c.drop(r.key())
		c.rows[r.key()] = c.used.PushFront(r)
		c.bytes += r.size()
	}
	for c.bytes > c.max {
		c.drop(c.used.Back().Value.(*located).key())
	}
}

func (c *rowCache) forget(rows []*located) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range rows {
		c.drop(r.key())
	}
}

func (c *rowCache) drop(k ProjectionKey) {
	if e, ok := c.rows[k]; ok {
		c.bytes -= c.used.Remove(e).(*located).size()
		delete(c.rows, k)
	}
}
