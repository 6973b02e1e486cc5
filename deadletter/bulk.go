package deadletter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/cornjacket/platform-services/internal/fault"
)

const (
	// keepReplays is how long finished bulk replays can be asked for.
	keepReplays = 30 * 24 * time.Hour
	// freezeTimeout is how long it may take to freeze a set: of a million letters longer than other statements may.
	freezeTimeout = 50 * time.Second
	turnTimeout   = 10 * time.Second
	// pollReplays is how often to look for bulk replays that another instance has begun, or left.
	pollReplays = 5 * time.Second
)

// StartReplay freezes the pending letters that match a filter as the set of a new bulk replay, which [Store.RunReplays]
// of any instance then works on, with at most rate letters a second. A letter that waits in another one is left to that.
func (s *Store) StartReplay(ctx context.Context, f Filter, rate float64) (Replay, error) {
	f.Status, f.Limit = Pending, 0
	filter, err := json.Marshal(storedFilterOf(&f))
	if err != nil {
		return Replay{}, fmt.Errorf("encode filter: %w", err)
	}
	var id uuid.UUID
	err = s.transaction(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT set_config('statement_timeout', $1, true)`, fmt.Sprint(freezeTimeout.Milliseconds())); err != nil {
			return fault.Unavailable(err)
		}
		if _, err := tx.Exec(ctx, `DELETE FROM dlq_replays WHERE service = $1 AND finished_at < now() - $2::interval`, s.service, keepReplays); err != nil {
			return fault.Unavailable(err)
		}
		err := tx.QueryRow(ctx, `INSERT INTO dlq_replays (replay_id, service, filter, rate, total, asked_by)
			VALUES (gen_random_uuid(), $1, $2, $3, 0, nullif($4, '')) RETURNING replay_id`, s.service, filter, rate, operator(ctx)).Scan((*[16]byte)(&id))
		if err != nil {
			return fault.Unavailable(err)
		}
		total, err := s.freeze(ctx, tx, id, &f)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE dlq_replays SET total = $2::bigint, finished_at = CASE WHEN $2::bigint = 0 THEN now() END
			WHERE replay_id = $1`, id, total); err != nil {
			return fault.Unavailable(err)
		}
		return nil
	})
	if err != nil {
		return Replay{}, fmt.Errorf("start bulk replay: %w", err)
	}
	select {
	case s.started <- struct{}{}:
	default:
	}
	return s.BulkReplay(ctx, id)
}

// freeze writes the set of a bulk replay, in the order of the letters' sources, so that those of one aggregate have theirs.
func (s *Store) freeze(ctx context.Context, tx pgx.Tx, id uuid.UUID, f *Filter) (total int64, err error) {
	where := matching(f)
	where.add("d.consumer = ANY (?)", s.of(f))
	tag, err := tx.Exec(ctx, fmt.Sprintf(`INSERT INTO dlq_replay_letters (dlq_id, replay_id, turn)
		SELECT d.dlq_id, $%d::uuid, row_number() OVER (ORDER BY d.consumer, d.source_topic, d.source_partition, d.source_offset, d.failed_at, d.dlq_id)
		FROM dlq d WHERE %s ORDER BY d.dlq_id ON CONFLICT DO NOTHING`, len(where.args)+1, where), append(where.args, id)...)
	switch {
	case err == nil:
		return tag.RowsAffected(), nil
	case fault.Unmatchable(err):
		return 0, fault.Permanent(fmt.Errorf("filter has what no letter can hold: %s", messageOf(err)))
	}
	return 0, fault.Unavailable(err)
}

// storedFilter is a filter as it is kept with a bulk replay, in JSON.
type storedFilter struct {
	Consumer  string    `json:"consumer,omitempty"`
	EventID   uuid.UUID `json:"event_id,omitzero"`
	EventType string    `json:"event_type,omitempty"`
	Topic     string    `json:"topic,omitempty"`
	Error     string    `json:"error,omitempty"`
	From      time.Time `json:"from,omitzero"`
	To        time.Time `json:"to,omitzero"`
}

func storedFilterOf(f *Filter) storedFilter {
	return storedFilter{
		Consumer: f.Consumer, EventID: f.EventID, EventType: text(f.EventType), Topic: text(f.Topic), Error: text(f.Error), From: f.From, To: f.To,
	}
}

