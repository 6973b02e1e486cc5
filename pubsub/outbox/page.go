package outbox

import (
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/batch"
)

// page is events of the log that were read together: the readable ones of them, in order.
type page struct {
	records    []batch.Record
	last       int64 // newest position, of whatever kind
	taken      int   // rows, with those that were in the log already
	bytes      int   // payloads of all rows
	unreadable []unreadable
}

// unreadable is an event of the log that can't be put in an envelope.
type unreadable struct {
	position      int64
	eventType     string
	correlationID *string
	err           error
}

// join appends the page behind this one.
func (p *page) join(q page) {
	p.records, p.unreadable = append(p.records, q.records...), append(p.unreadable, q.unreadable...)
	p.last, p.taken, p.bytes = q.last, p.taken+q.taken, p.bytes+q.bytes
}

// collect reads rows into records, leaving out events that were in the log already.
func collect(rows pgx.Rows) (page, error) {
	defer rows.Close()
	var p page
	for rows.Next() {
		var (
			e                 event.Envelope
			at, ingested      pgtype.Timestamptz
			payload, metadata pgtype.DriverBytes // of the row alone
			fresh             bool
		)
		err := rows.Scan(&p.last, (*[16]byte)(&e.ID), &e.Type, &e.AggregateID, &at, &ingested, &payload, &metadata, &fresh)
		if err != nil {
			return page{}, fmt.Errorf("read event: %w", err)
		}
		p.taken++
		p.bytes += len(payload)
		if !fresh {
			continue
		}
		e.Payload = jsontext.Value(payload)
		record, err := readable(&e, at, ingested, metadata, p.last)
		if err != nil {
			p.unreadable = append(p.unreadable, unreadable{p.last, e.Type, correlationOf(metadata), err})
			continue
		}
		p.records = append(p.records, record)
	}
	if err := rows.Err(); err != nil {
		return page{}, fmt.Errorf("read events: %w", err)
	}
	return p, nil
}

// readable completes an envelope and returns the event as it travels: the value is the whole envelope. Its error is
// about the event alone.
func readable(e *event.Envelope, at, ingested pgtype.Timestamptz, metadata []byte, position int64) (batch.Record, error) {
	if at.InfinityModifier != pgtype.Finite || ingested.InfinityModifier != pgtype.Finite {
		return batch.Record{}, fmt.Errorf("event %s has an infinite time", e.ID)
	}
	e.Time, e.IngestedAt = at.Time.UTC(), ingested.Time.UTC()
	if err := json.Unmarshal(metadata, &e.Metadata); err != nil {
		return batch.Record{}, fmt.Errorf("read metadata of event %s: %w", e.ID, err)
	}
	e.Metadata.Position = position
	value, err := e.Marshal()
	if err != nil {
		return batch.Record{}, err
	}
	headers := make([]batch.Header, 2, 3)
	headers[0] = batch.Header{Key: event.MetaCorrelationID, Value: e.Metadata.CorrelationID}
	headers[1] = batch.Header{Key: event.MetaEventType, Value: e.Type}
	if e.Metadata.Traceparent != "" {
		headers = append(headers, batch.Header{Key: event.MetaTraceparent, Value: e.Metadata.Traceparent})
	}
	return batch.Record{Topic: Topic, Partition: -1, Offset: position, Key: e.AggregateID, ID: e.ID.String(), Value: value, Headers: headers}, nil
}
