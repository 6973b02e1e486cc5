package outbox

import (
	"context"
	"fmt"
	"time"
)

// Lag is how far the relay is behind.
type Lag struct {
	Outbox  int64 // events that wait for their position
	AtLeast bool  // there are more in the outbox than were counted
	Log     int64 // events in the log that the bus has not acknowledged
	Oldest  time.Time
}

// mostCounted bounds what a look at the outbox costs while the bus is away for long.
const mostCounted = 50_000

// Lag returns how far the relay is behind; Oldest is when the oldest of these events was taken in, zero if there are
// none. It is the active relay that knows. With nothing to do it does not ask the database.
func (s *Subscriber) Lag(ctx context.Context) (Lag, error) {
	if s.drained.Load() && s.published.Load() == s.State().Sequenced {
		return Lag{}, nil
	}
	var l Lag
	var waiting, unpublished *time.Time
	err := s.pool.QueryRow(ctx, `SELECT (SELECT count(*) FROM (SELECT FROM outbox WHERE id > $3 ORDER BY id LIMIT $2) AS first),
		(SELECT ingested_at FROM outbox WHERE id > $3 ORDER BY id LIMIT 1),
		(SELECT count(*) FROM (SELECT FROM event_store WHERE position > $1 ORDER BY position LIMIT $2) AS first),
		(SELECT ingested_at FROM event_store WHERE position > $1 ORDER BY position LIMIT 1)`, s.published.Load(), mostCounted, s.floor.Load()).
		Scan(&l.Outbox, &waiting, &l.Log, &unpublished)
	if err != nil {
		return Lag{}, fmt.Errorf("look for events that wait: %w", err)
	}
	l.AtLeast = l.Outbox == mostCounted || l.Log == mostCounted
	for _, t := range []*time.Time{waiting, unpublished} {
		if t != nil && (l.Oldest.IsZero() || t.Before(l.Oldest)) {
			l.Oldest = t.UTC()
		}
	}
	return l, nil
}
