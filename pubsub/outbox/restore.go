package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/batch"
)

// Bus is what the relay asks of the bus when it takes the lead. The log may have gone back in time, and positions must
// not be used twice.
type Bus interface {
	// Newest returns the greatest position on the bus, 0 if there is none.
	Newest(ctx context.Context) (int64, error)
	// Since calls handle with all events that the bus holds, published since some time or, if it is zero, ever.
	Since(ctx context.Context, from time.Time, handle func([]event.Envelope) error) error
}

// restoreMargin is how far the clocks of the database and of the bus may differ.
const restoreMargin = time.Hour

// busError says that the bus can't be asked.
type busError struct{ error }

func (e busError) Unwrap() error { return e.error }

// compare looks whether bus and consumers are ahead of the log, and waits until the bus can be asked. What the log lacks
// and the bus has is put back; new events get positions above all of them.
func (s *Subscriber) compare(ctx context.Context, q *sequencer) error {
	if s.cfg.Bus == nil {
		return nil
	}
	warned := false
	for {
		err := s.compareOnce(ctx, q)
		var away busError
		if err == nil || ctx.Err() != nil || !errors.As(err, &away) {
			s.update(func(st *State) { st.Waiting = nil })
			return err
		}
		if !warned {
			s.cfg.Log.Error("relay can't look at the bus, and sequences nothing until it can: the log might be older", "error", away.error)
			warned = true
		}
		if err := q.ping(ctx); err != nil {
			return err
		}
		s.update(func(st *State) { st.LastRound, st.Err, st.Waiting = time.Now(), nil, away.error })
		if !batch.Sleep(ctx, s.cfg.Poll) {
			return ctx.Err()
		}
	}
}

func (q *sequencer) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, q.timeout)
	defer cancel()
	if err := q.conn.Ping(ctx); err != nil {
		return fmt.Errorf("ask the database of the outbox for a sign of life: %w", err)
	}
	return nil
}

func (s *Subscriber) compareOnce(ctx context.Context, q *sequencer) error {
	log, at, err := q.logEnd(ctx)
	if err != nil {
		return err
	}
	newest, err := s.newest(ctx)
	if err != nil {
		return err
	}
	if newest > log {
		s.update(func(st *State) {
			st.Waiting = errors.New("the event log is older than the bus, putting back what it lacks")
		})
		s.cfg.Log.Error("the event log is older than the bus: it was restored, reset, or failed over; putting back what the bus still holds",
			"log_position", log, "bus_position", newest)
		r := restore{q: q, log: log, newest: newest}
		if !at.IsZero() {
			at = at.Add(-restoreMargin)
		}
		if err := r.run(ctx, s.cfg.Bus, at); err != nil {
			return err
		}
		s.update(func(st *State) { st.Restored += r.restored })
		s.cfg.Log.Error("put events of the bus back into the event log; what the bus has dropped before is lost",
			"events", r.restored, "conflicts", r.conflicts, "log_position", log, "goes_on_after", max(q.position, r.newest))
		newest = r.newest
	}
	q.position = max(q.position, newest)
	if s.cfg.Handled == nil {
		return nil
	}
	if handled := s.cfg.Handled(ctx); handled > q.position {
		s.cfg.Log.Error("consumers are ahead of event log and bus, which have lost events; positions go on after theirs",
			"position", q.position, "goes_on_after", handled)
		q.position = handled
	}
	return nil
}

func (s *Subscriber) newest(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	newest, err := s.cfg.Bus.Newest(ctx)
	if err != nil {
		return 0, busError{err}
	}
	return newest, nil
}

// logEnd returns the newest position of the log, and when its event got it; zeros if there is none.
func (q *sequencer) logEnd(ctx context.Context) (position int64, at time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, q.timeout)
	defer cancel()
	err = q.conn.QueryRow(ctx, `SELECT position, coalesce(sequenced_at, ingested_at) FROM event_store ORDER BY position DESC LIMIT 1`).Scan(&position, &at)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return 0, time.Time{}, fmt.Errorf("read the newest event of the log: %w", err)
	}
	return position, at, nil
}

// restore puts events of the bus back into the log. It is one transaction on the connection that holds the lock: a half
// would hide that the other is missing.
type restore struct {
	q                   *sequencer
	log, newest         int64 // positions of what they had
	restored, conflicts int64
}

