package deadletter

import (
	"context"
	"errors"
	"fmt"

	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Replay hands a letter to its consumer again and marks it as replayed, in one transaction that holds the letter:
// a second caller, of any instance, waits and finds it replayed. Errors: [fault.ErrNotFound],
// [*NotPendingError], and [*RefusedError], after which the letter is pending as before, with what was wrong
// this time. Any other error has changed nothing, or its commit is unknown; trying again is safe.
func (s *Store) Replay(ctx context.Context, id uuid.UUID, edit Edit) (Letter, error) {
	var letter Letter
	var refusal error
	err := s.transaction(ctx, func(tx pgx.Tx) error {
		var err error
		if letter, err = s.pending(ctx, tx, id); err != nil {
			return err
		}
		refusal, err = s.attempt(ctx, tx, &letter, edit)
		return err
	})
	if err != nil {
		return Letter{}, fmt.Errorf("replay dead letter: %w", err)
	}
	if refusal != nil {
		return letter, &RefusedError{Err: refusal, Letter: letter}
	}
	return letter, nil
}

// transaction commits what f has done if it returns nil.
func (s *Store) transaction(ctx context.Context, f func(tx pgx.Tx) error) error {
	var own error // errors that f returns are not those of the database alone
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
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
func (s *Store) pending(ctx context.Context, tx pgx.Tx, id uuid.UUID) (Letter, error) {
	letter, err := s.read(ctx, tx, id, "FOR UPDATE")
	if err != nil {
		return Letter{}, err
	}
	switch letter.Status {
	case Pending:
		return letter, nil
	case Replayed:
		return letter, &NotPendingError{ID: id, Status: letter.Status, At: *letter.ReplayedAt}
	default:
		return letter, &NotPendingError{ID: id, Status: letter.Status, At: *letter.DiscardedAt}
	}
}

// attempt replays a letter that tx holds. A refusal of the consumer undoes what it did, and is noted in tx.
func (s *Store) attempt(ctx context.Context, tx pgx.Tx, letter *Letter, edit Edit) (refusal, err error) {
	edited := *letter
	edited.EditedBytes, edited.EditedTopic = edit.Payload, edit.Topic
	var eventID uuid.UUID
	var note string
	inner := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { // a savepoint
		var err error
		eventID, note, err = s.consumers[letter.Consumer](ctx, tx, &edited)
		return err
	})
	switch {
	case inner == nil:
		return nil, s.markReplayed(ctx, tx, letter, &edited, eventID, note)
	case fault.IsPermanent(inner):
		return inner, s.markRefused(ctx, tx, letter, inner)
	case fault.Unstorable(inner):
		inner = fault.Permanent(fmt.Errorf("cannot be stored by the database: %s", messageOf(inner)))
		return inner, s.markRefused(ctx, tx, letter, inner)
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

func (s *Store) markReplayed(ctx context.Context, tx pgx.Tx, letter, edited *Letter, eventID uuid.UUID, note string) error {
	err := tx.QueryRow(ctx, `UPDATE dlq SET status = 'replayed', replayed_at = now(), replay_payload = $2,
			replay_topic = nullif($3, ''), event_id = coalesce(event_id, $4), reason = nullif($5, ''), decided_by = nullif($6, '')
		WHERE dlq_id = $1 RETURNING replayed_at`,
		letter.ID, edited.EditedBytes, text(edited.EditedTopic), nullable(eventID), text(note), operator(ctx)).Scan(&letter.ReplayedAt)
	if err != nil {
		return fmt.Errorf("mark dead letter as replayed: %w", fault.Unavailable(err))
	}
	if letter.EventID == uuid.Nil {
		letter.EventID = eventID
	}
	letter.Status, letter.Reason, letter.DecidedBy = Replayed, text(note), operator(ctx)
	letter.EditedBytes, letter.EditedTopic = edited.EditedBytes, edited.EditedTopic
	return nil
}

func (s *Store) markRefused(ctx context.Context, tx pgx.Tx, letter *Letter, why error) error {
	letter.Error = text(why.Error())
	err := tx.QueryRow(ctx, `UPDATE dlq SET retry_count = retry_count + 1, error_message = $2, retried_at = now()
		WHERE dlq_id = $1 RETURNING retry_count, retried_at`, letter.ID, letter.Error).Scan(&letter.RetryCount, &letter.RetriedAt)
	if err != nil {
		return fmt.Errorf("note that the replay was refused: %w", fault.Unavailable(err))
	}
	return nil
}

// Discard marks a letter as one that is not to be applied. Errors: [fault.ErrNotFound], [*NotPendingError].
func (s *Store) Discard(ctx context.Context, id uuid.UUID, reason string) (Letter, error) {
	var letter Letter
	err := s.transaction(ctx, func(tx pgx.Tx) error {
		var err error
		if letter, err = s.pending(ctx, tx, id); err != nil {
			return err
		}
		err = tx.QueryRow(ctx, `UPDATE dlq SET status = 'discarded', discarded_at = now(), reason = nullif($2, ''), decided_by = nullif($3, '')
			WHERE dlq_id = $1 RETURNING discarded_at`, id, text(reason), operator(ctx)).Scan(&letter.DiscardedAt)
		if err != nil {
			return fault.Unavailable(err)
		}
		letter.Status, letter.Reason, letter.DecidedBy = Discarded, text(reason), operator(ctx)
		return nil
	})
	if err != nil {
		return Letter{}, fmt.Errorf("discard dead letter: %w", err)
	}
	return letter, nil
}

// ReplayedBefore returns the letter through whose replay a consumer has applied an event, the nil UUID without one. An
// event can be several letters: the bus may bring it again after a crash. Until tx ends, replays of the same event wait.
func ReplayedBefore(ctx context.Context, tx pgx.Tx, consumer string, eventID, letter uuid.UUID) (uuid.UUID, error) {
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtextextended($1, 0))`, consumer+" "+eventID.String()); err != nil {
		return uuid.Nil, fmt.Errorf("lock event %s: %w", eventID, err)
	}
	var other uuid.UUID
	err := tx.QueryRow(ctx, `SELECT dlq_id FROM dlq WHERE consumer = $1 AND event_id = $2 AND dlq_id <> $3 AND status = 'replayed' LIMIT 1`,
		consumer, eventID, letter).Scan((*[16]byte)(&other))
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return uuid.Nil, fmt.Errorf("look for other letters of event %s: %w", eventID, err)
	}
	return other, nil
}
