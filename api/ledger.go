package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/ledger"
	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"
)

// Accounts say where events are. Its methods are called concurrently and must return soon after ctx ends. Errors:
// [fault.ErrNotFound], [fault.ErrUnavailable]; any other is a bug.
type Accounts interface {
	// Ledger counts all events by where they are. It may be a little old.
	Ledger(ctx context.Context) (ledger.Ledger, error)
	// Journey returns where one event has been, or fault.ErrNotFound.
	Journey(ctx context.Context, id uuid.UUID) (ledger.Journey, error)
}

// LedgerConfig configures [MountLedger].
type LedgerConfig struct {
	Accounts Accounts
	Log      *slog.Logger  // slog.Default() if nil
	Timeout  time.Duration // how long one request may read; 10 s if zero
}

type accounts struct{ cfg LedgerConfig }

// MountLedger adds the ledger and the journeys of events to the API of a port.
func MountLedger(a *API, cfg LedgerConfig) {
	cfg.Log = orDefault(cfg.Log)
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	s := &accounts{cfg}
	defineLedger(a)
	a.handle(getLedgerOperation(), s.getLedger)
	a.handle(getJourneyOperation(), s.getJourney)
}

func (s *accounts) getLedger(w http.ResponseWriter, r *http.Request, _ url.Values) error {
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.Timeout)
	defer cancel()
	l, err := s.cfg.Accounts.Ledger(ctx)
	if err != nil {
		return away(err)
	}
	return writeJSON(w, http.StatusOK, &l)
}

func (s *accounts) getJourney(w http.ResponseWriter, r *http.Request, _ url.Values) error {
	id, err := uuidOf(r, "event_id")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.Timeout)
	defer cancel()
	j, err := s.cfg.Accounts.Journey(ctx, id)
	if errors.Is(err, fault.ErrNotFound) {
		return newProblem(http.StatusNotFound, fmt.Sprintf("there is no event %s, and no dead letter of one", id))
	}
	if err != nil {
		return away(err)
	}
	return writeJSON(w, http.StatusOK, &j)
}

// away says of a dependency that does not answer only that: nothing was sent that could have been stored.
func away(err error) error {
	if errors.Is(err, fault.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		p := newProblem(http.StatusServiceUnavailable, "a database cannot be reached now, try again later")
		p.retryAfter = 2
		return p
	}
	return err
}

func getLedgerOperation() *huma.Operation {
	return &huma.Operation{
		OperationID: "get-ledger",
		Method:      http.MethodGet,
		Path:        "/api/v1/ledger",
		Tags:        []string{"ledger"},
		Summary:     "Where all events are",
		Description: "accepted = sequenced + duplicates + pending.outbox + what the log could not hold; sequenced = published + pending.relay + " +
			"dead letters of the relay; published on a consumer's topics = applied + its dead letters + its pending. Balanced when nothing is pending.",
		Parameters: []*huma.Param{correlationParam()},
		Responses:  answers(http.StatusOK, "The ledger, at most a second old unless reading it takes long.", ref("Ledger"), accountProblems(nil)),
	}
}

func getJourneyOperation() *huma.Operation {
	return &huma.Operation{
		OperationID: "get-journey",
		Method:      http.MethodGet,
		Path:        "/api/v1/events/{event_id}/journey",
		Tags:        []string{"ledger"},
		Summary:     "Where one event has been, and where it is",
		Description: "Also of an event that was never stored and is a dead letter.",
		Parameters:  []*huma.Param{pathParam("event_id", formatted("uuid", "ID of the event.")), correlationParam()},
		Responses: answers(http.StatusOK, "The journey.", ref("Journey"), accountProblems(map[int]string{
			http.StatusNotFound: "There is no such event, and no dead letter of one.",
		})),
	}
}

func accountProblems(more map[int]string) map[int]string {
	problems := readProblems(more)
	delete(problems, http.StatusTooManyRequests)
	return problems
}

func defineLedger(a *API) {
	a.define("Ledger", ledgerSchema())
	a.define("Journey", journeySchema())
}

