package outbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/cornjacket/platform-services/event"
)

// cursor is what relay_cursor says: how far the bus has acknowledged, and how far the events of the log are counted.
type cursor struct{ position, counted int64 }

// lockCursor makes whoever moves the cursor or takes an event back out of the log wait for the other.
const lockCursor = `SELECT counted FROM relay_cursor WHERE name = 'bus' FOR UPDATE`

// moveCursor moves the cursor and counts, per topic, the events that it passes. The counts are those of the log itself
// and move with the cursor or not at all; that counted is still where it was keeps two relays, of which one does not
// know yet that it has lost the lock, from counting the same events. That one can't move the cursor either: the term is another. The floor, which only spares readers work, goes along.
const moveCursor = `
WITH moved AS (
	UPDATE relay_cursor SET position = $2, counted = greatest(counted, $2), floor = $3, updated_at = now()
	WHERE name = 'bus' AND counted = $1 AND position <= $2 AND term = $7
	RETURNING 1
), counts AS (
	INSERT INTO relay_counts (topic, events)
	SELECT coalesce(r.topic, $6), sum(n.events)
	FROM (
		SELECT event_type, count(*) AS events FROM event_store WHERE position > $1 AND position <= $2 GROUP BY 1
	) AS n LEFT JOIN unnest($4::text[], $5::text[]) AS r (prefix, topic) ON starts_with(n.event_type, r.prefix)
	WHERE EXISTS (SELECT FROM moved)
	GROUP BY 1
	ON CONFLICT (topic) DO UPDATE SET events = relay_counts.events + excluded.events
)
SELECT FROM moved`

// writeCursor saves how far the bus has acknowledged. It is called by one goroutine at a time.
func (s *Subscriber) writeCursor(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	for {
		known := s.saved
		s.saved = nil // until it is known again
		if known == nil {
			known = &cursor{}
			var term int64
			err := s.pool.QueryRow(ctx, `SELECT position, counted, term FROM relay_cursor WHERE name = 'bus'`).Scan(&known.position, &known.counted, &term)
			if err != nil {
				return fmt.Errorf("read relay cursor: %w", err)
			}
			if term != s.term { // another relay leads, and publishes again what we could not note
				return nil
			}
		}
		to := max(s.published.Load(), known.position)
		if to == known.position && to <= known.counted {
			s.saved = known
			return nil
		}
		moved, err := s.moveCursor(ctx, known, to)
		if err != nil {
			return fmt.Errorf("save relay cursor: %w", err)
		}
		if moved {
			s.saved = &cursor{position: to, counted: max(known.counted, to)}
			return nil
		}
		// Another relay has moved it since we read it.
	}
}

// moveCursor reports whether the cursor was where it is known to be, and is moved. Both statements are one transaction
// that travels in one piece: a relay that freezes can't hold the lock.
func (s *Subscriber) moveCursor(ctx context.Context, from *cursor, to int64) (moved bool, err error) {
	prefixes, topics := routes()
	var b pgx.Batch
	b.Queue(lockCursor)
	b.Queue(moveCursor, from.counted, to, s.floor.Load(), prefixes, topics, event.TopicSystem, s.term).QueryRow(func(row pgx.Row) error {
		err := row.Scan()
		moved = err == nil
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		return err
	})
	err = s.pool.SendBatch(ctx, &b).Close()
	return moved, err
}

// routes returns the prefixes of event types and the topics that they travel on.
func routes() (prefixes, topics []string) {
	for _, r := range event.Routes() {
		prefixes, topics = append(prefixes, r.Prefix), append(topics, r.Topic)
	}
	return prefixes, topics
}
