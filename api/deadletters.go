package api

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/semaphore"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
)

// LetterReader reads the dead letters of one service. Errors: [fault.ErrNotFound], [fault.ErrUnavailable]; any other is a bug. Its
// methods, like those of the other interfaces here, are called concurrently and must return soon after ctx ends.
type LetterReader interface {
	// List returns up to f.Limit letters, the newest first; their payloads may be cut off.
	List(ctx context.Context, f deadletter.Filter) ([]deadletter.Letter, error)
	// Letter returns one letter whole.
	Letter(ctx context.Context, id uuid.UUID) (deadletter.Letter, error)
	// Count returns how many letters match.
	Count(ctx context.Context, f deadletter.Filter) (int64, error)
}

// LetterMender decides what becomes of one letter. Errors: those of [LetterReader], [*deadletter.NotPendingError], and
// [*deadletter.RefusedError] when the consumer refuses the letter again.
type LetterMender interface {
	// Replay applies a letter and marks it as replayed, both or neither, and returns it as it is then.
	Replay(ctx context.Context, id uuid.UUID, edit deadletter.Edit) (deadletter.Letter, error)
	Discard(ctx context.Context, id uuid.UUID, reason string) (deadletter.Letter, error)
}

// LetterReplays are the bulk replays of one service, which run in the background. Errors: those of [LetterReader].
type LetterReplays interface {
	// StartReplay freezes the set of pending letters that match and begins to replay them, at most rate a second.
	StartReplay(ctx context.Context, f deadletter.Filter, rate float64) (deadletter.Replay, error)
	BulkReplay(ctx context.Context, id uuid.UUID) (deadletter.Replay, error)
	// BulkReplays returns the newest ones.
	BulkReplays(ctx context.Context, limit int) ([]deadletter.Replay, error)
	// CancelReplay ends one; what has not had its turn stays pending. One that has ended stays as it is.
	CancelReplay(ctx context.Context, id uuid.UUID) (deadletter.Replay, error)
}

// DeadLettersConfig configures the dead letters of one service.
type DeadLettersConfig struct {
	Consumers []string // whose letters these are
	Reader    LetterReader
	Mender    LetterMender
	Replays   LetterReplays
	Timeout   time.Duration // how long one request may take; 10 s if zero
}

// Limits of a bulk replay's rate, in letters a second.
const (
	defaultRate = 100
	maxRate     = 10_000
)

// maxReplayBody is the size of a request to replay: an event, in base64 or with its quotes escaped.
const maxReplayBody = 2 * event.MaxBody

// maxReason is the length of the reason for a discard, and of a part of an error message.
const maxReason = 1024

type letters struct {
	cfg    DeadLettersConfig
	bodies bodies
	log    *slog.Logger
}

// NewDeadLetters returns the API of a port that has no other.
func NewDeadLetters(mux *http.ServeMux, log *slog.Logger, info Info, cfg DeadLettersConfig) *API {
	a := New(mux, orDefault(log), info)
	MountDeadLetters(a, cfg)
	return a
}

// MountDeadLetters adds the dead letters of a service to the API of its port.
func MountDeadLetters(a *API, cfg DeadLettersConfig) {
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	s := &letters{cfg: cfg, bodies: bodies{semaphore.NewWeighted(16 * maxReplayBody)}, log: a.log}
	defineDeadLetters(a, cfg.Consumers)
	a.handle(listLettersOperation(cfg.Consumers), s.list)
	a.handle(getLetterOperation(), s.get)
	a.handle(replayLetterOperation(), s.replay)
	a.handle(discardLetterOperation(), s.discard)
	a.handle(bulkReplayOperation(cfg.Consumers), s.startReplay)
	a.handle(listReplaysOperation(), s.listReplays)
	a.handle(getReplayOperation(), s.getReplay)
	a.handle(cancelReplayOperation(), s.cancelReplay)
}

func (s *letters) limited(r *http.Request) (context.Context, context.CancelFunc) {
	return context.WithTimeout(r.Context(), s.cfg.Timeout)
}

func (s *letters) list(w http.ResponseWriter, r *http.Request, query url.Values) error {
	filter, err := s.filterOf(query)
	if err != nil {
		return err
	}
	limit, err := limitOf(query)
	if err != nil {
		return err
	}
	list := newListing("dlq", filter.Status, filter.Consumer, filter.EventID.String(), filter.EventType, filter.Topic, filter.Error,
		filter.From.Format(time.RFC3339Nano), filter.To.Format(time.RFC3339Nano))
	if query.Has("cursor") {
		if filter.BeforeTime, filter.BeforeID, err = list.letter(query.Get("cursor")); err != nil {
			return err
		}
	}
	filter.Limit = limit + 1
	ctx, cancel := s.limited(r)
	defer cancel()
	items, err := s.cfg.Reader.List(ctx, filter)
	if err != nil {
		return err
	}
	views := make([]letterView, len(items))
	for i := range items {
		views[i] = viewOf(&items[i], false)
	}
	return writePage(w, s.log, views, limit, func(last *letterView) string {
		return list.letterCursor(last.FailedAt, last.ID)
	})
}

func (l listing) letterCursor(failedAt time.Time, id uuid.UUID) string {
	key := binary.BigEndian.AppendUint64(nil, uint64(failedAt.UnixMicro())) //nolint:gosec // read back the same way
	return l.cursor(append(key, id[:]...))
}

