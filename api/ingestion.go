package api

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"golang.org/x/sync/semaphore"

	"github.com/cornjacket/platform-services/event"
)

// Ingester makes events durable.
type Ingester interface {
	// Ingest stores all events, in their order, and returns when all are durable. On an error it is not known which of
	// them are. It must return soon after ctx ends, and with [fault.ErrUnavailable] after a time of its own. The events are its
	// own from then on. Errors: [fault.ErrOverloaded], [fault.ErrUnavailable], [*event.Error]; any other is a bug. Ingest is called
	// concurrently.
	Ingest(ctx context.Context, events []event.Envelope) error
}

// MinInFlightBytes is the least budget with which the largest batch can be read: while a buffer grows, the smaller one
// is still held.
const MinInFlightBytes = 2*event.MaxBatchBody + 1

// IngestionConfig configures the ingestion API.
type IngestionConfig struct {
	Ingester Ingester
	Now      func() time.Time // time.Now if nil
	NewID    func() uuid.UUID // IDs of events whose sender gave none, version 7; the version 7 of package uuid if nil
	Log      *slog.Logger     // slog.Default() if nil
	Version  string           // of the platform, for the document
	Clock    event.Clock      // the times of events that are believed; others are answered with 422

	// MaxInFlightBytes bounds the memory of all request bodies together; what goes beyond is answered with 429. Zero,
	// like all that is less, means [MinInFlightBytes], 64 MiB. Events made from a body take about as much again.
	MaxInFlightBytes int64
}

type ingestion struct {
	cfg    IngestionConfig
	bodies bodies
}

// NewIngestion returns the ingestion API as a whole port.
func NewIngestion(cfg IngestionConfig) http.Handler {
	mux := http.NewServeMux()
	MountIngestion(mux, cfg)
	return Wrap(orDefault(cfg.Log), mux)
}

// MountIngestion adds the ingestion API and its document to a mux, which must be served through [Wrap]. Other
// operations of the same port can be added to what it returns.
func MountIngestion(mux *http.ServeMux, cfg IngestionConfig) *API {
	cfg.Log = orDefault(cfg.Log)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.NewID == nil {
		cfg.NewID = func() uuid.UUID { return uuid.Must(uuid.NewV7()) }
	}
	s := &ingestion{cfg: cfg, bodies: bodies{semaphore.NewWeighted(max(cfg.MaxInFlightBytes, MinInFlightBytes))}}
	a := New(mux, cfg.Log, Info{
		Title:       "Cornjacket ingestion",
		Description: "Takes events in. An event that was accepted is durable.",
		Version:     cfg.Version,
	})
	a.handle(postEventOperation(a), s.postEvent)
	a.handle(postBatchOperation(a), s.postBatch)
	return a
}

// postEvent is the hot path.
func (s *ingestion) postEvent(w http.ResponseWriter, r *http.Request) error {
	media, err := mediaType(r)
	if err == nil && !isJSON(media) {
		err = wrongMedia(mediaJSON)
	}
	if err != nil {
		drain(w, r)
		return err
	}
	body, held, err := s.bodies.read(w, r, event.MaxBody)
	if err != nil {
		return err
	}
	defer s.bodies.release(held)
	e, err := event.Parse(body, s.origin(r))
	if err != nil {
		return err
	}
	if err := s.cfg.Ingester.Ingest(r.Context(), []event.Envelope{e}); err != nil {
		return err
	}
	answer := make([]byte, 0, 96)
	answer = append(answer, `{"event_id":"`...)
	answer = append(answer, e.ID.String()...)
	answer = append(answer, `","status":"accepted"}`...)
	w.Header()["Content-Type"] = contentJSON
	writeBody(w, http.StatusAccepted, answer)
	return nil
}

var contentJSON = []string{mediaJSON}

func (s *ingestion) postBatch(w http.ResponseWriter, r *http.Request) error {
	media, err := mediaType(r)
	if err == nil && !isJSON(media) && !isLines(media) {
		err = wrongMedia(mediaJSON, "application/x-ndjson")
	}
	if err != nil {
		drain(w, r)
		return err
	}
	body, held, err := s.bodies.read(w, r, event.MaxBatchBody)
	if err != nil {
		return err
	}
	defer s.bodies.release(held)
	if err := checkForm(body, isLines(media)); err != nil {
		return err
	}
	accepted, rejected, err := event.ParseBatch(body, s.origin(r))
	if err != nil {
		return err
	}
	answer := BatchResult{Accepted: len(accepted), Rejected: make([]Rejection, len(rejected))}
	for i, no := range rejected {
		answer.Rejected[i] = Rejection{Index: no.Index, Error: no.Err.Error()}
	}
	if len(accepted) > 0 {
		if err := s.cfg.Ingester.Ingest(r.Context(), accepted); err != nil {
			return err
		}
	}
	return writeJSON(w, http.StatusAccepted, &answer)
}

// checkForm holds a batch against its content type: [event.ParseBatch] goes by the first byte.
func checkForm(body []byte, lines bool) error {
	body = bytes.TrimSpace(body)
	if len(body) == 0 {
		return nil // ParseBatch says what it thinks of that
	}
	switch array := body[0] == '['; {
	case lines && array:
		return mistake(http.StatusBadRequest, "body", "must be one JSON object a line; an array is sent as application/json")
	case !lines && !array:
		return mistake(http.StatusBadRequest, "body", "must be a JSON array; one object a line is sent as application/x-ndjson")
	}
	return nil
}

func (s *ingestion) origin(r *http.Request) event.Origin {
	return event.Origin{
		Source:        "http",
		Now:           s.cfg.Now(),
		NewID:         s.cfg.NewID,
		Clock:         s.cfg.Clock,
		CorrelationID: CorrelationID(r.Context()),
		Traceparent:   r.Header.Get(traceparentHeader),
	}
}

// writeJSON sends v as a whole answer.
func writeJSON(w http.ResponseWriter, status int, v any) error {
	data, err := json.Marshal(v, jsonOut)
	if err != nil {
		return err
	}
	w.Header()["Content-Type"] = contentJSON
	writeBody(w, status, data)
	return nil
}
