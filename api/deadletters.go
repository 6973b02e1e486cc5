package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"

	"github.com/cornjacket/platform-services/deadletter"
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

// LetterMender decides what becomes of one letter; ctx says who asks for it ([deadletter.By]). Errors: those of [LetterReader], [*deadletter.NotPendingError], and
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
}

type letters struct {
	DeadLettersConfig
	log *slog.Logger
}

// NewDeadLetters returns the API of a port that has no other.
func NewDeadLetters(mux *http.ServeMux, log *slog.Logger, info Info, cfg DeadLettersConfig) *API {
	a := New(mux, log, info)
	MountDeadLetters(a, cfg)
	return a
}

// MountDeadLetters adds the dead letters of a service to the API of its port.
func MountDeadLetters(a *API, cfg DeadLettersConfig) {
	s := &letters{cfg, a.log}
	defineConsumers(a, cfg.Consumers)
	const noLetter = "There is no such dead letter of this service."
	register(a, huma.Operation{
		OperationID: "list-dead-letters", Method: http.MethodGet, Path: "/api/v1/dlq", Tags: tagLetters,
		Summary: "Dead letters of this service", Description: "Newest first. Filters are joined by and.",
		Responses: explain(map[int]string{200: "One page."}),
	}, s.list)
	register(a, huma.Operation{
		OperationID: "get-dead-letter", Method: http.MethodGet, Path: "/api/v1/dlq/{id}", Tags: tagLetters,
		Summary:   "One dead letter, with its whole payload",
		Responses: explain(map[int]string{200: "The dead letter.", 404: noLetter}),
	}, s.get)
	register(a, huma.Operation{
		OperationID: "replay-dead-letter", Method: http.MethodPost, Path: "/api/v1/dlq/{id}/replay", Tags: tagLetters,
		Summary: "Replay a dead letter",
		Description: "Gives it to the one consumer that could not handle it. It is marked as replayed in the transaction that applies it, so that it has one " +
			"effect however often this is asked for.",
		Responses: explain(map[int]string{
			200: "The consumer has applied it.", 404: noLetter,
			409: "It is not pending any more, and nothing was done; or only a rebuild of the projection can mend it.",
			422: "The consumer has refused it again, and it is still pending; or the request breaks a rule.",
		}),
	}, s.replay)
	register(a, huma.Operation{
		OperationID: "discard-dead-letter", Method: http.MethodPost, Path: "/api/v1/dlq/{id}/discard", Tags: tagLetters,
		Summary: "Discard a dead letter", Description: "It stays in the table and is not pending any more.",
		Responses: explain(map[int]string{200: "It is discarded.", 404: noLetter, 409: "It is not pending any more, and nothing was done."}),
	}, s.discard)
	mountReplays(a, s)
}

var tagLetters = []string{"dead letters"}

type someLetters struct {
	Status string `query:"status" enum:"pending,replayed,discarded" doc:"Only letters with this status."`
	LetterFilter
	Paging
}

// letterPlace is where a letter stands in the list.
type letterPlace struct {
	FailedAt time.Time
	ID       uuid.UUID
}

func (s *letters) list(ctx context.Context, in *someLetters) (page Page[DeadLetter], err error) {
	f := in.filter(in.Status)
	list := newListing("dlq", f.Status, f.Consumer, f.EventID.String(), f.EventType, f.Topic, f.Error,
		f.From.Format(time.RFC3339Nano), f.To.Format(time.RFC3339Nano))
	var last letterPlace
	if err := list.after(in.Cursor, &last); err != nil {
		return page, err
	}
	f.BeforeTime, f.BeforeID, f.Limit = last.FailedAt, last.ID, in.Limit+1
	items, err := s.Reader.List(ctx, f)
	if err != nil {
		return page, err
	}
	views := make([]DeadLetter, len(items))
	for i := range items {
		views[i] = viewOf(&items[i], false)
	}
	return pageOf(views, in.Limit, func(last *DeadLetter) string { return list.cursor(letterPlace{last.FailedAt, last.ID}) }), nil
}

type oneLetter struct {
	ID uuid.UUID `path:"id" doc:"The dlq_id of a dead letter."`
}

func (s *letters) get(ctx context.Context, in *oneLetter) (DeadLetter, error) {
	letter, err := s.Reader.Letter(ctx, in.ID)
	return viewOf(&letter, true), letterProblem(err, in.ID)
}

type replayLetter struct {
	ID   uuid.UUID   `path:"id" doc:"The dlq_id of a dead letter."`
	Body *ReplayEdit `doc:"An edited payload; what is stored stays as it came."`
}

func (s *letters) replay(ctx context.Context, in *replayLetter) (DeadLetter, error) {
	edit, err := in.Body.edit()
	if err != nil {
		return DeadLetter{}, err
	}
	letter, err := s.Mender.Replay(deadletter.By(ctx, Caller(ctx)), in.ID, edit)
	if err != nil {
		return DeadLetter{}, letterProblem(err, in.ID)
	}
	s.log.InfoContext(ctx, "dead letter replayed", "dlq_id", in.ID, "consumer", letter.Consumer, "event_id", letter.EventID,
		"edited", edit.Payload != nil || edit.Topic != "", "by", Caller(ctx), "correlation_id", CorrelationID(ctx))
	return viewOf(&letter, true), nil
}

type discardLetter struct {
	ID   uuid.UUID `path:"id" doc:"The dlq_id of a dead letter."`
	Body *Discard
}

func (s *letters) discard(ctx context.Context, in *discardLetter) (DeadLetter, error) {
	reason := ""
	if in.Body != nil {
		reason = string(in.Body.Reason)
	}
	letter, err := s.Mender.Discard(deadletter.By(ctx, Caller(ctx)), in.ID, reason)
	if err != nil {
		return DeadLetter{}, letterProblem(err, in.ID)
	}
	s.log.InfoContext(ctx, "dead letter discarded", "dlq_id", in.ID, "consumer", letter.Consumer, "event_id", letter.EventID,
		"reason", reason, "by", Caller(ctx), "correlation_id", CorrelationID(ctx))
	return viewOf(&letter, true), nil
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
