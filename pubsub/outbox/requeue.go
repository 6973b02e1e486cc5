package outbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/cornjacket/platform-services/event"
)

// Insert puts an event in the outbox within the caller's transaction, as [Publisher] does, and wakes the relay when
// that commits. It is for the few events that come another way than through a door.
func Insert(ctx context.Context, tx pgx.Tx, e *event.Envelope) error {
	// The ID is no publisher's, so that every relay takes the notification for one from elsewhere.
	return insert(ctx, tx, "replay", []event.Envelope{*e})
}

// Requeue is Insert for an event that may be in the log already, at a position that was never published: consumers that
// have seen newer events of its aggregate would take it for one that they have applied, so it gets a new position. A
// position of zero says that it is not in the log. What is there under its ID at another position stays, and wins.
func Requeue(ctx context.Context, tx pgx.Tx, e *event.Envelope, position int64) error {
	if position > 0 {
		if err := takeBack(ctx, tx, e.ID, position); err != nil {
			return fmt.Errorf("take event %s from position %d of the log: %w", e.ID, position, err)
		}
	}
	again := *e
	again.Metadata.Position = 0
	return Insert(ctx, tx, &again)
}

// takeBack takes an event out of the log, and out of the counts of the ledger if the cursor has passed it.
func takeBack(ctx context.Context, tx pgx.Tx, id uuid.UUID, position int64) error {
	var counted int64
	if err := tx.QueryRow(ctx, lockCursor).Scan(&counted); err != nil {
		return err
	}
	var eventType string
	err := tx.QueryRow(ctx, `DELETE FROM event_store WHERE event_id = $1 AND position = $2 RETURNING event_type`, id, position).Scan(&eventType)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil || position > counted {
		return err
	}
	_, err = tx.Exec(ctx, `UPDATE relay_counts SET events = events - 1 WHERE topic = $1`, event.Topic(eventType))
	return err
}
