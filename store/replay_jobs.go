package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

const (
	// lease is how long a bulk replay is its runner's after each sign of life.
	lease = "10 seconds"
	// keepReplays is how long finished bulk replays can be asked for.
	keepReplays = "30 days"
)

// ErrLost says that a bulk replay is another runner's by now, or has been cancelled.
var ErrLost = errors.New("bulk replay is not this runner's any more")

// StartReplay freezes the pending letters that match a filter as the set of a new bulk replay. A letter that waits in
// another one is left to that.
func (l *Letters) StartReplay(ctx context.Context, id uuid.UUID, f deadletter.Filter, rate float64) (deadletter.Replay, error) {
	f.Status, f.Limit = deadletter.Pending, 0
	filter, err := json.Marshal(storedFilterOf(&f))
	if err != nil {
		return deadletter.Replay{}, fmt.Errorf("encode filter: %w", err)
	}
	err = l.transaction(ctx, func(tx pgx.Tx) error {
		// Of a million letters it takes longer than other statements of this pool may.
		if _, err := tx.Exec(ctx, `SET LOCAL statement_timeout = '50s'`); err != nil {
			return fault.Unavailable(err)
		}
		if _, err := tx.Exec(ctx, `DELETE FROM dlq_replays WHERE service = $1 AND finished_at < now() - $2::text::interval`, l.service, keepReplays); err != nil {
			return fault.Unavailable(err)
		}
		if _, err := tx.Exec(ctx, `INSERT INTO dlq_replays (replay_id, service, filter, rate, total) VALUES ($1, $2, $3, $4, 0)`,
			id, l.service, filter, rate); err != nil {
			return fault.Unavailable(err)
		}
		// In the order of their sources, so that the letters of one aggregate have theirs.
		where := matching(&f)
		where.add("d.consumer = ANY (?)", l.of(&f))
		tag, err := tx.Exec(ctx, fmt.Sprintf(`INSERT INTO dlq_replay_items (dlq_id, replay_id, seq)
			SELECT d.dlq_id, $%d::uuid, row_number() OVER (ORDER BY d.consumer, d.source_topic, d.source_partition, d.source_offset, d.failed_at, d.dlq_id)
			FROM dlq d WHERE %s ORDER BY d.dlq_id ON CONFLICT DO NOTHING`, len(where.args)+1, where), append(where.args, id)...)
		if err != nil && !fault.Unmatchable(err) {
			return fault.Unavailable(err)
		}
		if err != nil {
			return fault.Permanent(fmt.Errorf("filter has what no letter can hold: %s", messageOf(err)))
		}
		n := tag.RowsAffected()
		_, err = tx.Exec(ctx, `UPDATE dlq_replays SET total = $2::bigint, finished_at = CASE WHEN $2::bigint = 0 THEN now() END WHERE replay_id = $1`, id, n)
		if err != nil {
			return fault.Unavailable(err)
		}
		return nil
	})
	if err != nil {
		return deadletter.Replay{}, fmt.Errorf("start bulk replay: %w", err)
	}
	return l.BulkReplay(ctx, id)
}

// storedFilter is a filter as it is kept with a bulk replay.
type storedFilter struct {
	Consumer  string     `json:"consumer,omitempty"`
	EventID   *uuid.UUID `json:"event_id,omitempty"`
	EventType string     `json:"event_type,omitempty"`
	Topic     string     `json:"topic,omitempty"`
	Error     string     `json:"error,omitempty"`
	From      time.Time  `json:"from,omitzero"`
	To        time.Time  `json:"to,omitzero"`
}

func storedFilterOf(f *deadletter.Filter) storedFilter {
	s := storedFilter{Consumer: f.Consumer, EventType: f.EventType, Topic: f.Topic, Error: f.Error, From: f.From, To: f.To}
	if f.EventID != uuid.Nil {
		s.EventID = &f.EventID
	}
	return s
}

func (s *storedFilter) filter() deadletter.Filter {
	f := deadletter.Filter{
		Status: deadletter.Pending, Consumer: s.Consumer, EventType: s.EventType, Topic: s.Topic, Error: s.Error, From: s.From, To: s.To,
	}
	if s.EventID != nil {
		f.EventID = *s.EventID
	}
	return f
}

