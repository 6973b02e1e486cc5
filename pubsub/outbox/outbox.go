// Package outbox is the Watermill adapter for the transactional outbox in PostgreSQL. Its publisher makes events
// durable, many callers in one transaction; its subscriber moves them into the event log, gives each its position and
// hands them out in that order.
package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/cornjacket/platform-services/event"
)

// Topic is the only topic of the outbox.
const Topic = "outbox"

// channel begins the name of what the subscriber listens on; the rest is the table's own number, so that schemas of one
// database have each their own. A notification carries the ID of the publisher that sent it.
const channel = "cornjacket_outbox_"

// schema maps messages to rows of the outbox for Watermill's SQL publisher. Rows are read by the relay, in its own
// way, so the reading half of the adapter answers with an error.
type schema struct {
	notify func() string // what a notification carries; none is sent if empty
}

var errWriteOnly = errors.New("the outbox is read by its own subscriber")

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

// InsertQuery writes all messages, which must be those of [row], with one statement and one notification.
func (s schema) InsertQuery(_ string, msgs message.Messages) (wsql.Query, error) {
	n := len(msgs)
	ids, times, ingested := make([]pgtype.UUID, n), make([]time.Time, n), make([]time.Time, n)
	types, aggregates, payloads, metadata := make([]string, n), make([]string, n), make([][]byte, n), make([][]byte, n)
	for i, m := range msgs {
		r, ok := m.Context().(*rowContext)
		if !ok {
			return wsql.Query{}, fmt.Errorf("message %s is no row of the outbox", m.UUID)
		}
		e := r.event
		ids[i] = pgtype.UUID{Bytes: e.ID, Valid: true} // uuid.UUID would travel as text
		types[i], aggregates[i], times[i], ingested[i] = e.Type, e.AggregateID, e.Time, e.IngestedAt
		payloads[i], metadata[i] = e.Payload, r.metadata
	}
	return wsql.Query{Query: insertRows, Args: []any{ids, types, aggregates, times, ingested, payloads, metadata, s.notify(), int32(gateClass)}}, nil
}

func (schema) SelectQuery(string, string, wsql.OffsetsAdapter) wsql.Query { return wsql.Query{} }
func (schema) UnmarshalMessage(wsql.Scanner) (wsql.Row, error)            { return wsql.Row{}, errWriteOnly }
func (schema) SchemaInitializingQueries(string) []wsql.Query              { return nil }
func (schema) SubscribeIsolationLevel() sql.IsolationLevel                { return sql.LevelDefault }

// rowContext gives a message that stands for one row its event: a map of texts would be made and read again for each.
type rowContext struct {
	context.Context
	event    *event.Envelope
	metadata []byte
}

// row returns the message that stands for one row. The event must not change until it is written.
func row(e *event.Envelope) (*message.Message, error) {
	metadata, err := e.Metadata.Marshal()
	if err != nil {
		return nil, fmt.Errorf("event %s: %w", e.ID, err)
	}
	m := &message.Message{UUID: e.ID.String(), Payload: message.Payload(e.Payload)} // nobody acknowledges it
	m.SetContext(&rowContext{context.Background(), e, metadata})
	return m, nil
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

func nopIfNil(l watermill.LoggerAdapter) watermill.LoggerAdapter {
	if l == nil {
		return watermill.NopLogger{}
	}
	return l
}
