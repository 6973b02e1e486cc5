package outbox

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/pubsub/batch"
)

// ErrCrowded says that the outbox holds as many events as it may: nobody sequences them. Try again later.
var ErrCrowded = fmt.Errorf("outbox is full: %w", fault.ErrOverloaded)

// crowd is what is known of the number of rows in the outbox.
type crowd struct {
	looking sync.Mutex
	looked  time.Time // of whoever looks
	rows    atomic.Int64
}

// crowdEvery is how old what is known may be; crowdTimeout bounds a look.
const (
	crowdEvery   = 500 * time.Millisecond
	crowdTimeout = time.Second
)

// countOutbox estimates the rows: IDs have few gaps, and rows below the low-water mark are few.
const countOutbox = `SELECT coalesce((SELECT last_value FROM outbox_id_seq) - (SELECT id FROM outbox
	WHERE id > (SELECT floor FROM relay_cursor WHERE name = 'bus') ORDER BY id LIMIT 1) + 1, 0)`

// crowded reports whether the outbox is full. One of its callers looks, now and then; a database that does not answer
// leaves it as it was.
func (p *Publisher) crowded(ctx context.Context) bool {
	if p.cfg.MaxOutbox == 0 {
		return false
	}
	if p.crowd.looking.TryLock() {
		if time.Since(p.crowd.looked) > crowdEvery {
			ctx, cancel := context.WithTimeout(ctx, crowdTimeout)
			var rows int64
			if err := p.pool.QueryRow(ctx, countOutbox).Scan(&rows); err == nil {
				p.crowd.rows.Store(rows)
			}
			cancel()
			p.crowd.looked = time.Now()
		}
		p.crowd.looking.Unlock()
	}
	return p.crowd.rows.Load() >= p.cfg.MaxOutbox
}

// Crowd returns how many events the outbox held when events last came in, about, and whether that is as many as it may.
func (p *Publisher) Crowd(ctx context.Context) (rows int64, full bool) {
	rows = p.crowd.rows.Load()
	if p.cfg.MaxOutbox > 0 && rows >= p.cfg.MaxOutbox {
		full = p.crowded(ctx)
	}
	return p.crowd.rows.Load(), full
}

// room waits until the outbox is not full.
func (p *Publisher) room(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.batcher.ctx, cancel)()
	for p.crowded(ctx) {
		if !batch.Sleep(ctx, crowdEvery) {
			if p.batcher.ctx.Err() != nil {
				return ErrClosed
			}
			return ErrCrowded
		}
	}
	return nil
}
