package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"

	"github.com/cornjacket/platform-services/deadletter"
)

// defaultRate is that of a bulk replay without one, in letters a second; see [BulkReplayRequest].
const defaultRate = 100

// freezeTimeout is how long it may take to freeze a set, of millions maybe; less than the server's limit for an answer.
const freezeTimeout = 50 * time.Second

func mountReplays(a *API, s *letters) {
	const noReplay = "There is no such bulk replay of this service."
	start := huma.Operation{
		OperationID: "replay-dead-letters", Method: http.MethodPost, Path: "/api/v1/dlq/replay", Tags: tagLetters, DefaultStatus: http.StatusAccepted,
		Summary: "Replay all dead letters that match",
		Description: "The set is frozen now; a letter that waits in another bulk replay is left to that. Letters go one by one, in the order of their sources. " +
			"One that is refused again stays pending and stops no other.",
		MaxBodyBytes: -1, BodyReadTimeout: -1,
		Responses: explain(map[int]string{200: "A dry run: nothing was done.", 202: "It runs in the background."}),
	}
	start.Responses["200"].Content = map[string]*huma.MediaType{mediaJSON: {Schema: schemaFor[DryRun](a)}}
	start.Responses["202"].Content = map[string]*huma.MediaType{mediaJSON: {Schema: schemaFor[BulkReplay](a)}}
	huma.Register(a, start, func(ctx context.Context, in *startReplay) (*startedReplay, error) {
		out, err := s.start(ctx, in, a.timeout)
		if err != nil {
			return nil, a.problem(ctx, start.Method, start.Path, err)
		}
		return out, nil
	})
	register(a, huma.Operation{
		OperationID: "list-bulk-replays", Method: http.MethodGet, Path: "/api/v1/dlq/replays", Tags: tagLetters,
		Summary: "Bulk replays of this service", Description: "Newest first, of the last 30 days.",
		Responses: explain(map[int]string{200: "The newest ones."}),
	}, s.listReplays)
	register(a, huma.Operation{
		OperationID: "get-bulk-replay", Method: http.MethodGet, Path: "/api/v1/dlq/replays/{replay_id}", Tags: tagLetters,
		Summary:   "How far a bulk replay is",
		Responses: explain(map[int]string{200: "The bulk replay.", 404: noReplay}),
	}, func(ctx context.Context, in *oneReplay) (BulkReplay, error) {
		r, err := s.Replays.BulkReplay(ctx, in.ID)
		return viewOfReplay(&r), notFound(err, "there is no bulk replay %s here", in.ID)
	})
	register(a, huma.Operation{
		OperationID: "cancel-bulk-replay", Method: http.MethodPost, Path: "/api/v1/dlq/replays/{replay_id}/cancel", Tags: tagLetters,
		Summary:     "Cancel a bulk replay",
		Description: "Letters that have not had their turn stay pending. One that has ended stays as it is.",
		Responses:   explain(map[int]string{200: "The bulk replay as it is now.", 404: noReplay}),
	}, func(ctx context.Context, in *oneReplay) (BulkReplay, error) {
		r, err := s.Replays.CancelReplay(ctx, in.ID)
		if err == nil {
			s.log.InfoContext(ctx, "bulk replay of dead letters cancelled", "replay_id", in.ID, "by", Caller(ctx), "correlation_id", CorrelationID(ctx))
		}
		return viewOfReplay(&r), notFound(err, "there is no bulk replay %s here", in.ID)
	})
}

type oneReplay struct {
	ID uuid.UUID `path:"replay_id" doc:"ID of a bulk replay."`
}

type startReplay struct {
	Status string `query:"status" enum:"pending" doc:"Others can't be replayed."`
	LetterFilter
	Body *BulkReplayRequest `doc:"Filters can be here or in the query."`
}

// startedReplay has a [BulkReplay] or a [DryRun] for its body.
type startedReplay struct {
	Status   int
	Location string `header:"Location" doc:"Where to ask how far it is."`
	Body     any
}

func (s *letters) start(ctx context.Context, in *startReplay, timeout time.Duration) (*startedReplay, error) {
	body := BulkReplayRequest{Rate: defaultRate}
	if in.Body != nil {
		body = *in.Body
	}
	given, err := in.join(&body.LetterFilter)
	if err != nil {
		return nil, err
	}
	filter := given.filter(deadletter.Pending)
	if body.DryRun {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		n, err := s.Reader.Count(ctx, filter)
		return &startedReplay{Status: http.StatusOK, Body: &DryRun{DryRun: true, Matched: n}}, err
	}
	ctx, cancel := context.WithTimeout(ctx, freezeTimeout)
	defer cancel()
	r, err := s.Replays.StartReplay(deadletter.By(ctx, Caller(ctx)), filter, body.Rate)
	if err != nil {
		return nil, err
	}
	s.log.InfoContext(ctx, "bulk replay of dead letters asked for", "replay_id", r.ID, "letters", r.Total, "by", Caller(ctx), "correlation_id", CorrelationID(ctx))
	view := viewOfReplay(&r)
	return &startedReplay{Status: http.StatusAccepted, Location: "/api/v1/dlq/replays/" + r.ID.String(), Body: &view}, nil
}

type someReplays struct {
	Limit int `query:"limit" minimum:"1" maximum:"1000" default:"20" doc:"Items on a page."`
}

func (s *letters) listReplays(ctx context.Context, in *someReplays) (page Page[BulkReplay], err error) {
	list, err := s.Replays.BulkReplays(ctx, in.Limit)
	for i := range list {
		page.Items = append(page.Items, viewOfReplay(&list[i]))
	}
	return page, err
}
