package api

import (
	"net/http"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/danielgtaylor/huma/v2"
)

func defineDeadLetters(a *API, consumers []string) {
	a.define("DeadLetter", letterSchema(consumers))
	a.define("DeadLetterPage", page("DeadLetter"))
	a.define("BulkReplay", replaySchema(consumers))
	a.define("BulkReplayPage", page("BulkReplay"))
	a.define("DryRun", object("What a bulk replay would be about.", []string{"dry_run", "matched"}, map[string]*huma.Schema{
		"dry_run": {Type: huma.TypeBoolean},
		"matched": integer("Pending dead letters that match.", 0),
	}))
	a.define("ReplayEdit", object("What the replay uses in place of what is stored.", nil, map[string]*huma.Schema{
		"payload": {Description: "The bytes that the consumer is given. A string stands for the text in it, or what encoding says; any other JSON value for itself."},
		"encoding": choice("How a payload that is a string holds the bytes; text by default.",
			encodingText, encodingJSON, encodingBase64),
		"topic": name("MQTT topic, for letters of ingestion; with events the payload is an envelope, and says everything itself.", maxTopic),
	}))
	a.define("Discard", object("", nil, map[string]*huma.Schema{
		"reason": text("Why; kept with the dead letter. At most 1,024 bytes."),
	}))
	rate := &huma.Schema{Type: huma.TypeNumber, Description: "Most letters a second.", Default: defaultRate}
	least, most := 0.01, float64(maxRate)
	rate.Minimum, rate.Maximum = &least, &most
	properties := filterSchemas(consumers)
	properties["status"] = constant(deadletter.Pending, "Others can't be replayed.")
	properties["rate"] = rate
	properties["dry_run"] = &huma.Schema{Type: huma.TypeBoolean, Description: "Count only."}
	a.define("BulkReplayRequest", object("Which letters, and how fast. Without filters it is all that are pending.", nil, properties))
}

func choice(description string, values ...string) *huma.Schema {
	s := text(description)
	for _, v := range values {
		s.Enum = append(s.Enum, v)
	}
	return s
}

func moment(description string) *huma.Schema { return formatted("date-time", description) }

func letterSchema(consumers []string) *huma.Schema {
	return object("A message that its consumer could not handle.",
		[]string{"dlq_id", "consumer", "status", "event_id", "error_message", "failed_at", "retry_count", "source_topic", "bus_topic",
			"event_payload", "payload_encoding", "payload_bytes"},
		map[string]*huma.Schema{
			"dlq_id":           formatted("uuid", ""),
			"consumer":         choice("Who could not handle it.", consumers...),
			"status":           choice("", deadletter.Pending, deadletter.Replayed, deadletter.Discarded),
			"event_id":         nullable(formatted("uuid", "Null if it could not be read.")),
			"event_type":       text("Absent if it could not be read."),
			"error_message":    text("Why, the last time."),
			"failed_at":        moment("When it became a dead letter."),
			"retry_count":      integer("Attempts after the first, replays among them.", 0),
			"retried_at":       moment("The last replay that was refused."),
			"replayed_at":      moment("When its consumer has applied it."),
			"discarded_at":     moment("When it was discarded."),
			"reason":           text("Why it is not pending any more."),
			"source_topic":     text("Where it was read: a topic of the bus, an MQTT topic, outbox."),
			"source_partition": {Type: huma.TypeInteger},
			"source_offset":    {Type: huma.TypeInteger, Format: "int64"},
			"message_key":      text("The aggregate ID, where there is one."),
			"correlation_id":   text(""),
			"position":         integer("Of the event in the log.", 1),
			"bus_topic":        text("The topic on which the dead letter is published too."),
			"published_at":     moment("When it was published there."),
			"event_payload":    text("The bytes as they came. In a list only the first 1,024."),
			"payload_encoding": choice("json: a text that is JSON. text: another one. base64: bytes that are no UTF-8 text.",
				encodingJSON, encodingText, encodingBase64),
			"payload_bytes":     integer("Size of the payload.", 0),
			"payload_truncated": {Type: huma.TypeBoolean, Description: "There is more of the payload than is shown."},
			"properties": {Type: huma.TypeObject, Description: "What the sender of an MQTT message gave beside its body.",
				AdditionalProperties: text("")},
			"edited_payload":          text("What was replayed in place of it. Not in a list."),
			"edited_payload_encoding": choice("", encodingJSON, encodingText, encodingBase64),
			"edited_topic":            text("The MQTT topic under which it was replayed, if that was edited."),
		})
}

