package routers

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/store"
)

// ReplayConsumer applies a dead letter of a consumer within tx: the same Read and Apply, with one item. fresh returns the
// consumer, anew for each attempt. An event that another letter has applied is not applied again, which the note says.
func ReplayConsumer[T any](fresh func() Consumer[T]) deadletter.Apply {
	return func(ctx context.Context, tx pgx.Tx, l *deadletter.Letter) (eventID uuid.UUID, note string, err error) {
		name := fresh().Name
		e, err := eventOf(l)
		if err != nil {
			return uuid.Nil, "", err
		}
		other, err := deadletter.ReplayedBefore(ctx, tx, name, e.ID, l.ID)
		if err != nil {
			return uuid.Nil, "", err
		}
		if other != uuid.Nil {
			return e.ID, fmt.Sprintf("the event was applied by the replay of dead letter %s", other), nil
		}
		for range conflicts { // with whoever applies newer events
			err = pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return applyOne(ctx, tx, fresh(), l, e) })
			if !errors.Is(err, store.ErrConflict) {
				break
			}
		}
		if err != nil {
			return e.ID, "", err
		}
		if l.Position > 0 { // an event of the log
			return e.ID, "", store.Replayed(ctx, tx, name, event.Topic(e.Type))
		}
		return e.ID, "", nil
	}
}

func applyOne[T any](ctx context.Context, tx pgx.Tx, c Consumer[T], l *deadletter.Letter, e *event.Envelope) (err error) {
	item, err := c.Read(e)
	if errors.Is(err, ErrNotConcerned) {
		return nil
	}
	if err != nil {
		return fault.Permanent(err)
	}
	if c.Begin != nil {
		if err := c.Begin(ctx, tx); err != nil {
			return err
		}
	}
	if c.Replay != nil {
		if item, err = c.Replay(ctx, tx, l, item); err != nil {
			return err
		}
	}
	return recovered(func() error { return c.Apply(ctx, tx, []T{item}) })
}

// eventOf returns the event of a dead letter. Its position is what its record said, whatever an edit says: one that is not
// the event's own would be taken for that of another.
func eventOf(l *deadletter.Letter) (*event.Envelope, error) {
	e, err := event.Unmarshal(l.Bytes())
	if err != nil {
		return nil, fmt.Errorf("read event: %w", err)
	}
	if l.EditedBytes != nil {
		if err := sameEvent(l, &e); err != nil {
			return nil, err
		}
		e.Metadata.Position = l.Position
		if original, err := event.Unmarshal(l.Payload); err == nil {
			e.Metadata.Position = cmp.Or(l.Position, original.Metadata.Position)
		}
	}
	if e.Metadata.Position <= 0 && l.EditedBytes == nil {
		return nil, errNotLogged
	}
	return &e, nil
}
