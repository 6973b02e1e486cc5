package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cornjacket/platform-services/event"
)

// Patterns of the names; byte lengths and what is printable are beyond a pattern that every tool reads.
const (
	typePattern        = `^[a-z0-9_-]*\.[a-z0-9_.-]*$`
	correlationPattern = `^[^\x00-\x1f\x7f-\xa0\xad]*$`
	aggregatePattern   = `^[^/+#\x00-\x1f\x7f-\xa0\xad]+$`
)

func defineIngestion(a *API) {
	a.define("EventSubmission", submissionSchema(a))
	a.define("Accepted", object("The event is durable.", []string{"event_id", "status"}, map[string]*huma.Schema{
		"event_id": formatted("uuid", "The sender's, or a new one of version 7."),
		"status":   constant("accepted", ""),
	}))
	a.define("BatchResult", object("What became of a batch.", []string{"accepted", "rejected"}, map[string]*huma.Schema{
		"accepted": integer("How many events are durable.", 0),
		"rejected": {Type: huma.TypeArray, Description: "Those that were refused, in the order of the batch.",
			Items: object("", []string{"index", "error"}, map[string]*huma.Schema{
				"index": integer("Place in the batch, from 0.", 0),
				"error": text("The field, and what it must be."),
			})},
	}))
}

func submissionSchema(a *API) *huma.Schema {
	eventType := bounded("At least one dot. The part before the first dot chooses topic and projection.", 1, event.MaxEventType)
	eventType.Pattern = typePattern
	aggregateID := bounded("What the event is about; at most 256 bytes of printable UTF-8.", 1, event.MaxAggregateID)
	aggregateID.Pattern = aggregatePattern
	correlationID := nullable(bounded("In place of the request's; printable.", 0, event.MaxHeader))
	correlationID.Pattern = correlationPattern
	s := object("One fact.", []string{"event_type", "aggregate_id", "payload"}, map[string]*huma.Schema{
		"event_type":   eventType,
		"aggregate_id": aggregateID,
		"payload":      {Type: huma.TypeObject, Description: "At most 256 KiB; some types have a schema.", AdditionalProperties: true},
		"event_time":   nullable(formatted("date-time", "When it happened; the time of arrival if absent.")),
		"event_id":     nullable(formatted("uuid", "Makes repeats harmless; a new one of version 7 if absent.")),
		"ingested_at":  {Description: "Not read: a whole envelope can be sent as it is."},
		"metadata": {Type: huma.TypeObject, Nullable: true, Description: "What the sender may say of the event; other members are not read.",
			Properties: map[string]*huma.Schema{
				"correlation_id": correlationID,
				"traceparent":    nullable(text("W3C Trace Context, in place of the request's; dropped if it can't be read.")),
			}},
	})
	s.Examples = []any{map[string]any{
		"event_type": "sensor.reading", "aggregate_id": "device-001",
		"payload": map[string]any{"value": 72.5, "unit": "fahrenheit"},
	}}
	s.Extensions = map[string]any{"allOf": payloadRules(a)}
	return s
}

// payloadRules adds the payload schemas to the document, and says which type of event has which. The files are part of
// the program: one that can't be read is a bug.
func payloadRules(a *API) []any {
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
		a.define(eventType, &huma.Schema{Extensions: schema})
		rules = append(rules, map[string]any{
			"if":   map[string]any{"properties": map[string]any{"event_type": map[string]any{"const": eventType}}},
			"then": map[string]any{"properties": map[string]any{"payload": ref(eventType)}},
		})
	}
	return rules
}

func ingestProblems(unreadable, tooLarge, mediaType, invalid string) map[int]string {
	return map[int]string{
		http.StatusBadRequest:            unreadable,
		http.StatusRequestTimeout:        "The body did not arrive in time.",
		http.StatusRequestEntityTooLarge: tooLarge,
		http.StatusUnsupportedMediaType:  mediaType,
		http.StatusUnprocessableEntity:   invalid,
		http.StatusTooManyRequests:       "More is coming in than can be stored.",
		http.StatusServiceUnavailable:    "Storage is away. What was sent may have been stored: repeat it with the same event_id.",
	}
}

func ingestParams() []*huma.Param {
	return []*huma.Param{
		correlationParam(),
		headerParam("traceparent", "W3C Trace Context; stored with the event. Dropped if it can't be read."),
	}
}

func postEventOperation() *huma.Operation {
	return &huma.Operation{
		OperationID: "post-event",
		Method:      http.MethodPost,
		Path:        "/api/v1/events",
		Tags:        []string{"events"},
		Summary:     "Submit an event",
		Description: "Answers once the event is durable. An event_id that was sent before has no second effect.",
		Parameters:  ingestParams(),
		RequestBody: &huma.RequestBody{
			Required:    true,
			Description: "At most 1 MiB with its white space.",
			Content:     map[string]*huma.MediaType{mediaJSON: {Schema: ref("EventSubmission")}},
		},
		Responses: answers(http.StatusAccepted, "The event is durable.", ref("Accepted"), ingestProblems(
			"The body is not JSON, or a field has the wrong JSON type.",
			"The event is over 1 MiB, or its payload over 256 KiB.",
			"The body is not application/json, or it is compressed.",
			"The event breaks a rule.",
		)),
	}
}

func postBatchOperation() *huma.Operation {
	one := 1
	array := &huma.Schema{Type: huma.TypeArray, MinItems: &one, Items: &huma.Schema{
		AnyOf: []*huma.Schema{ref("EventSubmission"), {Description: "Anything else is rejected alone."}},
	}}
	lines := text("One event a line, each like an element of the array.")
	return &huma.Operation{
		OperationID: "post-event-batch",
		Method:      http.MethodPost,
		Path:        "/api/v1/events/batch",
		Tags:        []string{"events"},
		Summary:     "Submit many events",
		Description: "Answers once all accepted events are durable. An event that breaks a rule is rejected alone.",
		Parameters:  ingestParams(),
		RequestBody: &huma.RequestBody{
			Required:    true,
			Description: "At most 10,000 events and 32 MiB.",
			Content: map[string]*huma.MediaType{
				mediaJSON:              {Schema: array},
				"application/x-ndjson": {Schema: lines},
				"application/jsonl":    {Schema: lines},
			},
		},
		Responses: answers(http.StatusAccepted, "All accepted events are durable.", ref("BatchResult"), ingestProblems(
			"The body can't be taken apart: not a JSON array, or not NDJSON.",
			"The batch is over 10,000 events or 32 MiB.",
			"The body is neither application/json nor NDJSON, or it is compressed.",
			"The batch is empty.",
		)),
	}
}