func replaySchema(consumers []string) *huma.Schema {
	properties := filterSchemas(consumers)
	properties["status"] = constant(deadletter.Pending, "")
	return object("A bulk replay: a set of letters that was frozen when it began, and how far it is.",
		[]string{"replay_id", "status", "filter", "rate", "total", "replayed", "failed", "skipped", "remaining", "created_at"},
		map[string]*huma.Schema{
			"replay_id": formatted("uuid", ""),
			"status": choice("interrupted: who ran it has gone; it goes on by itself.", deadletter.ReplayQueued, deadletter.ReplayRunning,
				deadletter.ReplayInterrupted, deadletter.ReplayDone, deadletter.ReplayCancelled),
			"filter":      object("What it was asked for.", nil, properties),
			"rate":        {Type: huma.TypeNumber, Description: "Most letters a second."},
			"total":       integer("Letters of the set.", 0),
			"replayed":    integer("Applied by their consumers.", 0),
			"failed":      integer("Refused again; they are still pending.", 0),
			"skipped":     integer("Not pending any more when their turn came.", 0),
			"remaining":   integer("Without a turn yet; those of a cancelled one are still pending.", 0),
			"last_error":  text("Why the last one was refused."),
			"created_at":  moment(""),
			"finished_at": moment(""),
		})
}

func filterSchemas(consumers []string) map[string]*huma.Schema {
	return map[string]*huma.Schema{
		"consumer":   choice("Only letters of this consumer.", consumers...),
		"event_id":   formatted("uuid", "Only letters of this event."),
		"event_type": name("Only letters of events of this type.", maxType),
		"topic":      name("Only letters that were read from this topic.", maxTopic),
		"error":      name("Only letters with this in their error message, in any case.", maxReason),
		"from":       moment("Only letters that failed at this time or later."),
		"to":         moment("Only letters that failed earlier."),
	}
}

// filterParams are the same filters as parameters.
func filterParams(consumers []string, statuses ...string) []*huma.Param {
	schemas := filterSchemas(consumers)
	schemas["status"] = choice("Only letters with this status.", statuses...)
	params := make([]*huma.Param, 0, len(filterNames))
	for _, name := range filterNames {
		params = append(params, queryParam(name, schemas[name]))
	}
	return params
}

func letterParam() *huma.Param {
	return pathParam("id", formatted("uuid", "The dlq_id of a dead letter."))
}

func replayParam() *huma.Param {
	return pathParam("replay_id", formatted("uuid", "ID of a bulk replay."))
}

func letterOperation(method, path, id, summary, description string, params []*huma.Param, responses map[string]*huma.Response) *huma.Operation {
	return &huma.Operation{
		OperationID: id, Method: method, Path: "/api/v1/dlq" + path, Tags: []string{"dead letters"}, Summary: summary,
		Description: description, Parameters: append(params, correlationParam()), Responses: responses,
	}
}

func optionalBody(schema, description string) *huma.RequestBody {
	return &huma.RequestBody{Description: description, Content: map[string]*huma.MediaType{mediaJSON: {Schema: ref(schema)}}}
}

// changeProblems are those of an operation that has a body and changes something.
func changeProblems(more map[int]string) map[int]string {
	problems := map[int]string{
		http.StatusBadRequest:            "The body is not JSON, a member has the wrong JSON type, or the query string can't be read.",
		http.StatusRequestTimeout:        "The body did not arrive in time.",
		http.StatusRequestEntityTooLarge: "The body is over 2 MiB.",
		http.StatusUnsupportedMediaType:  "The body is not application/json, or it is compressed.",
		http.StatusUnprocessableEntity:   "A parameter or a member of the body breaks a rule, or is not known.",
		http.StatusTooManyRequests:       "More is being received than can be held.",
		http.StatusServiceUnavailable:    "Storage is away. It is not known whether anything was done; asking again is safe.",
	}
	for code, why := range more {
		problems[code] = why
	}
	return problems
}

func noLetter(more map[int]string) map[int]string {
	problems := map[int]string{http.StatusNotFound: "There is no such dead letter of this service."}
	for code, why := range more {
		problems[code] = why
	}
	return problems
}

