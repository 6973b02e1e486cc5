package event

import (
	"fmt"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// Marshal returns the envelope as compact JSON: what [json.Marshal] returns for it, without finding out each time which
// members it has. The payload stays as it was accepted, byte for byte.
func (e *Envelope) Marshal() ([]byte, error) {
	b := make([]byte, 0, 384+len(e.Payload))
	b = append(b, `{"event_id":"`...)
	b = append(b, e.ID.String()...)
	b = append(b, `","event_type":`...)
	b, err := jsontext.AppendQuote(b, e.Type)
	if err != nil {
		return nil, e.unencodable("event_type", err)
	}
	b = append(b, `,"aggregate_id":`...)
	if b, err = jsontext.AppendQuote(b, e.AggregateID); err != nil {
		return nil, e.unencodable("aggregate_id", err)
	}
	if b, err = appendTime(append(b, `,"event_time":`...), e.Time); err != nil {
		return nil, e.unencodable("event_time", err)
	}
	if b, err = appendTime(append(b, `,"ingested_at":`...), e.IngestedAt); err != nil {
		return nil, e.unencodable("ingested_at", err)
	}
	b = append(b, `,"payload":`...)
	if b, err = jsontext.AppendFormat(b, orNull(e.Payload), jsontext.PreserveRawStrings(true)); err != nil {
		return nil, e.unencodable("payload", err)
	}
	if b, err = e.Metadata.append(append(b, `,"metadata":`...)); err != nil {
		return nil, e.unencodable("metadata", err)
	}
	return append(b, '}'), nil
}

func (e *Envelope) unencodable(field string, err error) error {
	return fmt.Errorf("encode event %s: %s: %w", e.ID, field, err)
}

// Marshal returns the metadata as compact JSON.
func (m *Metadata) Marshal() ([]byte, error) {
	b, err := m.append(make([]byte, 0, 192))
	if err != nil {
		return nil, fmt.Errorf("encode metadata: %w", err)
	}
	return b, nil
}

func (m *Metadata) append(b []byte) ([]byte, error) {
	b, err := jsontext.AppendQuote(append(b, `{"source":`...), m.Source)
	if err != nil {
		return nil, err
	}
	if b, err = jsontext.AppendQuote(append(b, `,"correlation_id":`...), m.CorrelationID); err != nil {
		return nil, err
	}
	if m.Traceparent != "" {
		if b, err = jsontext.AppendQuote(append(b, `,"traceparent":`...), m.Traceparent); err != nil {
			return nil, err
		}
	}
	b = strconv.AppendInt(append(b, `,"schema_version":`...), int64(m.SchemaVersion), 10)
	if m.DeviceTime != "" {
		if b, err = jsontext.AppendQuote(append(b, `,"device_time":`...), m.DeviceTime); err != nil {
			return nil, err
		}
	}
	if m.Clock != "" {
		if b, err = jsontext.AppendQuote(append(b, `,"clock":`...), m.Clock); err != nil {
			return nil, err
		}
	}
	if m.Position != 0 {
		b = strconv.AppendInt(append(b, `,"position":`...), m.Position, 10)
	}
	return append(b, '}'), nil
}

// appendTime appends a time as RFC 3339 text.
func appendTime(b []byte, t time.Time) ([]byte, error) {
	b, err := t.AppendText(append(b, '"'))
	return append(b, '"'), err
}

func orNull(v jsontext.Value) jsontext.Value {
	if len(v) == 0 {
		return jsontext.Value("null")
	}
	return v
}
