package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
)

// bulkBody is the body of a bulk replay. What selects letters can also be given as query parameters, as in a list.
type bulkBody struct {
	Status    *string  `json:"status"`
	Consumer  *string  `json:"consumer"`
	EventID   *string  `json:"event_id"`
	EventType *string  `json:"event_type"`
	Topic     *string  `json:"topic"`
	Error     *string  `json:"error"`
	From      *string  `json:"from"`
	To        *string  `json:"to"`
	Rate      *float64 `json:"rate"`
	DryRun    bool     `json:"dry_run"`
}

// join returns the filters of query and body as one set of parameters.
func (b *bulkBody) join(query url.Values) (url.Values, error) {
	all := url.Values{}
	for name, values := range query {
		all[name] = values
	}
	for name, value := range map[string]*string{
		"status": b.Status, "consumer": b.Consumer, "event_id": b.EventID, "event_type": b.EventType, "topic": b.Topic,
		"error": b.Error, "from": b.From, "to": b.To,
	} {
		if value == nil {
			continue
		}
		if all.Has(name) {
			return nil, mistake(http.StatusUnprocessableEntity, name, "must be given once, in the query or in the body")
		}
		all.Set(name, *value)
	}
	return all, nil
}

func (s *letters) startReplay(w http.ResponseWriter, r *http.Request, query url.Values) error {
	var body bulkBody
	if err := s.readBody(w, r, &body); err != nil {
		return err
	}
	joined, err := body.join(query)
	if err != nil {
		return err
	}
	filter, err := s.filterOf(joined)
	if err != nil {
		return err
	}
	if filter.Status != "" && filter.Status != deadletter.Pending {
		return mistake(http.StatusUnprocessableEntity, "status", "must be pending, no other letters can be replayed")
	}
	filter.Status = deadletter.Pending
	rate := float64(defaultRate)
	if body.Rate != nil {
		rate = *body.Rate
	}
	if !(rate >= 0.01 && rate <= maxRate) {
		return mistake(http.StatusUnprocessableEntity, "rate", fmt.Sprintf("must be a number of letters a second from 0.01 to %d", maxRate))
	}
	ctx, cancel := s.limited(r)
	defer cancel()
	if body.DryRun {
		n, err := s.cfg.Reader.Count(ctx, filter)
		if err != nil {
			return err
		}
		return writeJSON(w, http.StatusOK, &dryRun{DryRun: true, Matched: n})
	}
	starting, cancelStart := context.WithTimeout(r.Context(), freezeTimeout)
	defer cancelStart()
	replay, err := s.cfg.Replays.StartReplay(starting, filter, rate)
	if err != nil {
		return err
	}
	s.log.InfoContext(ctx, "bulk replay of dead letters asked for", "replay_id", replay.ID, "letters", replay.Total, "correlation_id", CorrelationID(ctx))
	w.Header().Set("Location", "/api/v1/dlq/replays/"+replay.ID.String())
	view := viewOfReplay(&replay)
	return writeJSON(w, http.StatusAccepted, &view)
}

// freezeTimeout is how long it may take to freeze a set, of millions maybe; less than the server's limit for an answer.
const freezeTimeout = 50 * time.Second

type dryRun struct {
	DryRun  bool  `json:"dry_run"`
	Matched int64 `json:"matched"`
}

func (s *letters) listReplays(w http.ResponseWriter, r *http.Request, query url.Values) error {
	limit, err := limitOf(query)
	if err != nil {
		return err
	}
	ctx, cancel := s.limited(r)
	defer cancel()
	list, err := s.cfg.Replays.BulkReplays(ctx, limit)
	if err != nil {
		return err
	}
	views := make([]replayView, len(list))
	for i := range list {
		views[i] = viewOfReplay(&list[i])
	}
	return writePage(w, s.log, views, limit, nil)
}

func (s *letters) getReplay(w http.ResponseWriter, r *http.Request, _ url.Values) error {
	id, err := uuidOf(r, "replay_id")
	if err != nil {
		return err
	}
	ctx, cancel := s.limited(r)
	defer cancel()
	replay, err := s.cfg.Replays.BulkReplay(ctx, id)
	return writeReplay(w, &replay, id, err)
}

func (s *letters) cancelReplay(w http.ResponseWriter, r *http.Request, _ url.Values) error {
	id, err := uuidOf(r, "replay_id")
	if err != nil {
		return err
	}
	ctx, cancel := s.limited(r)
	defer cancel()
	replay, err := s.cfg.Replays.CancelReplay(ctx, id)
	return writeReplay(w, &replay, id, err)
}

func writeReplay(w http.ResponseWriter, replay *deadletter.Replay, id uuid.UUID, err error) error {
	if errors.Is(err, fault.ErrNotFound) {
		return newProblem(http.StatusNotFound, fmt.Sprintf("there is no bulk replay %s here", id))
	}
	if err != nil {
		return err
	}
	view := viewOfReplay(replay)
	return writeJSON(w, http.StatusOK, &view)
}

// readBody reads an optional JSON object; without a body into is left as it is.
func (s *letters) readBody(w http.ResponseWriter, r *http.Request, into any) error {
	media, err := mediaType(r)
	if err == nil && r.Header.Get("Content-Type") != "" && !isJSON(media) && r.ContentLength != 0 {
		err = wrongMedia(mediaJSON)
	}
	if err != nil {
		drain(w, r)
		return err
	}
	body, held, err := s.bodies.read(w, r, maxReplayBody)
	if err != nil {
		return err
	}
	defer s.bodies.release(held)
	if len(bytes.TrimSpace(body)) == 0 {
		return nil
	}
	if bytes.TrimSpace(body)[0] != '{' {
		return mistake(http.StatusBadRequest, "body", "must be a JSON object")
	}
	if err := json.Unmarshal(body, into, json.RejectUnknownMembers(true)); err != nil {
		return bodyProblem(err)
	}
	return nil
}

// bodyProblem names the member of a body that can't be read.
func bodyProblem(err error) error {
	var semantic *json.SemanticError
	if !errors.As(err, &semantic) {
		return mistake(http.StatusBadRequest, "body", "is not valid JSON")
	}
	location := "body"
	for token := range semantic.JSONPointer.Tokens() {
		location = clip(token)
		break
	}
	if errors.Is(err, json.ErrUnknownName) {
		return mistake(http.StatusUnprocessableEntity, location, "is not known here")
	}
	return mistake(http.StatusBadRequest, location, "has the wrong JSON type")
}
