package deadletter

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Apply hands a letter to its consumer within a transaction, which also marks the letter, and returns the event. note
// says what else there is to know, and may be empty. An error marked with [fault.Permanent] is the consumer's refusal;
// any other one undoes everything.
type Apply func(ctx context.Context, tx pgx.Tx, l *Letter) (eventID uuid.UUID, note string, err error)

// Querier is a pool, a connection or a transaction.
type Querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// Store keeps the dead letters of one service: to look at them, and to replay or discard them. It sees those of its own
// consumers only. It may be used concurrently, also by several instances of the service.
type Store struct {
	pool      *pgxpool.Pool
	service   string
	consumers map[string]Apply
	names     []string
	started   chan struct{} // a bulk replay
}

// NewStore returns the dead letters of a service's consumers in the database of pool, which stays the caller's.
func NewStore(pool *pgxpool.Pool, service string, consumers map[string]Apply) *Store {
	s := &Store{pool: pool, service: service, consumers: consumers, started: make(chan struct{}, 1)}
	for name := range consumers {
		s.names = append(s.names, name)
	}
	return s
}

// Writer adds dead letters to a database. It may be used concurrently.
type Writer struct{ DB Querier }

// Add is the function [Add] for one entry.
func (w Writer) Add(ctx context.Context, entries ...Entry) error { return Add(ctx, w.DB, entries...) }

// Add stores dead letters in one statement. One that is there already is kept as it is: one with the same ID, if it has
// one, with the same consumer, topic, partition, offset and bytes, or, where the source has no offsets, with the same
// consumer, event and bytes.
func Add(ctx context.Context, q Querier, entries ...Entry) error {
	var c columns
	for i := range entries {
		if err := c.add(&entries[i]); err != nil {
			return fmt.Errorf("store dead letters: %w", err)
		}
	}
	_, err := q.Exec(ctx, `
		INSERT INTO dlq (dlq_id, consumer, event_id, event_payload, error_message, failed_at, retry_count, source_topic,
			source_partition, source_offset, message_key, correlation_id, bus_topic, event_type, position, properties)
		SELECT coalesce(dlq_id, gen_random_uuid()), consumer, event_id, event_payload, error_message, failed_at, retry_count, source_topic,
			source_partition, source_offset, message_key, correlation_id, bus_topic, nullif(event_type, ''), nullif(position, 0), properties::jsonb
		FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::bytea[], $5::text[], $6::timestamptz[], $7::integer[], $8::text[],
			$9::integer[], $10::bigint[], $11::text[], $12::text[], $13::text[], $14::text[], $15::bigint[], $16::text[])
			AS e (dlq_id, consumer, event_id, event_payload, error_message, failed_at, retry_count, source_topic,
				source_partition, source_offset, message_key, correlation_id, bus_topic, event_type, position, properties)
		ON CONFLICT DO NOTHING`,
		c.ids, c.consumers, c.eventIDs, c.payloads, c.errors, c.failedAt, c.retries, c.topics,
		c.partitions, c.offsets, c.keys, c.correlationIDs, c.busTopics, c.eventTypes, c.positions, c.properties)
	if err != nil {
		return fmt.Errorf("store dead letters: %w", err)
	}
	return nil
}

// columns are entries by column.
type columns struct {
	ids, eventIDs                   []pgtype.UUID
	consumers, errors, topics, keys []string
	correlationIDs, busTopics       []string
	eventTypes                      []string
	payloads                        [][]byte
	failedAt                        []pgtype.Timestamptz
	retries                         []int
	partitions                      []*int32
	offsets                         []*int64
	positions                       []int64
	properties                      []*string // JSON
}

func (c *columns) add(e *Entry) error {
	var properties *string
	if e.Properties != nil {
		clean := make(map[string]string, len(e.Properties))
		for name, value := range e.Properties {
			clean[name] = text(value)
		}
		data, err := json.Marshal(clean)
		if err != nil {
			return fmt.Errorf("encode properties: %w", err)
		}
		s := string(data)
		properties = &s
	}
	payload := e.Payload
	if payload == nil {
		payload = []byte{}
	}
	c.ids = append(c.ids, nullable(e.ID))
	c.consumers = append(c.consumers, e.Consumer)
	c.eventIDs = append(c.eventIDs, nullable(e.EventID))
	c.payloads = append(c.payloads, payload)
	c.errors = append(c.errors, text(e.Error))
	c.failedAt = append(c.failedAt, pgtype.Timestamptz{Time: e.FailedAt, Valid: true})
	c.retries = append(c.retries, e.RetryCount)
	c.topics = append(c.topics, text(e.Topic))
	c.partitions = append(c.partitions, e.Partition)
	c.offsets = append(c.offsets, e.Offset)
	c.keys = append(c.keys, text(e.Key))
	c.correlationIDs = append(c.correlationIDs, text(e.CorrelationID))
	c.busTopics = append(c.busTopics, e.BusTopic)
	c.eventTypes = append(c.eventTypes, text(e.EventType))
	c.positions = append(c.positions, e.Position)
	c.properties = append(c.properties, properties)
	return nil
}

// nullable is a UUID for the database, NULL for the nil UUID.
func nullable(id uuid.UUID) pgtype.UUID { return pgtype.UUID{Bytes: id, Valid: id != uuid.Nil} }

// text makes a string that came from outside one that PostgreSQL can hold; the bytes as they came are in event_payload.
func text(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}
