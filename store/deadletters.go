package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
)

// DeadLetters keeps the dead letters of one service. It may be used concurrently.
type DeadLetters struct{ pool *pgxpool.Pool }

// NewDeadLetters returns the dead letters in the database of pool, which stays the caller's.
func NewDeadLetters(pool *pgxpool.Pool) *DeadLetters { return &DeadLetters{pool: pool} }

// Add stores a dead letter. One that is there already is kept as it is: one with the same ID, if it has one, with the
// same consumer, topic, partition, offset and bytes, or, where the source has no offsets, with the same consumer, event
// and bytes.
func (d *DeadLetters) Add(ctx context.Context, l deadletter.Entry) error {
	_, err := d.pool.Exec(ctx, `
		INSERT INTO dlq (consumer, event_id, event_payload, error_message, failed_at, retry_count, source_topic,
			source_partition, source_offset, message_key, correlation_id, bus_topic, event_type, position, properties, dlq_id)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, nullif($13, ''), nullif($14::bigint, 0), $15,
			coalesce($16, gen_random_uuid()))
		ON CONFLICT DO NOTHING`,
		l.Consumer, pgtype.UUID{Bytes: l.EventID, Valid: l.EventID != uuid.Nil}, l.Payload, text(l.Error), l.FailedAt, l.RetryCount,
		text(l.Topic), l.Partition, l.Offset, text(l.Key), text(l.CorrelationID), l.BusTopic, text(l.EventType), l.Position,
		texts(l.Properties), pgtype.UUID{Bytes: l.ID, Valid: l.ID != uuid.Nil})
	if err != nil {
		return fmt.Errorf("store dead letter: %w", err)
	}
	return nil
}

// text makes a string that came from outside one that PostgreSQL can hold; the bytes as they came are in event_payload.
func text(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// texts is text for each value; nil stays nil, which is NULL.
func texts(m map[string]string) map[string]string {
	if m == nil {
		return nil
	}
	clean := make(map[string]string, len(m))
	for name, value := range m {
		clean[name] = text(value)
	}
	return clean
}

// Unpublished returns the oldest dead letters of consumers that are not on their bus topic yet.
func (d *DeadLetters) Unpublished(ctx context.Context, consumers []string, limit int) ([]deadletter.Entry, error) {
	rows, err := d.pool.Query(ctx, `
		SELECT dlq_id, consumer, event_id, event_payload, error_message, failed_at, retry_count, source_topic,
			source_partition, source_offset, coalesce(message_key, ''), coalesce(correlation_id, ''), bus_topic
		FROM dlq WHERE published_at IS NULL AND consumer = ANY ($1) ORDER BY failed_at LIMIT $2`, consumers, limit)
	if err != nil {
		return nil, fmt.Errorf("read dead letters: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (deadletter.Entry, error) {
		var l deadletter.Entry
		var eventID pgtype.UUID
		err := row.Scan((*[16]byte)(&l.ID), &l.Consumer, &eventID, &l.Payload, &l.Error, &l.FailedAt, &l.RetryCount, &l.Topic,
			&l.Partition, &l.Offset, &l.Key, &l.CorrelationID, &l.BusTopic)
		l.EventID = eventID.Bytes
		return l, err
	})
	if err != nil {
		return nil, fmt.Errorf("read dead letters: %w", err)
	}
	return list, nil
}

// MarkPublished notes that dead letters are on their bus topic.
func (d *DeadLetters) MarkPublished(ctx context.Context, ids []uuid.UUID, at time.Time) error {
	if _, err := d.pool.Exec(ctx, `UPDATE dlq SET published_at = $2 WHERE dlq_id = ANY ($1)`, ids, at); err != nil {
		return fmt.Errorf("mark dead letters as published: %w", err)
	}
	return nil
}

// Tables tells whether a database has all of the tables.
func Tables(ctx context.Context, pool *pgxpool.Pool, names ...string) (bool, error) {
	var n int
	err := pool.QueryRow(ctx, `SELECT count(*) FROM unnest($1::text[]) AS t (name) WHERE to_regclass(name) IS NOT NULL`, names).Scan(&n)
	if err != nil {
		return false, errors.Join(fault.ErrUnavailable, fmt.Errorf("look for tables: %w", err))
	}
	return n == len(names), nil
}

// AddWithin is a stand-in until the store of dead letters takes a transaction.
func (d *DeadLetters) AddWithin(ctx context.Context, tx pgx.Tx, letters ...deadletter.Entry) error {
	for _, l := range letters {
		_, err := tx.Exec(ctx, `INSERT INTO dlq (consumer, event_id, event_payload, error_message, failed_at, retry_count, source_topic,
			source_partition, source_offset, message_key, correlation_id, bus_topic, event_type, position)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, nullif($13, ''), nullif($14::bigint, 0)) ON CONFLICT DO NOTHING`,
			l.Consumer, pgtype.UUID{Bytes: l.EventID, Valid: l.EventID != uuid.Nil}, l.Payload, text(l.Error), l.FailedAt, l.RetryCount,
			text(l.Topic), l.Partition, l.Offset, text(l.Key), text(l.CorrelationID), l.BusTopic, text(l.EventType), l.Position)
		if err != nil {
			return err
		}
	}
	return nil
}
