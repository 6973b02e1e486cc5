// Package outbox is the Watermill adapter for the transactional outbox in PostgreSQL. Its publisher makes events
// durable, many callers in one transaction; its subscriber moves them into the event log, gives each its position and
// hands them out in that order.
package outbox

import (
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/go-json-experiment/json"

	"github.com/cornjacket/platform-services/event"
)

// Topic is the only topic of the outbox.
const Topic = "outbox"

// channel is what the subscriber listens on; a notification carries the ID of the publisher that sent it.
const channel = "cornjacket_outbox"

// Metadata of a message that stands for one row; its payload is the event's payload alone.
const (
	rowIngestedAt = "ingested_at"
	rowMetadata   = "metadata"
)

// schema maps messages to rows of the outbox for Watermill's SQL publisher. Rows are read by the relay, in its own
// way, so the reading half of the adapter answers with an error.
type schema struct {
	notify func() string // what a notification carries; none is sent if empty
}

var errWriteOnly = errors.New("the outbox is read by its own subscriber")

// gateKey is the advisory lock that every insert shares from before it draws its first ID until its commit. Whoever has
// it alone knows that all IDs drawn so far are committed or will never be; see [sequencer.raiseFloor].
const gateKey = 0x6f7574626f78 // "outbox"

const insertRows = `
WITH gate AS MATERIALIZED (
	SELECT pg_advisory_xact_lock_shared($9)
), stored AS (
	INSERT INTO outbox (event_id, event_type, aggregate_id, event_time, ingested_at, payload, metadata)
	SELECT id::uuid, type, aggregate, time::timestamptz, ingested::timestamptz, payload::json, metadata::json
	FROM gate, unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
		AS row (id, type, aggregate, time, ingested, payload, metadata)
)
SELECT pg_notify('` + channel + `', $8) WHERE $8 <> ''`

// InsertQuery writes all messages with one statement and one notification.
func (s schema) InsertQuery(_ string, msgs message.Messages) (wsql.Query, error) {
	var columns [7][]string
	for i := range columns {
		columns[i] = make([]string, len(msgs))
	}
	for i, m := range msgs {
		columns[0][i] = m.UUID
		columns[1][i] = m.Metadata[event.MetaEventType]
		columns[2][i] = m.Metadata[event.MetaAggregateID]
		columns[3][i] = m.Metadata[event.MetaEventTime]
		columns[4][i] = m.Metadata[rowIngestedAt]
		columns[5][i] = string(m.Payload)
		columns[6][i] = m.Metadata[rowMetadata]
	}
	args := make([]any, 0, len(columns)+1)
	for _, c := range columns {
		args = append(args, c)
	}
	return wsql.Query{Query: insertRows, Args: append(args, s.notify(), int64(gateKey))}, nil
}

func (schema) SelectQuery(string, string, wsql.OffsetsAdapter) wsql.Query { return wsql.Query{} }
func (schema) UnmarshalMessage(wsql.Scanner) (wsql.Row, error)            { return wsql.Row{}, errWriteOnly }
func (schema) SchemaInitializingQueries(string) []wsql.Query              { return nil }
func (schema) SubscribeIsolationLevel() sql.IsolationLevel                { return sql.LevelDefault }

// row returns the message that stands for one row.
func row(e *event.Envelope) (*message.Message, error) {
	metadata, err := json.Marshal(e.Metadata)
	if err != nil {
		return nil, fmt.Errorf("encode metadata of event %s: %w", e.ID, err)
	}
	m := message.NewMessage(e.ID.String(), message.Payload(e.Payload))
	m.Metadata = message.Metadata{
		event.MetaEventType:   e.Type,
		event.MetaAggregateID: e.AggregateID,
		event.MetaEventTime:   e.Time.Format(time.RFC3339Nano),
		rowIngestedAt:         e.IngestedAt.Format(time.RFC3339Nano),
		rowMetadata:           string(metadata),
	}
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
