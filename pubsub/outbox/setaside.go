package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
)

// refused tells that the log can't hold a row of the batch. A position that is taken is no fault of a row: it says that
// somebody else has sequenced, and is for a new leader to look at.
func refused(err error) bool {
	const uniqueViolation = "23505"
	var pg *pgconn.PgError
	return fault.Unstorable(err) && errors.As(err, &pg) && pg.Code != uniqueViolation
}

// letter completes an INSERT of dead letters; what it reads from follows. Nothing in it takes a stored value apart: the
// value may be what is wrong.
const letter = `
	INSERT INTO dlq (consumer, event_id, event_type, event_payload, source_topic, source_offset, message_key, error_message,
		correlation_id, bus_topic, position)
	SELECT 'relay', event_id, event_type, convert_to(json_build_object('event_id', event_id, 'event_type', event_type,
		'aggregate_id', aggregate_id, 'event_time', event_time, 'ingested_at', ingested_at, 'payload', payload,
		'metadata', metadata)::text, 'UTF8'), '` + Topic + `', `

// single sequences the first row alone, and makes it a dead letter if the log can't hold it. Each statement names the
// row: one with a smaller ID may be committed at any moment.
func (q *sequencer) single(ctx context.Context) (page, error) {
	id, eventType, correlationID, err := q.first(ctx)
	if errors.Is(err, pgx.ErrNoRows) {
		return page{}, nil
	}
	if err != nil {
		return page{}, fmt.Errorf("read the first event of the outbox: %w", err)
	}
	p, err := q.move(ctx, 1, id, id)
	if err == nil || !refused(err) {
		return p, err
	}
	ctx, cancel := context.WithTimeout(ctx, q.timeout)
	defer cancel()
	_, err2 := q.conn.Exec(ctx, `WITH bad AS (DELETE FROM outbox WHERE id = $1 RETURNING *)`+letter+`
		id, aggregate_id, $2, $3, $4, NULL FROM bad ON CONFLICT DO NOTHING`, id, reason(err), correlationID, deadLetterTopic(eventType))
	if err2 != nil {
		return page{}, fmt.Errorf("set aside event %d of the outbox, which can't be stored: %w", id, err2)
	}
	q.log.Warn("event can't be stored, is now a dead letter", "outbox_id", id, "reason", reason(err))
	return page{}, nil
}

func (q *sequencer) first(ctx context.Context) (id int64, eventType string, correlationID *string, err error) {
	ctx, cancel := context.WithTimeout(ctx, q.timeout)
	defer cancel()
	var metadata []byte
	err = q.conn.QueryRow(ctx, `SELECT id, event_type, metadata::text FROM outbox ORDER BY id LIMIT 1`).Scan(&id, &eventType, &metadata)
	return id, eventType, correlationOf(metadata), err
}

// report makes dead letters of events that are in the log and can't be published. They come up again when another relay
// takes over before the cursor has passed them, and are then known already.
func (s *Subscriber) report(ctx context.Context, events []unreadable) error {
	for _, u := range events {
		if err := s.reportOne(ctx, u); err != nil {
			return fmt.Errorf("set aside the event at position %d, which can't be published: %w", u.position, err)
		}
		s.cfg.Log.Warn("event can't be published, is now a dead letter", "position", u.position, "reason", reason(u.err))
	}
	return nil
}

func (s *Subscriber) reportOne(ctx context.Context, u unreadable) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	_, err := s.pool.Exec(ctx, letter+`position, aggregate_id, $2, $3, $4, position FROM event_store WHERE position = $1
		ON CONFLICT DO NOTHING`, u.position, reason(u.err), u.correlationID, deadLetterTopic(u.eventType))
	return err
}

func deadLetterTopic(eventType string) string { return event.DeadLetterTopic(event.Topic(eventType)) }

// reason is what the database can hold of an error's text.
func reason(err error) string {
	text := err.Error()
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		text = pg.Message
	}
	return strings.ToValidUTF8(strings.ReplaceAll(text, "\x00", ""), "")
}

// correlationOf reads the correlation ID of metadata that may be of any form; nil if it has none that can be stored.
func correlationOf(metadata []byte) *string {
	var m struct {
		CorrelationID string `json:"correlation_id"`
	}
	if json.Unmarshal(metadata, &m) != nil || m.CorrelationID == "" || strings.ContainsRune(m.CorrelationID, 0) {
		return nil
	}
	return &m.CorrelationID
}