func ledgerSchema() *huma.Schema {
	count := func(description string) *huma.Schema { return integer(description, 0) }
	signed := func(description string) *huma.Schema {
		return &huma.Schema{Type: huma.TypeInteger, Format: "int64", Description: description}
	}
	seconds := 0.0
	lag := object("How far a stage is behind.", []string{"events", "seconds"}, map[string]*huma.Schema{
		"events":  count(""),
		"seconds": {Type: huma.TypeNumber, Minimum: &seconds, Description: "Since the oldest of them came in; at a consumer the oldest that was found."},
	})
	letters := object("Rows of the dlq table.", []string{"pending", "replayed", "discarded"}, map[string]*huma.Schema{
		"pending": count(""), "replayed": count(""), "discarded": count(""),
	})
	missing := object("A stage that does not balance.", []string{"stage", "events", "detail"}, map[string]*huma.Schema{
		"stage": text("outbox, relay or the name of a consumer."), "events": signed("Negative: that many too many. 0: its database can't be read, so nothing is known."), "detail": text(""),
	})
	topic := object("The events of a topic.", []string{"topic", "sequenced", "published", "dead_lettered"}, map[string]*huma.Schema{
		"topic": text(""), "sequenced": count(""), "published": count(""),
		"dead_lettered": count("Events that the bus will not get unless they are replayed."),
	})
	consumer := object("The events of a consumer.",
		[]string{"consumer", "topics", "published", "applied", "dead_lettered", "pending"}, map[string]*huma.Schema{
			"consumer": text(""), "topics": {Type: huma.TypeArray, Items: text("")}, "published": count("On these topics."),
			"applied": count("Each once."), "dead_lettered": count("Events that are not applied unless they are replayed."),
			"pending": signed("Neither applied nor a dead letter."),
		})
	return object("Where all events are.",
		[]string{"at", "balanced", "accepted", "duplicates", "sequenced", "published", "applied", "dead_lettered", "pending", "lag", "missing", "topics", "consumers"},
		map[string]*huma.Schema{
			"at":            formatted("date-time", "When it was read, in UTC."),
			"balanced":      {Type: huma.TypeBoolean, Description: "Nothing is on its way or missing, nothing is too much."},
			"accepted":      count("Events that were acknowledged to their senders."),
			"duplicates":    count("Of these, those whose event_id was in the log already."),
			"sequenced":     count("In the event log."),
			"published":     count("Acknowledged by the bus."),
			"applied":       mapOf("By consumer.", count("")),
			"dead_lettered": mapOf("Dead letters by consumer; those of ingestion were never accepted.", letters),
			"pending":       mapOf("Events on their way or missing, by stage.", signed("")),
			"lag":           mapOf("By stage; the relay's has the outbox in it.", lag),
			"missing":       {Type: huma.TypeArray, Items: missing, Description: "What keeps it from being balanced."},
			"topics":        {Type: huma.TypeArray, Items: topic},
			"consumers":     {Type: huma.TypeArray, Items: consumer},
		})
}

func mapOf(description string, values *huma.Schema) *huma.Schema {
	return &huma.Schema{Type: huma.TypeObject, Description: description, AdditionalProperties: values}
}

func journeySchema() *huma.Schema {
	status := func(description string, values ...any) *huma.Schema {
		return &huma.Schema{Type: huma.TypeString, Description: description, Enum: values}
	}
	least := 0.0
	step := object("One stage.", []string{"stage", "status"}, map[string]*huma.Schema{
		"stage":    status("", ledger.StageReceived, ledger.StageStored, ledger.StagePublished, ledger.StageApplied),
		"consumer": text("Who applies."),
		"status": status("skipped: there is nothing to do. unknown: what would tell is away.",
			ledger.StepDone, ledger.StepWaiting, ledger.StepDeadLettered, ledger.StepUnknown, ledger.StepSkipped),
		"at":        formatted("date-time", "When, in UTC."),
		"at_latest": {Type: huma.TypeBoolean, Description: "It was at this time or before: later events of the aggregate were applied since."},
		"position":  integer("In the log.", 1),
		"topic":     text("Of the bus."),
		"partition": {Type: huma.TypeInteger, Minimum: &least},
		"offset":    integer("", 0),
		"detail":    text("What else there is to say."),
	})
	letter := object("A dead letter of the event.", []string{"dlq_id", "consumer", "status", "failed_at", "error_message"}, map[string]*huma.Schema{
		"dlq_id": formatted("uuid", ""), "consumer": text(""), "status": status("", "pending", "replayed", "discarded"),
		"failed_at": formatted("date-time", "In UTC."), "error_message": text(""),
	})
	return object("Where an event has been, and where it is.", []string{"event_id", "status", "stages", "dead_letters"}, map[string]*huma.Schema{
		"event_id":       formatted("uuid", ""),
		"event_type":     text("Absent if the event is known as a dead letter alone."),
		"aggregate_id":   text("Absent likewise."),
		"correlation_id": text("Of the request or message that brought it."),
		"source":         text("The door it came through: http, mqtt."),
		"status":         status("Of the whole.", ledger.StepDone, ledger.StepWaiting, ledger.StepDeadLettered, ledger.StepUnknown),
		"waiting_at":     text("Where it waits: outbox, relay or the name of a consumer."),
		"stages":         {Type: huma.TypeArray, Items: step, Description: "In the order of the flow; not those behind the one where it waits or ended."},
		"dead_letters":   {Type: huma.TypeArray, Items: letter},
	})
}