const replayColumns = `replay_id, filter, rate, total, replayed, failed, skipped, coalesce(last_error, ''), created_at, finished_at,
	CASE WHEN cancelled THEN 'cancelled' WHEN finished_at IS NOT NULL THEN 'done' WHEN lease_until IS NULL THEN 'queued'
		WHEN lease_until < clock_timestamp() THEN 'interrupted' ELSE 'running' END`

func scanReplay(row pgx.CollectableRow) (deadletter.Replay, error) {
	var r deadletter.Replay
	var filter []byte
	err := row.Scan((*[16]byte)(&r.ID), &filter, &r.Rate, &r.Total, &r.Replayed, &r.Failed, &r.Skipped, &r.LastError, &r.CreatedAt, &r.FinishedAt, &r.Status)
	if err != nil {
		return r, err
	}
	var s storedFilter
	if err := json.Unmarshal(filter, &s); err != nil {
		return r, fmt.Errorf("read filter of bulk replay %s: %w", r.ID, err)
	}
	r.Filter = s.filter()
	return r, nil
}

// BulkReplay returns one bulk replay, or [fault.ErrNotFound].
func (l *Letters) BulkReplay(ctx context.Context, id uuid.UUID) (deadletter.Replay, error) {
	return l.oneReplay(ctx, `SELECT `+replayColumns+` FROM dlq_replays WHERE replay_id = $1 AND service = $2`, id, l.service)
}

func (l *Letters) oneReplay(ctx context.Context, query string, args ...any) (deadletter.Replay, error) {
	rows, err := l.pool.Query(ctx, query, args...)
	if err != nil {
		return deadletter.Replay{}, fmt.Errorf("read bulk replay: %w", fault.Unavailable(err))
	}
	r, err := pgx.CollectExactlyOneRow(rows, scanReplay)
	if isNoRows(err) {
		return deadletter.Replay{}, fault.ErrNotFound
	}
	if err != nil {
		return deadletter.Replay{}, fmt.Errorf("read bulk replay: %w", fault.Unavailable(err))
	}
	return r, nil
}

// BulkReplays returns the newest bulk replays of the service.
func (l *Letters) BulkReplays(ctx context.Context, limit int) ([]deadletter.Replay, error) {
	rows, err := l.pool.Query(ctx, `SELECT `+replayColumns+` FROM dlq_replays WHERE service = $1 ORDER BY created_at DESC, replay_id DESC LIMIT $2`, l.service, limit)
	if err != nil {
		return nil, fmt.Errorf("list bulk replays: %w", fault.Unavailable(err))
	}
	list, err := pgx.CollectRows(rows, scanReplay)
	if err != nil {
		return nil, fmt.Errorf("list bulk replays: %w", fault.Unavailable(err))
	}
	return list, nil
}

// CancelReplay ends a bulk replay; letters that have not had their turn stay pending. One that has ended stays as it is.
func (l *Letters) CancelReplay(ctx context.Context, id uuid.UUID) (deadletter.Replay, error) {
	err := l.transaction(ctx, func(tx pgx.Tx) error {
		// Items before the replay itself, as ReplayItem does.
		if _, err := tx.Exec(ctx, `DELETE FROM dlq_replay_items i USING dlq_replays r
			WHERE i.replay_id = $1 AND r.replay_id = $1 AND r.service = $2`, id, l.service); err != nil {
			return fault.Unavailable(err)
		}
		_, err := tx.Exec(ctx, `UPDATE dlq_replays SET cancelled = true, finished_at = now(), lease_until = NULL
			WHERE replay_id = $1 AND service = $2 AND finished_at IS NULL`, id, l.service)
		if err != nil {
			return fault.Unavailable(err)
		}
		return nil
	})
	if err != nil {
		return deadletter.Replay{}, fmt.Errorf("cancel bulk replay: %w", err)
	}
	return l.BulkReplay(ctx, id)
}

// ClaimReplay makes the oldest bulk replay that nobody runs the runner's, or returns [fault.ErrNotFound].
func (l *Letters) ClaimReplay(ctx context.Context, runner uuid.UUID) (deadletter.Replay, error) {
	return l.oneReplay(ctx, `UPDATE dlq_replays SET runner = $2, lease_until = clock_timestamp() + $3::text::interval
		WHERE replay_id = (
			SELECT replay_id FROM dlq_replays
			WHERE service = $1 AND finished_at IS NULL AND (lease_until IS NULL OR lease_until < clock_timestamp())
			ORDER BY created_at LIMIT 1 FOR UPDATE SKIP LOCKED
		) RETURNING `+replayColumns, l.service, runner, lease)
}