func (r *restore) run(ctx context.Context, bus Bus, from time.Time) error {
	err := pgx.BeginFunc(ctx, r.q.conn, func(tx pgx.Tx) error {
		var failed error // of the database
		err := bus.Since(ctx, from, func(events []event.Envelope) error {
			failed = r.put(ctx, tx, events)
			return failed
		})
		switch {
		case failed != nil:
			return failed
		case err != nil:
			return busError{err}
		}
		return r.account(ctx, tx)
	})
	if err != nil {
		return fmt.Errorf("put events back into the log: %w", err)
	}
	return nil
}

const putBack = `
INSERT INTO event_store (event_id, event_type, aggregate_id, event_time, ingested_at, payload, metadata, position, sequenced_at)
SELECT id, type, aggregate, time, ingested, payload::jsonb, metadata::jsonb, position, ingested
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::timestamptz[], $6::text[], $7::text[], $8::bigint[])
	AS row (id, type, aggregate, time, ingested, payload, metadata, position)
ON CONFLICT DO NOTHING RETURNING position`

// put puts back those of events that the log does not have.
func (r *restore) put(ctx context.Context, tx pgx.Tx, events []event.Envelope) error {
	n := len(events)
	ids, times, ingested := make([]pgtype.UUID, n), make([]time.Time, n), make([]time.Time, n)
	types, aggregates, payloads, metadata, positions := make([]string, n), make([]string, n), make([][]byte, n), make([][]byte, n), make([]int64, n)
	at := make(map[int64]pgtype.UUID, n)
	for i := range events {
		e := &events[i]
		stored := e.Metadata
		stored.Position = 0 // it has a column of its own
		meta, err := stored.Marshal()
		if err != nil {
			return fmt.Errorf("event %s: %w", e.ID, err)
		}
		ids[i] = pgtype.UUID{Bytes: e.ID, Valid: true}
		types[i], aggregates[i], times[i], ingested[i] = e.Type, e.AggregateID, e.Time, e.IngestedAt
		payloads[i], metadata[i], positions[i] = e.Payload, meta, e.Metadata.Position
		at[e.Metadata.Position] = ids[i]
		r.newest = max(r.newest, e.Metadata.Position)
	}
	rows, err := tx.Query(ctx, putBack, ids, types, aggregates, times, ingested, payloads, metadata, positions)
	if err != nil {
		return err
	}
	var position int64
	_, err = pgx.ForEachRow(rows, []any{&position}, func() error {
		r.restored++
		delete(at, position)
		return nil
	})
	if err != nil {
		return err
	}
	return r.check(ctx, tx, at)
}

// check counts events of the bus whose positions others have in the log.
func (r *restore) check(ctx context.Context, tx pgx.Tx, at map[int64]pgtype.UUID) error {
	positions := make([]int64, 0, len(at))
	for p := range at {
		positions = append(positions, p)
	}
	rows, err := tx.Query(ctx, `SELECT position, event_id FROM event_store WHERE position = ANY ($1)`, positions)
	if err != nil {
		return err
	}
	var position int64
	var id pgtype.UUID
	_, err = pgx.ForEachRow(rows, []any{&position, &id}, func() error {
		if at[position] != id {
			r.conflicts++
		}
		return nil
	})
	return err
}

// account makes cursor and counts what they are now. The bus has what came from it, so the cursor goes behind that, if
// the log had nothing before that was still to be published.
func (r *restore) account(ctx context.Context, tx pgx.Tx) error {
	var cursor int64
	if err := tx.QueryRow(ctx, `SELECT position FROM relay_cursor WHERE name = 'bus' FOR UPDATE`).Scan(&cursor); err != nil {
		return err
	}
	if cursor >= r.log {
		cursor = max(cursor, r.newest)
	}
	var counted int64
	err := tx.QueryRow(ctx, `UPDATE relay_cursor SET position = $1, counted = greatest(counted, $1), updated_at = now() WHERE name = 'bus' RETURNING counted`,
		cursor).Scan(&counted)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `SET LOCAL enable_seqscan = on`); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `DELETE FROM relay_counts`); err != nil {
		return err
	}
	prefixes, topics := routes()
	_, err = tx.Exec(ctx, `INSERT INTO relay_counts (topic, events)
		SELECT coalesce(r.topic, $4), sum(n.events) FROM (SELECT event_type, count(*) AS events FROM event_store WHERE position <= $1 GROUP BY 1) AS n
		LEFT JOIN unnest($2::text[], $3::text[]) AS r (prefix, topic) ON starts_with(n.event_type, r.prefix) GROUP BY 1`,
		counted, prefixes, topics, event.TopicSystem)
	return err
}