func (l listing) letter(cursor string) (time.Time, uuid.UUID, error) {
	key, err := l.key(cursor)
	if err != nil {
		return time.Time{}, uuid.Nil, err
	}
	if len(key) != 8+16 {
		return time.Time{}, uuid.Nil, errCursor("must be a next_cursor that this API has given out")
	}
	at := time.UnixMicro(int64(binary.BigEndian.Uint64(key))).UTC() //nolint:gosec // as above
	if at.Year() < 1 || at.Year() > 9999 {
		return time.Time{}, uuid.Nil, errCursor("must be a next_cursor that this API has given out")
	}
	return at, uuid.UUID(key[8:]), nil
}

// filterNames are the parameters that select letters.
var filterNames = []string{"consumer", "error", "event_id", "event_type", "from", "status", "to", "topic"}

func (s *letters) filterOf(query url.Values) (f deadletter.Filter, err error) {
	if f.Status, err = choiceOf(query, "status", deadletter.Pending, deadletter.Replayed, deadletter.Discarded); err != nil {
		return f, err
	}
	if f.Consumer, err = choiceOf(query, "consumer", s.cfg.Consumers...); err != nil {
		return f, err
	}
	if query.Has("event_id") {
		if f.EventID, err = checkUUID("event_id", query.Get("event_id")); err != nil {
			return f, err
		}
	}
	if f.EventType, err = textOf(query, "event_type", maxType); err != nil {
		return f, err
	}
	if f.Topic, err = textOf(query, "topic", maxTopic); err != nil {
		return f, err
	}
	if f.Error, err = textOf(query, "error", maxReason); err != nil {
		return f, err
	}
	f.From, f.To, err = rangeOf(query)
	return f, err
}

// maxTopic is the length of an MQTT topic.
const maxTopic = 65535

func choiceOf(query url.Values, name string, choices ...string) (string, error) {
	if !query.Has(name) {
		return "", nil
	}
	for _, c := range choices {
		if query.Get(name) == c {
			return c, nil
		}
	}
	return "", mistake(http.StatusUnprocessableEntity, name, "must be one of "+strings.Join(choices, ", "))
}

func (s *letters) get(w http.ResponseWriter, r *http.Request, _ url.Values) error {
	id, err := uuidOf(r, "id")
	if err != nil {
		return err
	}
	ctx, cancel := s.limited(r)
	defer cancel()
	letter, err := s.cfg.Reader.Letter(ctx, id)
	if err != nil {
		return letterProblem(err, id)
	}
	view := viewOf(&letter, true)
	return writeJSON(w, http.StatusOK, &view)
}

func (s *letters) replay(w http.ResponseWriter, r *http.Request, _ url.Values) error {
	id, err := uuidOf(r, "id")
	if err != nil {
		return err
	}
	var body replayBody
	if err := s.readBody(w, r, &body); err != nil {
		return err
	}
	edit, err := body.edit()
	if err != nil {
		return err
	}
	ctx, cancel := s.limited(r)
	defer cancel()
	letter, err := s.cfg.Mender.Replay(ctx, id, edit)
	if err != nil {
		return letterProblem(err, id)
	}
	s.log.InfoContext(ctx, "dead letter replayed", "dlq_id", id, "consumer", letter.Consumer, "event_id", letter.EventID,
		"edited", edit.Payload != nil || edit.Topic != "", "correlation_id", CorrelationID(ctx))
	view := viewOf(&letter, true)
	return writeJSON(w, http.StatusOK, &view)
}

func (s *letters) discard(w http.ResponseWriter, r *http.Request, _ url.Values) error {
	id, err := uuidOf(r, "id")
	if err != nil {
		return err
	}
	var body struct {
		Reason *string `json:"reason"`
	}
	if err := s.readBody(w, r, &body); err != nil {
		return err
	}
	reason := ""
	if body.Reason != nil && *body.Reason != "" {
		if reason, err = checkText("reason", *body.Reason, maxReason); err != nil {
			return err
		}
	}
	ctx, cancel := s.limited(r)
	defer cancel()
	letter, err := s.cfg.Mender.Discard(ctx, id, reason)
	if err != nil {
		return letterProblem(err, id)
	}
	s.log.InfoContext(ctx, "dead letter discarded", "dlq_id", id, "consumer", letter.Consumer, "event_id", letter.EventID,
		"reason", reason, "correlation_id", CorrelationID(ctx))
	view := viewOf(&letter, true)
	return writeJSON(w, http.StatusOK, &view)
}

// letterProblem is what a request about one letter is answered with when it fails.
func letterProblem(err error, id uuid.UUID) error {
	var gone *deadletter.NotPendingError
	var refused *deadletter.RefusedError
	switch {
	case errors.Is(err, fault.ErrNotFound):
		return newProblem(http.StatusNotFound, fmt.Sprintf("there is no dead letter %s here", id))
	case errors.As(err, &gone):
		return newProblem(http.StatusConflict, gone.Error())
	case errors.Is(err, deadletter.ErrNeedsRebuild):
		return newProblem(http.StatusConflict, "the dead letter is still pending: "+firstLine(err))
	case errors.As(err, &refused):
		return newProblem(http.StatusUnprocessableEntity, "the dead letter is still pending, it was refused again: "+firstLine(refused.Err))
	}
	return err
}

// firstLine leaves the stack of a panic away.
func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}