// HoldReplay renews the lease of a runner, or ends it, so that another one can go on at once; or returns [ErrLost].
func (l *Letters) HoldReplay(ctx context.Context, id, runner uuid.UUID, keep bool) error {
	return l.ofRunner(ctx, `UPDATE dlq_replays SET lease_until = clock_timestamp() + CASE WHEN $4 THEN $3::text::interval ELSE '0' END
		WHERE replay_id = $1 AND runner = $2 AND finished_at IS NULL`, id, runner, lease, keep)
}

func (l *Letters) ofRunner(ctx context.Context, query string, args ...any) error {
	tag, err := l.pool.Exec(ctx, query, args...)
	if err != nil {
		return fmt.Errorf("write bulk replay: %w", fault.Unavailable(err))
	}
	if tag.RowsAffected() == 0 {
		return ErrLost
	}
	return nil
}

// RunReplay replays the next letter of a bulk replay and counts it, in one transaction, or ends the bulk replay if there
// is none. [ErrLost] says to stop; any other error has changed nothing, or its commit is unknown: try again.
func (l *Letters) RunReplay(ctx context.Context, id, runner uuid.UUID) (done bool, err error) {
	err = l.transaction(ctx, func(tx pgx.Tx) error {
		var next uuid.UUID
		// Letters have their turns by seq, from 1, so those before the number of turns are gone. Without that the search
		// would walk over all of them as long as some old transaction keeps vacuum away.
		err := tx.QueryRow(ctx, `DELETE FROM dlq_replay_items WHERE dlq_id = (
				SELECT dlq_id FROM dlq_replay_items
				WHERE replay_id = $1 AND seq > (SELECT replayed + failed + skipped FROM dlq_replays WHERE replay_id = $1)
				ORDER BY seq LIMIT 1 FOR UPDATE
			) RETURNING dlq_id`, id).Scan((*[16]byte)(&next))
		if isNoRows(err) {
			// Also when the row that we have waited for is gone: an earlier step, given up by us, was committed after all.
			if err := tx.QueryRow(ctx, `SELECT NOT EXISTS (SELECT FROM dlq_replay_items WHERE replay_id = $1)`, id).Scan(&done); err != nil {
				return fault.Unavailable(err)
			}
			if done {
				return l.count(ctx, tx, id, runner, `finished_at = now()`, nil)
			}
			return nil
		}
		if err != nil {
			return fault.Unavailable(err)
		}
		column, lastError, err := l.replayItem(ctx, tx, next)
		if err != nil {
			return fmt.Errorf("letter %s: %w", next, err)
		}
		return l.count(ctx, tx, id, runner, column+` = `+column+` + 1`, lastError)
	})
	if err != nil {
		return false, fmt.Errorf("run bulk replay: %w", err)
	}
	return done, nil
}

func (l *Letters) count(ctx context.Context, tx pgx.Tx, id, runner uuid.UUID, change string, lastError *string) error {
	tag, err := tx.Exec(ctx, `UPDATE dlq_replays SET `+change+`, last_error = coalesce($3, last_error),
		lease_until = clock_timestamp() + $4::text::interval
		WHERE replay_id = $1 AND runner = $2 AND finished_at IS NULL`, id, runner, lastError, lease)
	if err != nil {
		return fault.Unavailable(err)
	}
	if tag.RowsAffected() == 0 {
		return ErrLost
	}
	return nil
}

// replayItem returns the column of a bulk replay that counts what has become of a letter.
func (l *Letters) replayItem(ctx context.Context, tx pgx.Tx, id uuid.UUID) (column string, lastError *string, err error) {
	letter, err := l.pending(ctx, tx, id)
	if isGone(err) {
		return "skipped", nil, nil
	}
	if err != nil {
		return "", nil, err
	}
	refusal, err := l.attempt(ctx, tx, &letter, deadletter.Edit{})
	switch {
	case err != nil:
		return "", nil, err
	case refusal != nil:
		return "failed", &letter.Error, nil
	}
	return "replayed", nil, nil
}
