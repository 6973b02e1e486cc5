package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"

	"github.com/cornjacket/platform-services/event"
)

// EventSubmission is an event as it is sent. It only describes one: [event.Parse] reads it. Byte lengths and what is
// printable are beyond a pattern that every tool reads.
type EventSubmission struct {
	EventType   string              `json:"event_type" minLength:"1" maxLength:"128" pattern:"^[a-z0-9_-]*\\.[a-z0-9_.-]*$" doc:"At least one dot. The part before the first dot chooses topic and projection."`
	AggregateID string              `json:"aggregate_id" minLength:"1" maxLength:"256" pattern:"^[^/+#\\x00-\\x1f\\x7f-\\xa0\\xad]+$" doc:"What the event is about; at most 256 bytes of printable UTF-8."`
	Payload     map[string]any      `json:"payload" doc:"At most 256 KiB; some types have a schema."`
	EventTime   string              `json:"event_time,omitempty" format:"date-time" nullable:"true" doc:"When it happened; the time of arrival if absent."`
	EventID     uuid.UUID           `json:"event_id,omitzero" nullable:"true" doc:"Makes repeats harmless; a new one of version 7 if absent."`
	IngestedAt  any                 `json:"ingested_at,omitempty" doc:"Not read: a whole envelope can be sent as it is."`
	Metadata    *SubmissionMetadata `json:"metadata,omitempty"`
}

// SubmissionMetadata is what the sender may say of the event; other members are not read.
type SubmissionMetadata struct {
	_             struct{} `additionalProperties:"true" nullable:"true"`
	CorrelationID string   `json:"correlation_id,omitempty" maxLength:"256" pattern:"^[^\\x00-\\x1f\\x7f-\\xa0\\xad]*$" nullable:"true" doc:"In place of the request's; printable."`
	Traceparent   string   `json:"traceparent,omitempty" nullable:"true" doc:"W3C Trace Context, in place of the request's; dropped if it can't be read."`
}

// Accepted is the answer to an event that is durable.
type Accepted struct {
	EventID uuid.UUID `json:"event_id" doc:"The sender's, or a new one of version 7."`
	Status  string    `json:"status" enum:"accepted"`
}

// BatchResult is what became of a batch.
type BatchResult struct {
	Accepted int         `json:"accepted" minimum:"0" doc:"How many events are durable."`
	Rejected []Rejection `json:"rejected" doc:"Those that were refused, in the order of the batch."`
}

// Rejection is one event of a batch that was refused.
type Rejection struct {
	Index int    `json:"index" minimum:"0" doc:"Place in the batch, from 0."`
	Error string `json:"error" doc:"The field, and what it must be."`
}

// TransformSchema adds the payload schemas to the document, and says which type of event has which; see
// [huma.SchemaTransformer]. The files are part of the program: one that can't be read is a bug.
func (*EventSubmission) TransformSchema(r huma.Registry, s *huma.Schema) *huma.Schema {
	files, err := event.Schemas.ReadDir("schemas")
	if err != nil {
		panic(fmt.Errorf("read payload schemas: %w", err))
	}
	rules := make([]any, 0, len(files))
	for _, f := range files {
		data, err := event.Schemas.ReadFile(path.Join("schemas", f.Name()))
		if err != nil {
			panic(fmt.Errorf("read payload schema: %w", err))
		}
		var schema map[string]any
		if err := json.Unmarshal(data, &schema); err != nil {
			panic(fmt.Errorf("parse payload schema %s: %w", f.Name(), err))
		}
		delete(schema, "$schema") // the dialect of the document
		eventType := strings.TrimSuffix(f.Name(), ".json")
		r.Map()[eventType] = &huma.Schema{Extensions: schema}
		rules = append(rules, map[string]any{
			"if":   map[string]any{"properties": map[string]any{"event_type": map[string]any{"const": eventType}}},
			"then": map[string]any{"properties": map[string]any{"payload": ref(eventType)}},
		})
	}
	s.Extensions = map[string]any{"allOf": rules}
	s.Examples = []any{map[string]any{
		"event_type": "sensor.reading", "aggregate_id": "device-001",
		"payload": map[string]any{"value": 72.5, "unit": "fahrenheit"},
	}}
	return s
}

// postOperation describes an operation that takes events in; problems are told by their status.
func postOperation(id, path, summary, description string, success *huma.Schema, body *huma.RequestBody, texts map[int]string) *huma.Operation {
	texts[http.StatusTooManyRequests] = "More is coming in than can be stored."
	texts[http.StatusServiceUnavailable] = "Storage is away. What was sent may have been stored: repeat it with the same event_id."
	op := &huma.Operation{
		OperationID: id, Method: http.MethodPost, Path: path, Tags: []string{"events"}, Summary: summary, Description: description,
		Parameters: []*huma.Param{{
			Name: "traceparent", In: "header", Schema: &huma.Schema{Type: huma.TypeString},
			Description: "W3C Trace Context; stored with the event. Dropped if it can't be read.",
		}},
		RequestBody: body, Responses: explain(texts),
	}
	body.Required = true
	op.Responses["202"].Content = map[string]*huma.MediaType{mediaJSON: {Schema: success}}
	return op
}

func postEventOperation(a *API) *huma.Operation {
	return postOperation("post-event", "/api/v1/events", "Submit an event",
		"Answers once the event is durable. An event_id that was sent before has no second effect.", schemaFor[Accepted](a),
		&huma.RequestBody{
			Description: "At most 1 MiB with its white space.",
			Content:     map[string]*huma.MediaType{mediaJSON: {Schema: schemaFor[EventSubmission](a)}},
		},
		map[int]string{
			http.StatusAccepted:              "The event is durable.",
			http.StatusBadRequest:            "The body is not JSON, or a field has the wrong JSON type.",
			http.StatusRequestEntityTooLarge: "The event is over 1 MiB, or its payload over 256 KiB.",
			http.StatusUnsupportedMediaType:  "The body is not application/json, or it is compressed.",
			http.StatusUnprocessableEntity:   "The event breaks a rule.",
		})
}

func postBatchOperation(a *API) *huma.Operation {
	one := 1
	array := &huma.Schema{Type: huma.TypeArray, MinItems: &one, Items: &huma.Schema{
		AnyOf: []*huma.Schema{schemaFor[EventSubmission](a), {Description: "Anything else is rejected alone."}},
	}}
	lines := &huma.MediaType{Schema: &huma.Schema{Type: huma.TypeString, Description: "One event a line, each like an element of the array."}}
	return postOperation("post-event-batch", "/api/v1/events/batch", "Submit many events",
		"Answers once all accepted events are durable. An event that breaks a rule is rejected alone.", schemaFor[BatchResult](a),
		&huma.RequestBody{
			Description: "At most 10,000 events and 32 MiB.",
			Content:     map[string]*huma.MediaType{mediaJSON: {Schema: array}, "application/x-ndjson": lines, "application/jsonl": lines},
		},
		map[int]string{
			http.StatusAccepted:              "All accepted events are durable.",
			http.StatusBadRequest:            "The body can't be taken apart: not a JSON array, or not NDJSON.",
			http.StatusRequestEntityTooLarge: "The batch is over 10,000 events or 32 MiB.",
			http.StatusUnsupportedMediaType:  "The body is neither application/json nor NDJSON, or it is compressed.",
			http.StatusUnprocessableEntity:   "The batch is empty.",
		})
}
