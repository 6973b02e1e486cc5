package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/pubsub/batch"
)

// maxBatchBytes bounds the payloads of one batch, as they are stored.
const maxBatchBytes = 4 << 20

// sequencer does the database work of the active relay on the one connection that holds the lock: when the connection
// is lost so is the lock, and no statement of ours can take effect after another instance has taken over.
type sequencer struct {
	conn     *pgx.Conn
	timeout  time.Duration
	max      int
	limit    int // of the next batch; below max while a row that can't be stored is being singled out, or the database is slow
	position int64
	log      *slog.Logger

	floor      int64 // IDs up to here have been taken, but for stray ones; see raiseFloor
	sinceFloor int   // rows taken since the floor was raised
	sweep      time.Duration
	swept      time.Time     // when rows below the floor were last looked for
	sweeping   time.Duration // how long that took
}

// session is how the server treats our connections.
var session = map[string]string{
	// The session of a relay whose machine is gone ends, and its lock is free, within seconds: the system's own limits
	// are hours. Seconds, but for the last one: milliseconds.
	"tcp_keepalives_idle": "5", "tcp_keepalives_interval": "2", "tcp_keepalives_count": "3", "tcp_user_timeout": "10000",
	// Plans are cached, and made when the outbox is next to empty. While the bus is away it fills up, and a plan that
	// reads all of it for each batch, which is best for a few rows, would drain it at 1,000 events/s instead of 35,000.
	"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off", "enable_bitmapscan": "off", "enable_nestloop": "off",
	// What is switched off counts as endlessly costly, and so as worth compiling: at each execution, for a millisecond.
	"jit": "off",
}

func dial(ctx context.Context, pool *pgxpool.Pool, timeout time.Duration) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cfg := pool.Config().ConnConfig // a copy
	maps.Copy(cfg.RuntimeParams, session)
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if unsupported(err) {
		return nil, errPooled
	}
	if err != nil {
		return nil, fmt.Errorf("connect to the outbox: %w", err)
	}
	return conn, nil
}

func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // the server notices either way
}

// acquire connects and waits for the lock; nil without an error means that ctx ended first. It asks again and again
// rather than wait inside the server: a statement that waits holds a snapshot, and what the leader deletes meanwhile
// could not be cleaned up.
func (s *Subscriber) acquire(ctx context.Context) (*sequencer, error) {
	conn, err := dial(ctx, s.pool, s.cfg.Timeout)
	if err != nil {
		return nil, err
	}
	if err := dedicated(ctx, s.pool, conn, s.cfg.Timeout); err != nil {
		closeConn(conn)
		return nil, err
	}
	q := &sequencer{conn: conn, timeout: s.cfg.Timeout, max: s.cfg.MaxBatch, limit: s.limit, sweep: s.cfg.Sweep, log: s.cfg.Log}
	var leader lookout
	for {
		leading, err := q.tryLead(ctx)
		if err != nil {
			q.close()
			return nil, err
		}
		s.update(func(st *State) { st.LastRound, st.Err, st.Leading, st.Sequenced = time.Now(), nil, leading, q.position })
		if leading {
			s.update(func(st *State) { st.Idle = 0 })
			s.cfg.Log.Info("relay leads", "position", q.position)
			return q, nil
		}
		if err := s.watch(ctx, q, &leader); err != nil {
			q.close()
			return nil, err
		}
		if !batch.Sleep(ctx, s.cfg.Poll) {
			q.close()
			return nil, nil
		}
	}
}