func listLettersOperation(consumers []string) *huma.Operation {
	return letterOperation(http.MethodGet, "", "list-dead-letters", "Dead letters of this service",
		"Newest first. Filters are joined by and.",
		append(filterParams(consumers, deadletter.Pending, deadletter.Replayed, deadletter.Discarded), pagingParams()...),
		answers(http.StatusOK, "One page.", ref("DeadLetterPage"), readProblems(nil)))
}

func getLetterOperation() *huma.Operation {
	return letterOperation(http.MethodGet, "/{id}", "get-dead-letter", "One dead letter, with its whole payload", "",
		[]*huma.Param{letterParam()}, answers(http.StatusOK, "The dead letter.", ref("DeadLetter"), readProblems(noLetter(nil))))
}

func replayLetterOperation() *huma.Operation {
	op := letterOperation(http.MethodPost, "/{id}/replay", "replay-dead-letter", "Replay a dead letter",
		"Gives it to the one consumer that could not handle it. It is marked as replayed in the transaction that applies it, so that it has one effect however often this is asked for.",
		[]*huma.Param{letterParam()},
		answers(http.StatusOK, "The consumer has applied it.", ref("DeadLetter"), changeProblems(noLetter(map[int]string{
			http.StatusConflict:            "It is not pending any more, and nothing was done; or only a rebuild of the projection can mend it.",
			http.StatusUnprocessableEntity: "The consumer has refused it again, and it is still pending; or the request breaks a rule.",
		}))))
	op.RequestBody = optionalBody("ReplayEdit", "An edited payload; what is stored stays as it came.")
	return op
}

func discardLetterOperation() *huma.Operation {
	op := letterOperation(http.MethodPost, "/{id}/discard", "discard-dead-letter", "Discard a dead letter",
		"It stays in the table and is not pending any more.", []*huma.Param{letterParam()},
		answers(http.StatusOK, "It is discarded.", ref("DeadLetter"), changeProblems(noLetter(map[int]string{
			http.StatusConflict: "It is not pending any more, and nothing was done.",
		}))))
	op.RequestBody = optionalBody("Discard", "")
	return op
}

func bulkReplayOperation(consumers []string) *huma.Operation {
	responses := answers(http.StatusAccepted, "It runs in the background.", ref("BulkReplay"), changeProblems(notFoundPath()))
	responses["202"].Headers["Location"] = &huma.Header{Required: true, Schema: text(""), Description: "Where to ask how far it is."}
	responses["200"] = &huma.Response{
		Description: "A dry run: nothing was done.", Headers: answerHeaders(http.StatusOK),
		Content: map[string]*huma.MediaType{mediaJSON: {Schema: ref("DryRun")}},
	}
	op := letterOperation(http.MethodPost, "/replay", "replay-dead-letters", "Replay all dead letters that match",
		"The set is frozen now; a letter that waits in another bulk replay is left to that. Letters go one by one, in the order of their sources. One that is refused again stays pending and stops no other.",
		filterParams(consumers, deadletter.Pending), responses)
	op.RequestBody = optionalBody("BulkReplayRequest", "Filters can be here or in the query.")
	return op
}

func listReplaysOperation() *huma.Operation {
	return letterOperation(http.MethodGet, "/replays", "list-bulk-replays", "Bulk replays of this service", "Newest first, of the last 30 days.",
		pagingParams()[:1], answers(http.StatusOK, "The newest ones.", ref("BulkReplayPage"), readProblems(nil)))
}

func getReplayOperation() *huma.Operation {
	return letterOperation(http.MethodGet, "/replays/{replay_id}", "get-bulk-replay", "How far a bulk replay is", "",
		[]*huma.Param{replayParam()}, answers(http.StatusOK, "The bulk replay.", ref("BulkReplay"), readProblems(noReplay())))
}

func cancelReplayOperation() *huma.Operation {
	return letterOperation(http.MethodPost, "/replays/{replay_id}/cancel", "cancel-bulk-replay", "Cancel a bulk replay",
		"Letters that have not had their turn stay pending. One that has ended stays as it is.",
		[]*huma.Param{replayParam()}, answers(http.StatusOK, "The bulk replay as it is now.", ref("BulkReplay"), readProblems(noReplay())))
}

func noReplay() map[int]string {
	return map[int]string{http.StatusNotFound: "There is no such bulk replay of this service."}
}