// replayColumns are those of a [Replay]. One whose next turn is long overdue is interrupted.
const replayColumns = `replay_id, filter, rate, total, replayed, failed, skipped, coalesce(last_error, ''), coalesce(asked_by, ''), created_at, finished_at,
	CASE WHEN cancelled THEN 'cancelled' WHEN finished_at IS NOT NULL THEN 'done' WHEN replayed + failed + skipped = 0 THEN 'queued'
		WHEN next_at < clock_timestamp() - interval '10 seconds' THEN 'interrupted' ELSE 'running' END`

func scanReplay(row pgx.CollectableRow) (Replay, error) {
	var r Replay
	var f storedFilter
	err := row.Scan((*[16]byte)(&r.ID), &f, &r.Rate, &r.Total, &r.Replayed, &r.Failed, &r.Skipped, &r.LastError, &r.AskedBy, &r.CreatedAt, &r.FinishedAt, &r.Status)
	r.Filter = Filter{
		Status: Pending, Consumer: f.Consumer, EventID: f.EventID, EventType: f.EventType, Topic: f.Topic, Error: f.Error, From: f.From, To: f.To,
	}
	return r, err
}

// BulkReplay returns one bulk replay, or [fault.ErrNotFound].
func (s *Store) BulkReplay(ctx context.Context, id uuid.UUID) (Replay, error) {
	list, err := s.replays(ctx, `SELECT `+replayColumns+` FROM dlq_replays WHERE replay_id = $1 AND service = $2`, id, s.service)
	if err != nil {
		return Replay{}, fmt.Errorf("read bulk replay: %w", err)
	}
	if len(list) == 0 {
		return Replay{}, fault.ErrNotFound
	}
	return list[0], nil
}

// BulkReplays returns the newest bulk replays of the service.
func (s *Store) BulkReplays(ctx context.Context, limit int) ([]Replay, error) {
	list, err := s.replays(ctx, `SELECT `+replayColumns+` FROM dlq_replays WHERE service = $1 ORDER BY created_at DESC, replay_id DESC LIMIT $2`, s.service, limit)
	if err != nil {
		return nil, fmt.Errorf("list bulk replays: %w", err)
	}
	return list, nil
}

func (s *Store) replays(ctx context.Context, query string, args ...any) ([]Replay, error) {
	rows, err := s.pool.Query(ctx, query, args...)
	if err != nil {
		return nil, fault.Unavailable(err)
	}
	list, err := pgx.CollectRows(rows, scanReplay)
	if err != nil {
		return nil, fault.Unavailable(err)
	}
	return list, nil
}

// CancelReplay ends a bulk replay; letters that have not had their turn stay pending. One that has ended stays as it is.
func (s *Store) CancelReplay(ctx context.Context, id uuid.UUID) (Replay, error) {
	err := s.transaction(ctx, func(tx pgx.Tx) error {
		// A letter that has its turn at this moment is waited for: turns hold the row too.
		tag, err := tx.Exec(ctx, `UPDATE dlq_replays SET cancelled = true, finished_at = now()
			WHERE replay_id = $1 AND service = $2 AND finished_at IS NULL`, id, s.service)
		if err != nil {
			return fault.Unavailable(err)
		}
		if tag.RowsAffected() == 0 {
			return nil
		}
		if _, err := tx.Exec(ctx, `DELETE FROM dlq_replay_letters WHERE replay_id = $1`, id); err != nil {
			return fault.Unavailable(err)
		}
		return nil
	})
	if err != nil {
		return Replay{}, fmt.Errorf("cancel bulk replay: %w", err)
	}
	return s.BulkReplay(ctx, id)
}