// tryLead takes the lock if no other instance has it, and then reads where the log ends.
func (q *sequencer) tryLead(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, q.timeout)
	defer cancel()
	var leading bool
	if err := q.conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1, 'outbox'::regclass::oid::int)`, int32(lockClass)).Scan(&leading); err != nil {
		return false, fmt.Errorf("take the relay's lock: %w", err)
	}
	if !leading {
		return false, nil
	}
	// Somebody may have emptied the table.
	if _, err := q.conn.Exec(ctx, `INSERT INTO relay_cursor (name, position) VALUES ('bus', 0) ON CONFLICT DO NOTHING`); err != nil {
		return false, fmt.Errorf("make the relay's cursor: %w", err)
	}
	err := q.conn.QueryRow(ctx, `SELECT greatest((SELECT max(position) FROM event_store),
		(SELECT position FROM relay_cursor WHERE name = 'bus'))`).Scan(&q.position)
	if err != nil {
		return false, fmt.Errorf("read the newest position: %w", err)
	}
	return true, nil
}

func (q *sequencer) close() { closeConn(q.conn) }

// cursor begins a term and returns it with what has been saved: how far the bus has acknowledged, or where it is wanted to
// begin again, and the floor of the outbox.
func (q *sequencer) cursor(ctx context.Context) (position, floor, term int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, q.timeout)
	defer cancel()
	err = q.conn.QueryRow(ctx, `UPDATE relay_cursor SET term = term + 1, position = least(position, republish - 1), republish = NULL, updated_at = now()
		WHERE name = 'bus' RETURNING position, floor, term`).Scan(&position, &floor, &term)
	if err != nil {
		return 0, 0, 0, fmt.Errorf("read relay cursor: %w", err)
	}
	return position, floor, term, nil
}

// sequence moves a batch into the log. The window bounds a batch by bytes too, and its first row always passes. A row
// whose event_id is there already is a repeat, and counted, if the content is the same, and else a dead letter. The event
// that it is compared with is in the log, or before it in the batch; scalar subqueries, since joins are bent to scans of
// whole indexes by the settings of the session. Only rows that are skipped pay. The letter's offset is the position that
// the row would have had: no event of the log is at it under this event_id.
const sequence = `
WITH batch AS (
	SELECT id FROM (
		SELECT id, sum(size) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) - size AS before
		FROM (SELECT id, pg_column_size(payload) AS size FROM outbox WHERE id BETWEEN $4 AND $5 ORDER BY id LIMIT $1) AS head
	) AS sized WHERE before < $2
), taken AS (
	DELETE FROM outbox WHERE id = ANY (ARRAY(SELECT id FROM batch)) RETURNING *
), numbered AS (
	SELECT $3::bigint + row_number() OVER (ORDER BY id) AS position, * FROM taken
), stored AS (
	INSERT INTO event_store (event_id, event_type, aggregate_id, event_time, ingested_at, payload, metadata, position)
	SELECT event_id, event_type, aggregate_id, event_time, ingested_at, payload::jsonb, metadata::jsonb, position
	FROM numbered ORDER BY position
	ON CONFLICT (event_id) DO NOTHING
	RETURNING position
), skipped AS (
	SELECT * FROM numbered WHERE (SELECT count(*) FROM taken) > (SELECT count(*) FROM stored)
		AND position NOT IN (SELECT position FROM stored)
), others AS (` + letter + `
		position, aggregate_id, 'event_id was used for another event, with another type, aggregate or payload, which is in the log', metadata::jsonb ->> 'correlation_id',
		coalesce((SELECT topic FROM unnest($6::text[], $7::text[]) AS r (prefix, topic) WHERE starts_with(event_type, prefix)), $8) || '.dlq', NULL
	FROM skipped n WHERE coalesce(
		(SELECT e.event_type <> n.event_type COLLATE "C" OR e.aggregate_id <> n.aggregate_id COLLATE "C" OR e.payload <> n.payload::jsonb
			FROM event_store e WHERE e.event_id = n.event_id),
		(SELECT f.event_type <> n.event_type OR f.aggregate_id <> n.aggregate_id OR f.payload::jsonb <> n.payload::jsonb
			FROM numbered f WHERE f.event_id = n.event_id ORDER BY f.position LIMIT 1))
	ON CONFLICT DO NOTHING
	RETURNING 1
), counted AS (
	UPDATE relay_cursor SET duplicates = duplicates + (SELECT count(*) FROM taken) - (SELECT count(*) FROM stored) - (SELECT count(*) FROM others)
	WHERE name = 'bus' AND (SELECT count(*) FROM taken) > (SELECT count(*) FROM stored)
)
SELECT n.position, n.event_id, n.event_type, n.aggregate_id, n.event_time, n.ingested_at,
	n.payload::text, n.metadata::text, s.position IS NOT NULL
