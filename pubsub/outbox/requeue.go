package outbox

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/cornjacket/platform-services/event"
)

// Insert puts an event in the outbox within the caller's transaction, as [Publisher] does, and wakes the relay when
// that commits. It is for the few events that come another way than through a door.
func Insert(ctx context.Context, tx pgx.Tx, e *event.Envelope) error {
	// The ID is no publisher's, so that every relay takes the notification for one from elsewhere.
	return insert(ctx, tx, "replay", []event.Envelope{*e})
}

// takeBack takes an event out of the log, and out of the counts of the ledger if the cursor has passed it.
const takeBack = `
WITH gone AS (
	DELETE FROM event_store WHERE event_id = $1 AND position = $2 RETURNING event_type, position
)
UPDATE relay_cursor SET
	sensor_events = sensor_events - (gone.event_type LIKE 'sensor.%')::int,
	user_actions = user_actions - (gone.event_type LIKE 'user.%')::int,
	system_events = system_events - (gone.event_type NOT LIKE 'sensor.%' AND gone.event_type NOT LIKE 'user.%')::int
FROM gone WHERE name = 'bus' AND counted >= gone.position`

// Requeue is Insert for an event that may be in the log already, at a position that was never published: consumers that
// have seen newer events of its aggregate would take it for one that they have applied, so it gets a new position. A
// position of zero says that it is not in the log. What is there under its ID at another position stays, and wins.
func Requeue(ctx context.Context, tx pgx.Tx, e *event.Envelope, position int64) error {
	if position > 0 {
		if _, err := tx.Exec(ctx, takeBack, e.ID, position); err != nil {
			return fmt.Errorf("take event %s from position %d of the log: %w", e.ID, position, err)
		}
	}
	again := *e
	again.Metadata.Position = 0
	return Insert(ctx, tx, &again)
}
