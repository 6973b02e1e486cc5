package deadletter

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// letterColumns are the columns of a letter with its payload, or a part of it.
func letterColumns(payload string) string {
	return `d.dlq_id, d.consumer, d.event_id, ` + payload + `, octet_length(d.event_payload), d.error_message, d.failed_at, d.retry_count,
	d.status, d.source_topic, d.source_partition, d.source_offset, coalesce(d.message_key, ''), coalesce(d.correlation_id, ''),
	d.bus_topic, coalesce(d.event_type, ''), coalesce(d.position, 0), d.properties, d.published_at, d.retried_at, d.replayed_at,
	d.discarded_at, coalesce(d.reason, ''), coalesce(d.decided_by, ''), coalesce(d.replay_topic, ''), d.replay_payload`
}

func scanLetter(row pgx.CollectableRow) (Letter, error) {
	var l Letter
	var eventID pgtype.UUID
	err := row.Scan((*[16]byte)(&l.ID), &l.Consumer, &eventID, &l.Payload, &l.Size, &l.Error, &l.FailedAt, &l.RetryCount,
		&l.Status, &l.Topic, &l.Partition, &l.Offset, &l.Key, &l.CorrelationID,
		&l.BusTopic, &l.EventType, &l.Position, &l.Properties, &l.PublishedAt, &l.RetriedAt, &l.ReplayedAt,
		&l.DiscardedAt, &l.Reason, &l.DecidedBy, &l.EditedTopic, &l.EditedBytes)
	l.EventID = eventID.Bytes
	return l, err
}

// condition builds a WHERE of what a filter asks for and nothing else, so that each kind of question has the index that
// is made for it.
type condition struct {
	parts []string
	args  []any
}

// add adds a part in which ? stands for the argument.
func (c *condition) add(part string, arg any) {
	c.args = append(c.args, arg)
	c.parts = append(c.parts, strings.ReplaceAll(part, "?", fmt.Sprintf("$%d", len(c.args))))
}

func (c *condition) String() string { return strings.Join(c.parts, " AND ") }

// matching returns the conditions of a filter, but for its consumer.
func matching(f *Filter) *condition {
	c := &condition{parts: []string{"true"}}
	switch f.Status {
	case "":
	case Pending:
		c.parts = append(c.parts, "d.status = 'pending'") // as in the index of those
	default:
		c.add("d.status = ?", f.Status)
	}
	if f.EventID != uuid.Nil {
		c.add("d.event_id = ?", f.EventID)
	}
	if f.EventType != "" {
		c.add("d.event_type = ?", f.EventType)
	}
	if f.Topic != "" {
		c.add("d.source_topic = ?", f.Topic)
	}
	if f.Error != "" {
		c.add("strpos(lower(d.error_message), lower(?)) > 0", f.Error)
	}
	if !f.From.IsZero() {
		c.add("d.failed_at >= ?", f.From)
	}
	if !f.To.IsZero() {
		c.add("d.failed_at < ?", f.To)
	}
	return c
}

// of returns the consumers that a filter is about.
func (s *Store) of(f *Filter) []string {
	if f.Consumer == "" {
		return s.names
	}
	if _, ok := s.consumers[f.Consumer]; ok {
		return []string{f.Consumer}
	}
	return []string{}
}

// List returns up to f.Limit letters, the newest first. Each has only the first 1,024 bytes of its payload: a page of
// whole ones could be hundreds of megabytes.
func (s *Store) List(ctx context.Context, f Filter) ([]Letter, error) {
	where := matching(&f)
	if !f.BeforeTime.IsZero() {
		where.args = append(where.args, f.BeforeTime, f.BeforeID)
		n := len(where.args)
		where.parts = append(where.parts, fmt.Sprintf("(d.failed_at, d.dlq_id) < ($%d, $%d)", n-1, n))
	}
	n := len(where.args)
	// One index scan for each consumer, each of which ends after a page, whatever the number of letters.
	query := fmt.Sprintf(`SELECT d.* FROM unnest($%[1]d::text[]) AS c (name) CROSS JOIN LATERAL (
			SELECT `+letterColumns("substring(d.event_payload FOR 1024) AS event_payload")+` FROM dlq d WHERE d.consumer = c.name AND %[3]s
			ORDER BY d.failed_at DESC, d.dlq_id DESC LIMIT $%[2]d
		) AS d ORDER BY d.failed_at DESC, d.dlq_id DESC LIMIT $%[2]d`, n+1, n+2, where)
	where.args = append(where.args, s.of(&f), f.Limit)
	rows, err := s.pool.Query(ctx, query, where.args...)
	if err != nil {
		return nil, fmt.Errorf("list dead letters: %w", fault.Unavailable(err))
	}
	list, err := pgx.CollectRows(rows, scanLetter)
	if err != nil {
		if fault.Unmatchable(err) {
			return nil, nil
		}
		return nil, fmt.Errorf("list dead letters: %w", fault.Unavailable(err))
	}
	return list, nil
}

// Letter returns one letter whole, or [fault.ErrNotFound].
func (s *Store) Letter(ctx context.Context, id uuid.UUID) (Letter, error) {
	return s.read(ctx, s.pool, id, "")
}

func (s *Store) read(ctx context.Context, q Querier, id uuid.UUID, lock string) (Letter, error) {
	rows, err := q.Query(ctx, `SELECT `+letterColumns("d.event_payload")+` FROM dlq d WHERE d.dlq_id = $1 AND d.consumer = ANY ($2) `+lock, id, s.names)
	if err != nil {
		return Letter{}, fmt.Errorf("read dead letter: %w", fault.Unavailable(err))
	}
	letter, err := pgx.CollectExactlyOneRow(rows, scanLetter)
	switch {
	case err == nil:
		return letter, nil
	case errors.Is(err, pgx.ErrNoRows):
		return Letter{}, fault.ErrNotFound
	}
	return Letter{}, fmt.Errorf("read dead letter: %w", fault.Unavailable(err))
}

// Count returns how many letters match a filter.
func (s *Store) Count(ctx context.Context, f Filter) (int64, error) {
	var n int64
	where := matching(&f)
	where.add("d.consumer = ANY (?)", s.of(&f))
	err := s.pool.QueryRow(ctx, `SELECT count(*) FROM dlq d WHERE `+where.String(), where.args...).Scan(&n)
	if err != nil {
		if fault.Unmatchable(err) {
			return 0, nil
		}
		return 0, fmt.Errorf("count dead letters: %w", fault.Unavailable(err))
	}
	return n, nil
}

// Pending returns how many letters of each consumer are pending. It reads an index that holds those alone.
func (s *Store) Pending(ctx context.Context) (map[string]int64, error) {
	pending := make(map[string]int64, len(s.names))
	for _, name := range s.names {
		pending[name] = 0
	}
	rows, err := s.pool.Query(ctx, `SELECT consumer, count(*) FROM dlq WHERE status = 'pending' AND consumer = ANY ($1) GROUP BY consumer`, s.names)
	if err != nil {
		return nil, fmt.Errorf("count pending dead letters: %w", fault.Unavailable(err))
	}
	var name string
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&name, &n}, func() error {
		pending[name] = n
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("count pending dead letters: %w", fault.Unavailable(err))
	}
	return pending, nil
}