FROM numbered n LEFT JOIN stored s USING (position) ORDER BY n.position`

// next sequences one batch and returns its new events; more says that the outbox is likely not empty.
func (q *sequencer) next(ctx context.Context) (p page, more bool, err error) {
	began, low := time.Now(), q.floor+1
	sweep := began.Sub(q.swept) > max(q.sweep, sweepShare*q.sweeping)
	if sweep || q.limit < q.max { // what is being singled out may be below the floor
		low = math.MinInt64
	}
	p, err = q.move(ctx, q.limit, low, math.MaxInt64)
	if sweep {
		q.swept, q.sweeping = began, time.Since(began)
	}
	switch {
	case err == nil:
	case !refused(err):
		if fault.TooSlow(err) && ctx.Err() == nil { // the next attempt, on a new connection, is to do less at once
			q.limit = max(1, q.limit/2)
		}
		return page{}, false, err
	case q.limit > 1:
		// The log can't hold one of the rows. It is found by halving the batch, since one bad row must not hold up all
		// others; the door refuses such events, so this is for what it has overlooked.
		q.limit /= 2
		return page{}, true, nil
	default:
		p, err = q.single(ctx)
		return p, true, err
	}
	more = p.taken == q.limit || p.bytes >= maxBatchBytes/2
	if time.Since(began) < q.timeout/4 {
		q.limit = min(q.max, 2*q.limit)
	}
	if q.sinceFloor += p.taken; q.sinceFloor >= floorEvery {
		if err := q.raiseFloor(ctx); err != nil {
			return p, more, err
		}
	}
	return p, more, nil
}

const (
	floorEvery = 3_000 // rows
	sweepShare = 100   // sweeping walks over all that vacuum can't remove, and takes a hundredth of the time at most
)

// raiseFloor moves the place where the next batch is looked for past what has been taken. Rows that are deleted stay in
// the index until vacuum can remove them, which an old transaction of any other session prevents; without a floor each
// batch would walk over all of them. An insert that commits late must not be missed, so the floor is read while no
// insert is under way: all share the gate. Who inserts without the gate is found by the next sweep.
func (q *sequencer) raiseFloor(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, q.timeout)
	defer cancel()
	q.sinceFloor = 0
	tx, err := q.conn.Begin(ctx)
	if err != nil {
		return fmt.Errorf("raise the floor of the outbox: %w", err)
	}
	defer func() { _ = tx.Rollback(ctx) }() // after a commit it does nothing
	// An insert that hangs holds the gate; others would queue behind us. The next time will do.
	if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '200ms'`); err != nil {
		return fmt.Errorf("raise the floor of the outbox: %w", err)
	}
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1, 'outbox'::regclass::oid::int)`, int32(gateClass)); err != nil {
		if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) && pg.Code == "55P03" { // lock_not_available
			return nil
		}
		return fmt.Errorf("close the gate of the outbox: %w", err)
	}
	var floor int64
	err = tx.QueryRow(ctx, `SELECT coalesce((SELECT min(id) FROM outbox WHERE id > $1) - 1,
		(SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM outbox_id_seq))`, q.floor).Scan(&floor)
	if err != nil {
		return fmt.Errorf("read the floor of the outbox: %w", err)
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("open the gate of the outbox: %w", err)
	}
	q.floor = max(q.floor, floor)
	return nil
}

// move sequences up to limit rows with the IDs from low to high.
func (q *sequencer) move(ctx context.Context, limit int, low, high int64) (page, error) {
	ctx, cancel := context.WithTimeout(ctx, q.timeout)
	defer cancel()
	prefixes, topics := routes()
	rows, err := q.conn.Query(ctx, sequence, limit, maxBatchBytes, q.position, low, high, prefixes, topics, event.TopicSystem)
	if err != nil {
		return page{}, fmt.Errorf("sequence events: %w", err)
	}
	p, err := collect(rows)
	if err != nil {
		return page{}, err
	}
	q.position += int64(p.taken)
	return p, nil
}
