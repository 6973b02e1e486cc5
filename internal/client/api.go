package client

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"

	"github.com/cornjacket/platform-services/api"
	"github.com/cornjacket/platform-services/internal/health"
	"github.com/cornjacket/platform-services/ledger"
)

// The API's own types, so that callers need no other package.
type (
	// DeadLetter is a dead letter as it is answered.
	DeadLetter = api.DeadLetter
	// ReplayEdit is what a replay uses in place of what is stored.
	ReplayEdit = api.ReplayEdit
	// Discard says why a dead letter is discarded.
	Discard = api.Discard
	// BulkReplay is how far a bulk replay is.
	BulkReplay = api.BulkReplay
	// DryRun is what a bulk replay would be about.
	DryRun = api.DryRun
	// Text is a printable text of a request.
	Text = api.Text
)

const (
	lettersPath = "/api/v1/dlq"
	pageSize    = 1000 // the largest that there is
)

// Health returns the health of a service, and its answer as it came. A service that is not ready is no error.
func (s *Service) Health(ctx context.Context) (report health.Report, answer Answer, err error) {
	answer, err = s.ask(ctx, http.MethodGet, "/health", nil, nil)
	if err != nil {
		return report, answer, err
	}
	if err := json.Unmarshal(answer.Body, &report); err != nil {
		return report, answer, fmt.Errorf("answered %d, which is no health answer: %w", answer.Status, err)
	}
	return report, answer, nil
}

// Failing returns the checks of a health answer that fail, each with its reason.
func Failing(report health.Report) []string {
	var failing []string
	for _, name := range slices.Sorted(maps.Keys(report.Checks)) {
		check := report.Checks[name]
		why, _ := check["error"].(string)
		if why == "" {
			why, _ = check["status"].(string)
		}
		if check["status"] != "ok" {
			failing = append(failing, name+": "+why)
		}
	}
	return failing
}

// Ledger returns where all events are.
func (s *Service) Ledger(ctx context.Context) (l ledger.Ledger, err error) {
	err = s.call(ctx, http.MethodGet, "/api/v1/ledger", nil, nil, &l)
	return l, err
}

// DeadLetters returns up to most letters that match the filters in query, the newest first; all if most is zero. more
// says that there are others.
func (s *Service) DeadLetters(ctx context.Context, query url.Values, most int) (all []DeadLetter, more bool, err error) {
	return pages[DeadLetter](ctx, s, lettersPath, query, most)
}

// DeadLetter returns one letter whole.
func (s *Service) DeadLetter(ctx context.Context, id string) (l DeadLetter, err error) {
	err = s.call(ctx, http.MethodGet, lettersPath+"/"+id, nil, nil, &l)
	return l, err
}

// Change replays or discards a letter, as verb says, and returns it as it is then. The body is a [*ReplayEdit], a
// [*Discard], or nil.
func (s *Service) Change(ctx context.Context, id, verb string, body any) (l DeadLetter, err error) {
	err = s.call(ctx, http.MethodPost, lettersPath+"/"+id+"/"+verb, nil, body, &l)
	return l, err
}

// StartReplay starts a bulk replay with the members of an [api.BulkReplayRequest].
func (s *Service) StartReplay(ctx context.Context, request map[string]any) (r BulkReplay, err error) {
	err = s.call(ctx, http.MethodPost, lettersPath+"/replay", nil, request, &r)
	return r, err
}

// CountReplay returns what a bulk replay would be about; the request says that it is a dry run.
func (s *Service) CountReplay(ctx context.Context, request map[string]any) (d DryRun, err error) {
	err = s.call(ctx, http.MethodPost, lettersPath+"/replay", nil, request, &d)
	return d, err
}

// BulkReplay returns how far a bulk replay is.
func (s *Service) BulkReplay(ctx context.Context, id string) (r BulkReplay, err error) {
	err = s.call(ctx, http.MethodGet, lettersPath+"/replays/"+id, nil, nil, &r)
	return r, err
}

// pages reads a list, page by page.
func pages[T any](ctx context.Context, s *Service, path string, query url.Values, most int) (all []T, more bool, err error) {
	query = maps.Clone(query)
	for {
		size := pageSize
		if most > 0 {
			size = min(size, most-len(all))
		}
		query.Set("limit", fmt.Sprint(size))
		var page api.Page[T]
		if err := s.call(ctx, http.MethodGet, path, query, nil, &page); err != nil {
			return nil, false, err
		}
		all = append(all, page.Items...)
		if page.Next == "" || most > 0 && len(all) >= most {
			return all, page.Next != "", nil
		}
		query.Set("cursor", page.Next)
	}
}
