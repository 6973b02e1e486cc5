package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

func isNoRows(err error) bool { return errors.Is(err, pgx.ErrNoRows) }

// Replay hands a letter to its consumer again and marks it as replayed, in one transaction that holds the letter:
// whoever comes second, from whatever instance, waits and finds it replayed. Errors: [fault.ErrNotFound],
// [*deadletter.NotPendingError], and [*deadletter.RefusedError], after which the letter is pending as before, with what was wrong
// this time. Any other error has changed nothing, or its commit is unknown; trying again is safe.
func (l *Letters) Replay(ctx context.Context, id uuid.UUID, edit deadletter.Edit) (deadletter.Letter, error) {
	var letter deadletter.Letter
	var refusal error
	err := l.transaction(ctx, func(tx pgx.Tx) error {
		var err error
		if letter, err = l.pending(ctx, tx, id); err != nil {
			return err
		}
		refusal, err = l.attempt(ctx, tx, &letter, edit)
		return err
	})
	if err != nil {
		return deadletter.Letter{}, fmt.Errorf("replay dead letter: %w", err)
	}
	if refusal != nil {
		return letter, &deadletter.RefusedError{Err: refusal, Letter: letter}
	}
	return letter, nil
}

// transaction commits what f has done if it returns nil.
func (l *Letters) transaction(ctx context.Context, f func(tx pgx.Tx) error) error {
	var own error // errors that f returns are not those of the database alone
	err := pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		own = f(tx)
		return own
	})
	if own != nil {
		return own
	}
	if err != nil {
		return fault.Unavailable(err)
	}
	return nil
}

// pending locks a letter that is pending.
func (l *Letters) pending(ctx context.Context, tx pgx.Tx, id uuid.UUID) (deadletter.Letter, error) {
	letter, err := l.read(ctx, tx, id, "FOR UPDATE")
	if err != nil {
		return deadletter.Letter{}, err
	}
	switch letter.Status {
	case deadletter.Pending:
		return letter, nil
	case deadletter.Replayed:
		return letter, &deadletter.NotPendingError{ID: id, Status: letter.Status, At: *letter.ReplayedAt}
	default:
		return letter, &deadletter.NotPendingError{ID: id, Status: letter.Status, At: *letter.DiscardedAt}
	}
}

// attempt replays a letter that tx holds. A refusal of the consumer undoes what it did, and is noted in tx.
func (l *Letters) attempt(ctx context.Context, tx pgx.Tx, letter *deadletter.Letter, edit deadletter.Edit) (refusal, err error) {
	edited := *letter
	edited.EditedBytes, edited.EditedTopic = edit.Payload, edit.Topic
	var eventID uuid.UUID
	var note string
	inner := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { // a savepoint
		var err error
		eventID, note, err = l.consumers[letter.Consumer](ctx, tx, &edited)
		return err
	})
	switch {
	case inner == nil:
		return nil, l.markReplayed(ctx, tx, letter, &edited, eventID, note)
	case fault.IsPermanent(inner):
		return inner, l.markRefused(ctx, tx, letter, inner)
	case fault.Unstorable(inner):
		inner = fault.Permanent(fmt.Errorf("cannot be stored by the database: %s", messageOf(inner)))
		return inner, l.markRefused(ctx, tx, letter, inner)
	}
	return nil, fault.Unavailable(inner)
}

// messageOf is what the database says, without the statement or the connection that it was about.
func messageOf(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Message
	}
	return err.Error()
}

func (l *Letters) markReplayed(ctx context.Context, tx pgx.Tx, letter, edited *deadletter.Letter, eventID uuid.UUID, note string) error {
	err := tx.QueryRow(ctx, `UPDATE dlq SET status = 'replayed', replayed_at = now(), replay_payload = $2,
			replay_topic = nullif($3, ''), event_id = coalesce(event_id, $4), reason = nullif($5, '')
		WHERE dlq_id = $1 RETURNING replayed_at, event_id`,
		letter.ID, edited.EditedBytes, text(edited.EditedTopic), pgtype.UUID{Bytes: eventID, Valid: eventID != uuid.Nil}, text(note)).
		Scan(&letter.ReplayedAt, (*pgUUID)(&letter.EventID))
	if err != nil {
		return fmt.Errorf("mark dead letter as replayed: %w", fault.Unavailable(err))
	}
	letter.Status, letter.Reason = deadletter.Replayed, note
	letter.EditedBytes, letter.EditedTopic = edited.EditedBytes, edited.EditedTopic
	return nil
}

func (l *Letters) markRefused(ctx context.Context, tx pgx.Tx, letter *deadletter.Letter, why error) error {
	letter.Error = text(why.Error())
	err := tx.QueryRow(ctx, `UPDATE dlq SET retry_count = retry_count + 1, error_message = $2, retried_at = now()
		WHERE dlq_id = $1 RETURNING retry_count, retried_at`, letter.ID, letter.Error).Scan(&letter.RetryCount, &letter.RetriedAt)
	if err != nil {
		return fmt.Errorf("note that the replay was refused: %w", fault.Unavailable(err))
	}
	return nil
}

// pgUUID reads a column that may be NULL, which is the nil UUID.
type pgUUID uuid.UUID

// ScanUUID reads a UUID; see [pgtype.UUIDScanner].
func (u *pgUUID) ScanUUID(v pgtype.UUID) error {
	*u = pgUUID(v.Bytes)
	return nil
}

// Discard marks a letter as one that is not to be applied. Errors: [fault.ErrNotFound], [*deadletter.NotPendingError].
func (l *Letters) Discard(ctx context.Context, id uuid.UUID, reason string) (deadletter.Letter, error) {
	var letter deadletter.Letter
	err := l.transaction(ctx, func(tx pgx.Tx) error {
		var err error
		if letter, err = l.pending(ctx, tx, id); err != nil {
			return err
		}
		err = tx.QueryRow(ctx, `UPDATE dlq SET status = 'discarded', discarded_at = now(), reason = nullif($2, '')
			WHERE dlq_id = $1 RETURNING discarded_at`, id, text(reason)).Scan(&letter.DiscardedAt)
		if err != nil {
			return fault.Unavailable(err)
		}
		letter.Status, letter.Reason = deadletter.Discarded, text(reason)
		return nil
	})
	if err != nil {
		return deadletter.Letter{}, fmt.Errorf("discard dead letter: %w", err)
	}
	return letter, nil
}

// isGone tells that a letter is not to be replayed any more.
func isGone(err error) bool {
	var not *deadletter.NotPendingError
	return errors.As(err, &not) || errors.Is(err, fault.ErrNotFound)
}
