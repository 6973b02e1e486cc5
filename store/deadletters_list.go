package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cornjacket/platform-services/event"
)

// previewBytes is how much of a payload a list holds: a page of whole ones could be hundreds of megabytes.
const previewBytes = 1024

// Apply hands a letter to its consumer within a transaction, which also marks the letter, and returns the event. note
// says what else there is to know, and may be empty. An error marked with [event.Permanent] is the consumer's refusal;
// any other one undoes everything.
type Apply func(ctx context.Context, tx pgx.Tx, l *event.Letter) (eventID uuid.UUID, note string, err error)

// Letters is the desk of one service for its dead letters: to look at them, and to replay or discard them. It sees
// those of its own consumers only. It may be used concurrently, also by several instances of the service.
type Letters struct {
	pool      *pgxpool.Pool
	service   string
	consumers map[string]Apply
	names     []string
}

// NewLetters returns the dead letters of a service's consumers in the database of pool, which stays the caller's.
func NewLetters(pool *pgxpool.Pool, service string, consumers map[string]Apply) *Letters {
	l := &Letters{pool: pool, service: service, consumers: consumers}
	for name := range consumers {
		l.names = append(l.names, name)
	}
	return l
}

// columns of a letter; %s is its payload, or a part of it.
const letterColumns = `d.dlq_id, d.consumer, d.event_id, %s, octet_length(d.event_payload), d.error_message, d.failed_at, d.retry_count,
	d.status, d.source_topic, d.source_partition, d.source_offset, coalesce(d.message_key, ''), coalesce(d.correlation_id, ''),
	d.bus_topic, coalesce(d.event_type, ''), coalesce(d.position, 0), d.properties, d.published_at, d.retried_at, d.replayed_at,
	d.discarded_at, coalesce(d.reason, ''), coalesce(d.replay_topic, ''), d.replay_payload`

func scanLetter(row pgx.CollectableRow) (event.Letter, error) {
	var l event.Letter
	var eventID pgtype.UUID
	err := row.Scan((*[16]byte)(&l.ID), &l.Consumer, &eventID, &l.Payload, &l.Size, &l.Error, &l.FailedAt, &l.RetryCount,
		&l.Status, &l.Topic, &l.Partition, &l.Offset, &l.Key, &l.CorrelationID,
		&l.BusTopic, &l.EventType, &l.Position, &l.Properties, &l.PublishedAt, &l.RetriedAt, &l.ReplayedAt,
		&l.DiscardedAt, &l.Reason, &l.EditedTopic, &l.EditedBytes)
	l.EventID = eventID.Bytes
	return l, err
}

// matching are the conditions of a [event.LetterFilter]; its arguments are those of filterArgs, numbered from 1.
const matching = `($1 = '' OR d.status = $1) AND ($2::uuid IS NULL OR d.event_id = $2) AND ($3 = '' OR d.event_type = $3)
	AND ($4 = '' OR d.source_topic = $4) AND ($5 = '' OR strpos(lower(d.error_message), lower($5)) > 0)
	AND ($6::timestamptz IS NULL OR d.failed_at >= $6) AND ($7::timestamptz IS NULL OR d.failed_at < $7)`

func filterArgs(f *event.LetterFilter) []any {
	return []any{
		f.Status, pgtype.UUID{Bytes: f.EventID, Valid: f.EventID != uuid.Nil}, f.EventType, f.Topic, f.Error,
		timestamp(f.From), timestamp(f.To),
	}
}

func timestamp(t time.Time) pgtype.Timestamptz {
	return pgtype.Timestamptz{Time: t, Valid: !t.IsZero()}
}

// of returns the consumers that a filter is about.
func (l *Letters) of(f *event.LetterFilter) []string {
	if f.Consumer == "" {
		return l.names
	}
	if _, ok := l.consumers[f.Consumer]; ok {
		return []string{f.Consumer}
	}
	return []string{}
}

// List returns up to f.Limit letters, the newest first. Each has the beginning of its payload, and no edited one.
func (l *Letters) List(ctx context.Context, f event.LetterFilter) ([]event.Letter, error) {
	// One index scan for each consumer, each of which ends after a page, whatever the number of letters.
	query := fmt.Sprintf(`SELECT d.* FROM unnest($8::text[]) AS c (name) CROSS JOIN LATERAL (
			SELECT `+letterColumns+` FROM dlq d WHERE d.consumer = c.name AND `+matching+`
				AND ($9::timestamptz IS NULL OR (d.failed_at, d.dlq_id) < ($9, $10))
			ORDER BY d.failed_at DESC, d.dlq_id DESC LIMIT $11
		) AS d ORDER BY d.failed_at DESC, d.dlq_id DESC LIMIT $11`, fmt.Sprintf("substring(d.event_payload FOR %d) AS event_payload", previewBytes))
	args := append(filterArgs(&f), l.of(&f), timestamp(f.BeforeTime), f.BeforeID, f.Limit)
	rows, err := l.pool.Query(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("list dead letters: %w", unavailable(err))
	}
	list, err := pgx.CollectRows(rows, scanLetter)
	if err != nil {
		if unmatchable(err) {
			return nil, nil
		}
		return nil, fmt.Errorf("list dead letters: %w", unavailable(err))
	}
	return list, nil
}

// Letter returns one letter whole, or [ErrNotFound].
func (l *Letters) Letter(ctx context.Context, id uuid.UUID) (event.Letter, error) {
	return l.read(ctx, l.pool, id, "")
}

type queryer interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func (l *Letters) read(ctx context.Context, q queryer, id uuid.UUID, lock string) (event.Letter, error) {
	rows, err := q.Query(ctx, fmt.Sprintf(`SELECT `+letterColumns+` FROM dlq d WHERE d.dlq_id = $1 AND d.consumer = ANY ($2) `, "d.event_payload")+lock, id, l.names)
	if err != nil {
		return event.Letter{}, fmt.Errorf("read dead letter: %w", unavailable(err))
	}
	letter, err := pgx.CollectExactlyOneRow(rows, scanLetter)
	switch {
	case err == nil:
		return letter, nil
	case isNoRows(err):
		return event.Letter{}, ErrNotFound
	}
	return event.Letter{}, fmt.Errorf("read dead letter: %w", unavailable(err))
}

// Count returns how many letters match a filter.
func (l *Letters) Count(ctx context.Context, f event.LetterFilter) (int64, error) {
	var n int64
	err := l.pool.QueryRow(ctx, `SELECT count(*) FROM dlq d WHERE `+matching+` AND d.consumer = ANY ($8)`,
		append(filterArgs(&f), l.of(&f))...).Scan(&n)
	if err != nil {
		if unmatchable(err) {
			return 0, nil
		}
		return 0, fmt.Errorf("count dead letters: %w", unavailable(err))
	}
	return n, nil
}

// Pending returns how many letters of each consumer are pending. It reads an index that holds those alone.
func (l *Letters) Pending(ctx context.Context) (map[string]int64, error) {
	pending := make(map[string]int64, len(l.names))
	for _, name := range l.names {
		pending[name] = 0
	}
	rows, err := l.pool.Query(ctx, `SELECT consumer, count(*) FROM dlq WHERE status = 'pending' AND consumer = ANY ($1) GROUP BY consumer`, l.names)
	if err != nil {
		return nil, fmt.Errorf("count pending dead letters: %w", unavailable(err))
	}
	var name string
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&name, &n}, func() error {
		pending[name] = n
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("count pending dead letters: %w", unavailable(err))
	}
	return pending, nil
}