// RunReplays works on the bulk replays of the service until ctx ends. Any number of instances may do so at once: each
// turn is one transaction that holds the bulk replay, so that a crash of one leaves nothing that another has to wait for.
func (s *Store) RunReplays(ctx context.Context, log *slog.Logger) {
	failing := false
	for ctx.Err() == nil {
		t, err := s.turn(ctx)
		wait := t.wait
		switch {
		case err != nil:
			if t.replay != uuid.Nil && !failing && ctx.Err() == nil { // else health says that the database is away
				log.Error("bulk replay can't go on, trying again", "replay_id", t.replay, "error", err)
			}
			failing, wait = true, time.Second
		case t.ended:
			log.Info("bulk replay of dead letters has ended", "replay_id", t.replay)
			failing = false
		case t.replay != uuid.Nil:
			failing = false
		}
		if wait <= 0 {
			continue
		}
		select {
		case <-s.started:
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// turn is what has been done at one turn of a bulk replay.
type turn struct {
	replay uuid.UUID     // whose turn it was; nil if none was due
	ended  bool          // it was the last one
	wait   time.Duration // until the next turn of any is due; zero if that is not known
}

// turn replays the next letter of the bulk replay that has been due longest, and counts it, in one transaction. An error
// has changed nothing, or its commit is unknown: trying again is safe.
func (s *Store) turn(ctx context.Context) (t turn, err error) {
	ctx, cancel := context.WithTimeout(ctx, turnTimeout)
	defer cancel()
	err = s.transaction(ctx, func(tx pgx.Tx) error {
		t = turn{}
		var turns int64
		var askedBy string
		err := tx.QueryRow(ctx, `SELECT replay_id, replayed + failed + skipped, coalesce(asked_by, '') FROM dlq_replays
			WHERE service = $1 AND finished_at IS NULL AND next_at <= clock_timestamp()
			ORDER BY next_at LIMIT 1 FOR UPDATE SKIP LOCKED`, s.service).Scan((*[16]byte)(&t.replay), &turns, &askedBy)
		if errors.Is(err, pgx.ErrNoRows) {
			t.wait, err = s.untilNext(ctx, tx)
			return err
		}
		if err != nil {
			return fault.Unavailable(err)
		}
		column, lastError, err := s.next(By(ctx, askedBy), tx, t.replay, turns)
		if err != nil {
			return err
		}
		// One that could not keep up with its rate does not catch up in a burst of more than a second.
		err = tx.QueryRow(ctx, `UPDATE dlq_replays SET `+column+` = `+column+` + 1, last_error = coalesce($2, last_error),
				next_at = greatest(next_at, clock_timestamp() - interval '1 second') + interval '1 second' / rate,
				finished_at = CASE WHEN replayed + failed + skipped + 1 >= total THEN now() END
			WHERE replay_id = $1 RETURNING finished_at IS NOT NULL`, t.replay, lastError).Scan(&t.ended)
		if err != nil {
			return fault.Unavailable(err)
		}
		return nil
	})
	if err != nil {
		return t, fmt.Errorf("run bulk replay: %w", err)
	}
	return t, nil
}

// untilNext returns when to look for the next turn. Those that are due and were not to be had are another instance's.
func (s *Store) untilNext(ctx context.Context, tx pgx.Tx) (time.Duration, error) {
	var seconds *float64
	err := tx.QueryRow(ctx, `SELECT extract(epoch FROM min(next_at) - clock_timestamp())::float8 FROM dlq_replays
		WHERE service = $1 AND finished_at IS NULL AND next_at > clock_timestamp()`, s.service).Scan(&seconds)
	if err != nil {
		return 0, fault.Unavailable(err)
	}
	if seconds == nil {
		return pollReplays, nil
	}
	return min(pollReplays, time.Duration(*seconds*float64(time.Second))), nil
}

// next replays the next letter of a bulk replay, and returns the column that counts what has become of it.
func (s *Store) next(ctx context.Context, tx pgx.Tx, replay uuid.UUID, turns int64) (column string, lastError *string, err error) {
	// Letters have their turns in order, from 1, so those up to the number of turns are gone. Without that the search would
	// walk over all of them as long as some old transaction keeps vacuum away.
	var id uuid.UUID
	err = tx.QueryRow(ctx, `DELETE FROM dlq_replay_letters WHERE dlq_id = (
			SELECT dlq_id FROM dlq_replay_letters WHERE replay_id = $1 AND turn > $2 ORDER BY turn LIMIT 1
		) RETURNING dlq_id`, replay, turns).Scan((*[16]byte)(&id))
	if errors.Is(err, pgx.ErrNoRows) { // taken from the set by hand
		return "skipped", nil, nil
	}
	if err != nil {
		return "", nil, fault.Unavailable(err)
	}
	letter, err := s.pending(ctx, tx, id)
	var gone *NotPendingError
	if errors.As(err, &gone) || errors.Is(err, fault.ErrNotFound) {
		return "skipped", nil, nil
	}
	if err != nil {
		return "", nil, fmt.Errorf("letter %s: %w", id, err)
	}
	refusal, err := s.attempt(ctx, tx, &letter, Edit{})
	switch {
	case err != nil:
		return "", nil, fmt.Errorf("letter %s: %w", id, err)
	case refusal != nil:
		return "failed", &letter.Error, nil
	}
	return "replayed", nil, nil
}
