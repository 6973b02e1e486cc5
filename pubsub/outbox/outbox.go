// Package outbox is the Watermill adapter for the transactional outbox in PostgreSQL. Its publisher makes events
// durable, many callers in one transaction; its subscriber moves them into the event log, gives each its position and
// hands them out in that order.
package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
)

// Topic is the only topic of the outbox.
const Topic = "outbox"

// channel begins the name of what the subscriber listens on; the rest is the table's own number, so that schemas of one
// database have each their own. A notification carries the ID of the publisher that sent it.
const channel = "cornjacket_outbox_"

// gateClass is the advisory lock, of each outbox, that every insert shares from before it draws its first ID until its
// commit. Whoever has it alone knows that all IDs drawn so far are committed or will never be; see [sequencer.raiseFloor].
const gateClass = 0x67617465 // "gate"

const insertRows = `
WITH gate AS MATERIALIZED (
	SELECT pg_advisory_xact_lock_shared($9, 'outbox'::regclass::oid::int)
), stored AS (
	INSERT INTO outbox (event_id, event_type, aggregate_id, event_time, ingested_at, payload, metadata)
	SELECT id, type, aggregate, time, ingested, payload::json, metadata::json
	FROM gate, unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::timestamptz[], $6::text[], $7::text[])
		AS row (id, type, aggregate, time, ingested, payload, metadata)
)
SELECT pg_notify('` + channel + `' || 'outbox'::regclass::oid, $8) WHERE $8 <> ''`

// insert writes events with one statement, and one notification unless that is empty.
func insert(ctx context.Context, db interface {
	Exec(ctx context.Context, query string, args ...any) (pgconn.CommandTag, error)
}, notify string, events []event.Envelope) error {
	n := len(events)
	ids, times, ingested := make([]pgtype.UUID, n), make([]time.Time, n), make([]time.Time, n)
	types, aggregates, payloads, metadata := make([]string, n), make([]string, n), make([][]byte, n), make([][]byte, n)
	for i := range events {
		e := &events[i]
		meta, err := e.Metadata.Marshal()
		if err != nil {
			return fault.Permanent(fmt.Errorf("event %s: %w", e.ID, err))
		}
		ids[i] = pgtype.UUID{Bytes: e.ID, Valid: true} // uuid.UUID would travel as text
		types[i], aggregates[i], times[i], ingested[i] = e.Type, e.AggregateID, e.Time, e.IngestedAt
		payloads[i], metadata[i] = e.Payload, meta
	}
	if _, err := db.Exec(ctx, insertRows, ids, types, aggregates, times, ingested, payloads, metadata, notify, int32(gateClass)); err != nil {
		return fmt.Errorf("put %d events in the outbox: %w", n, err)
	}
	return nil
}

// Message returns an event as it travels: the payload is the whole envelope.
func Message(e *event.Envelope) (*message.Message, error) {
	data, err := e.Marshal()
	if err != nil {
		return nil, err
	}
	m := message.NewMessage(e.ID.String(), data)
	m.Metadata = message.Metadata{
		event.MetaEventType:     e.Type,
		event.MetaAggregateID:   e.AggregateID,
		event.MetaCorrelationID: e.Metadata.CorrelationID,
	}
	if e.Metadata.Traceparent != "" {
		m.Metadata[event.MetaTraceparent] = e.Metadata.Traceparent
	}
	return m, nil
}
