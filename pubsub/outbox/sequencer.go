package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cornjacket/platform-services/event"
)

// maxBatchBytes bounds the payloads of one batch, as they are stored.
const maxBatchBytes = 4 << 20

const keyMetadata = event.MetaAggregateID

// sequencer does the database work of the active relay on the one connection that holds the lock: when the connection
// is lost so is the lock, and no statement of ours can take effect after another instance has taken over.
type sequencer struct {
	conn     *pgx.Conn
	timeout  time.Duration
	max      int
	limit    int // of the next batch; below max while a row that can't be stored is being singled out
	position int64
	log      *slog.Logger
}

func dial(ctx context.Context, pool *pgxpool.Pool, timeout time.Duration) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, pool.Config().ConnConfig)
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

// acquire connects and takes the lock; nil without an error means that another instance has it.
func (s *Subscriber) acquire(ctx context.Context) (*sequencer, error) {
	conn, err := dial(ctx, s.pool, s.cfg.Timeout)
	if err != nil {
		return nil, err
	}
	q := &sequencer{conn: conn, timeout: s.cfg.Timeout, max: s.cfg.MaxBatch, limit: s.cfg.MaxBatch, log: s.cfg.Log}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	var leading bool
	if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, int64(lockKey)).Scan(&leading); err != nil {
		q.close()
		return nil, fmt.Errorf("take the relay's lock: %w", err)
	}
	if !leading {
		q.close()
		s.update(func(st *State) { st.LastRound, st.Err, st.Leading = time.Now(), nil, false })
		return nil, nil
	}
	err = conn.QueryRow(ctx, `SELECT greatest((SELECT max(position) FROM event_store),
		(SELECT position FROM relay_cursor WHERE name = 'bus'))`).Scan(&q.position)
	if err != nil {
		q.close()
		return nil, fmt.Errorf("read the newest position: %w", err)
	}
	s.update(func(st *State) { st.LastRound, st.Err, st.Leading, st.Sequenced = time.Now(), nil, true, q.position })
	return q, nil
}

func (q *sequencer) close() { closeConn(q.conn) }

func (q *sequencer) cursor(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, q.timeout)
	defer cancel()
	var position int64
	if err := q.conn.QueryRow(ctx, `SELECT position FROM relay_cursor WHERE name = 'bus'`).Scan(&position); err != nil {
		return 0, fmt.Errorf("read relay cursor: %w", err)
	}
	return position, nil
}

// after returns stored events behind a position, for a relay that takes over.
func (q *sequencer) after(ctx context.Context, position int64) ([]*message.Message, []int64, error) {
	ctx, cancel := context.WithTimeout(ctx, q.timeout)
	defer cancel()
	rows, err := q.conn.Query(ctx, `SELECT position, event_id, event_type, aggregate_id, event_time, ingested_at,
		payload::text, metadata::text, true FROM event_store WHERE position > $1 ORDER BY position LIMIT 500`, position)
	if err != nil {
		return nil, nil, fmt.Errorf("read unpublished events: %w", err)
	}
	return collect(rows)
}

// sequence moves a batch into the log. The window bounds a batch by bytes too, and its first row always passes.
const sequence = `
WITH batch AS (
	SELECT id FROM (
		SELECT id, sum(size) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) - size AS before
		FROM (SELECT id, pg_column_size(payload) AS size FROM outbox ORDER BY id LIMIT $1) AS head
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
)
SELECT n.position, n.event_id, n.event_type, n.aggregate_id, n.event_time, n.ingested_at,
	n.payload::text, n.metadata::text, s.position IS NOT NULL
FROM numbered n LEFT JOIN stored s USING (position) ORDER BY n.position`

// next sequences one batch and returns its new events; more says that the outbox is likely not empty.
func (q *sequencer) next(ctx context.Context) (batch []*message.Message, positions []int64, more bool, err error) {
	qctx, cancel := context.WithTimeout(ctx, q.timeout)
	defer cancel()
	rows, err := q.conn.Query(qctx, sequence, q.limit, maxBatchBytes, q.position)
	if err == nil {
		batch, positions, err = collect(rows)
	}
	if err != nil {
		if dataError(err) {
			return nil, nil, true, q.single(ctx, err)
		}
		return nil, nil, false, fmt.Errorf("sequence events: %w", err)
	}
	taken := rows.CommandTag().RowsAffected()
	q.position += taken
	bytes := 0
	for _, m := range batch {
		bytes += len(m.Payload)
	}
	more = taken == int64(q.limit) || bytes >= maxBatchBytes/2
	q.limit = min(q.max, 2*q.limit)
	return batch, positions, more, nil
}

// single finds the row that the log can't hold by halving the batch, and sets it aside as a dead letter: one bad row
// must not hold up all others. The door refuses what the log can't hold, so this is for what it has overlooked.
func (q *sequencer) single(ctx context.Context, cause error) error {
	if q.limit > 1 {
		q.limit /= 2
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, q.timeout)
	defer cancel()
	reason := cause.Error()
	if pg := (*pgconn.PgError)(nil); errors.As(cause, &pg) {
		reason = pg.Message
	}
	var id string
	err := q.conn.QueryRow(ctx, `
		WITH bad AS (DELETE FROM outbox WHERE id = (SELECT min(id) FROM outbox) RETURNING *)
		INSERT INTO dlq (consumer, event_id, event_payload, error_message, source_topic, source_offset, message_key, correlation_id, bus_topic)
		SELECT 'relay', event_id, convert_to(json_build_object('event_id', event_id, 'event_type', event_type,
			'aggregate_id', aggregate_id, 'event_time', event_time, 'ingested_at', ingested_at, 'payload', payload,
			'metadata', metadata)::text, 'UTF8'), $1, 'outbox', id, aggregate_id, metadata->>'correlation_id',
			CASE split_part(event_type, '.', 1) WHEN 'sensor' THEN $2 WHEN 'user' THEN $3 ELSE $4 END
		FROM bad RETURNING event_id::text`, reason,
		event.DeadLetterTopic(event.TopicSensor), event.DeadLetterTopic(event.TopicUser), event.DeadLetterTopic(event.TopicSystem)).Scan(&id)
	if err != nil {
		return fmt.Errorf("set aside an event that can't be stored: %w", err)
	}
	q.log.Warn("event can't be stored, is now a dead letter", "event_id", id, "reason", reason)
	return nil
}

// collect reads rows into messages, leaving out events that were in the log already.
func collect(rows pgx.Rows) (batch []*message.Message, positions []int64, err error) {
	defer rows.Close()
	for rows.Next() {
		var (
			e                 event.Envelope
			payload, metadata []byte
			position          int64
			fresh             bool
		)
		err := rows.Scan(&position, (*[16]byte)(&e.ID), &e.Type, &e.AggregateID, &e.Time, &e.IngestedAt, &payload, &metadata, &fresh)
		if err != nil {
			return nil, nil, fmt.Errorf("read event: %w", err)
		}
		if !fresh {
			continue
		}
		e.Time, e.IngestedAt = e.Time.UTC(), e.IngestedAt.UTC()
		e.Payload = jsontext.Value(payload)
		if err := json.Unmarshal(metadata, &e.Metadata); err != nil {
			return nil, nil, fmt.Errorf("read metadata of event %s: %w", e.ID, err)
		}
		e.Metadata.Position = position
		m, err := Message(&e)
		if err != nil {
			return nil, nil, err
		}
		batch, positions = append(batch, m), append(positions, position)
	}
	if err := rows.Err(); err != nil {
		return nil, nil, fmt.Errorf("read events: %w", err)
	}
	return batch, positions, nil
}
