package api

import (
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

func defineQuery(a *API) {
	a.define("Event", envelopeSchema())
	a.define("EventPage", page("Event"))
	a.define("Projection", projectionSchema())
	a.define("ProjectionPage", page("Projection"))
}

func envelopeSchema() *huma.Schema {
	metadata := object("What the platform knows of the event.", []string{"source", "correlation_id", "schema_version"}, map[string]*huma.Schema{
		"source":         text("The door it came through: http, mqtt."),
		"correlation_id": text("Of the request or message that brought it."),
		"traceparent":    text("W3C Trace Context."),
		"schema_version": integer("Of the envelope.", 1),
		"position":       integer("Its place in the log; only grows.", 1),
	})
	metadata.AdditionalProperties = true
	return object("One fact, as it is stored.",
		[]string{"event_id", "event_type", "aggregate_id", "event_time", "ingested_at", "payload", "metadata"},
		map[string]*huma.Schema{
			"event_id":     formatted("uuid", ""),
			"event_type":   text(""),
			"aggregate_id": text("What the event is about."),
			"event_time":   formatted("date-time", "When it happened, in UTC."),
			"ingested_at":  formatted("date-time", "When the platform took it in, in UTC."),
			"payload":      {Type: huma.TypeObject, AdditionalProperties: true},
			"metadata":     metadata,
		})
}

func projectionSchema() *huma.Schema {
	return object("Current state of one aggregate.",
		[]string{"projection_id", "projection_type", "aggregate_id", "state", "last_event_id", "last_event_timestamp", "position", "event_count", "updated_at"},
		map[string]*huma.Schema{
			"projection_id":        formatted("uuid", ""),
			"projection_type":      text(""),
			"aggregate_id":         text(""),
			"state":                {Type: huma.TypeObject, AdditionalProperties: true},
			"last_event_id":        formatted("uuid", "The event that gave the state."),
			"last_event_timestamp": formatted("date-time", "Its event_time, in UTC."),
			"position":             integer("Of the newest event that was applied.", 0),
			"event_count":          integer("How many events the state is made of.", 0),
			"updated_at":           formatted("date-time", "When the state was written, in UTC."),
		})
}

func readProblems(more map[int]string) map[int]string {
	problems := map[int]string{
		http.StatusBadRequest:          "The query string can't be read.",
		http.StatusUnprocessableEntity: "A parameter breaks a rule, or is not known.",
		http.StatusServiceUnavailable:  "Storage is away.",
		http.StatusTooManyRequests:     "More is asked for than can be read.",
	}
	for code, why := range more {
		problems[code] = why
	}
	return problems
}

func typeParam() *huma.Param {
	return pathParam("type", name("Type of the projection, such as sensor_state.", maxType))
}

func getProjectionOperation() *huma.Operation {
	return &huma.Operation{
		OperationID: "get-projection",
		Method:      http.MethodGet,
		Path:        "/api/v1/projections/{type}/{aggregate_id}",
		Tags:        []string{"projections"},
		Summary:     "Current state of one aggregate",
		Parameters: []*huma.Param{
			typeParam(),
			pathParam("aggregate_id", name("What the state is about; percent-encoded.", maxAggregateID)),
			correlationParam(),
		},
		Responses: answers(http.StatusOK, "The state.", ref("Projection"), readProblems(map[int]string{
			http.StatusNotFound: "No event of this aggregate has given such a state yet.",
		})),
	}
}

func listProjectionsOperation() *huma.Operation {
	return &huma.Operation{
		OperationID: "list-projections",
		Method:      http.MethodGet,
		Path:        "/api/v1/projections/{type}",
		Tags:        []string{"projections"},
		Summary:     "Current state of all aggregates",
		Description: "Ordered by aggregate_id.",
		Parameters:  append([]*huma.Param{typeParam(), correlationParam()}, pagingParams()...),
		Responses: answers(http.StatusOK, "One page; empty for a type that has no projections.",
			ref("ProjectionPage"), readProblems(notFoundPath())),
	}
}

// notFoundPath is for operations whose own resource always exists: a path parameter that holds a dot segment or a
// slash makes it another path.
func notFoundPath() map[int]string {
	return map[int]string{http.StatusNotFound: "There is nothing at this path."}
}

func getEventOperation() *huma.Operation {
	return &huma.Operation{
		OperationID: "get-event",
		Method:      http.MethodGet,
		Path:        "/api/v1/events/{event_id}",
		Tags:        []string{"events"},
		Summary:     "One event",
		Parameters:  []*huma.Param{pathParam("event_id", formatted("uuid", "ID of the event.")), correlationParam()},
		Responses: answers(http.StatusOK, "The event.", ref("Event"), readProblems(map[int]string{
			http.StatusNotFound: "There is no such event, or it is not sequenced yet.",
		})),
	}
}

func listEventsOperation() *huma.Operation {
	return &huma.Operation{
		OperationID: "list-events",
		Method:      http.MethodGet,
		Path:        "/api/v1/events",
		Tags:        []string{"events"},
		Summary:     "Events of the log",
		Description: "Newest position first. Filters are joined by and.",
		Parameters: append([]*huma.Param{
			queryParam("aggregate_id", name("Only events about this.", maxAggregateID)),
			queryParam("event_type", name("Only events of this type.", maxType)),
			queryParam("from", formatted("date-time", "Only events with this event_time or a later one.")),
			queryParam("to", formatted("date-time", "Only events with an earlier event_time.")),
			correlationParam(),
		}, pagingParams()...),
		Responses: answers(http.StatusOK, "One page.", ref("EventPage"), readProblems(nil)),
	}
}
