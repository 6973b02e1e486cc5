package outbox

import (
	"context"
	"fmt"
)

// cursor is what relay_cursor says: how far the bus has acknowledged, and how far the events of the log are counted.
type cursor struct{ position, counted int64 }

// moveCursor moves the cursor and counts, per topic, the events that it passes. The counts are those of the log itself
// and move with the cursor or not at all; that counted is still where it was keeps two relays, of which one does not
// know yet that it has lost the lock, from counting the same events. The floor, which only spares readers work, goes along.
const moveCursor = `
UPDATE relay_cursor SET position = $2, counted = greatest(counted, $2), floor = $3, updated_at = now(),
	sensor_events = sensor_events + n.sensor, user_actions = user_actions + n.users,
	system_events = system_events + n.total - n.sensor - n.users
FROM (
	SELECT count(*) AS total, count(*) FILTER (WHERE event_type LIKE 'sensor.%') AS sensor,
		count(*) FILTER (WHERE event_type LIKE 'user.%') AS users
	FROM event_store WHERE position > $1 AND position <= $2
) AS n
WHERE name = 'bus' AND counted = $1 AND position <= $2`

// writeCursor saves how far the bus has acknowledged. It is called by one goroutine at a time.
func (s *Subscriber) writeCursor(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	for {
		known := s.saved
		s.saved = nil // until it is known again
		if known == nil {
			known = &cursor{}
			err := s.pool.QueryRow(ctx, `SELECT position, counted FROM relay_cursor WHERE name = 'bus'`).Scan(&known.position, &known.counted)
			if err != nil {
				return fmt.Errorf("read relay cursor: %w", err)
			}
		}
		to := max(s.published.Load(), known.position)
		if to == known.position && to <= known.counted {
			s.saved = known
			return nil
		}
		tag, err := s.pool.Exec(ctx, moveCursor, known.counted, to, s.floor.Load())
		if err != nil {
			return fmt.Errorf("save relay cursor: %w", err)
		}
		if tag.RowsAffected() == 1 {
			s.saved = &cursor{position: to, counted: max(known.counted, to)}
			return nil
		}
		// Another relay has moved it since we read it.
	}
}
