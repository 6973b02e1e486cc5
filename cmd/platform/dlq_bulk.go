package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/cornjacket/platform-services/internal/config"
)

const (
	progressEvery = 250 * time.Millisecond
	// silence is how long a service may be away while its bulk replay is waited for: it goes on by itself when the
	// service is back.
	silence = time.Minute
)

// bulk is what this command reads of a bulk replay; raw is all of it.
type bulk struct {
	ID        string `json:"replay_id"`
	Status    string `json:"status"`
	Total     int64  `json:"total"`
	Replayed  int64  `json:"replayed"`
	Failed    int64  `json:"failed"`
	Skipped   int64  `json:"skipped"`
	Remaining int64  `json:"remaining"`
	LastError string `json:"last_error"`

	DryRun  bool  `json:"dry_run"`
	Matched int64 `json:"matched"`
}

func (b *bulk) ended() bool { return b.Status == "done" || b.Status == "cancelled" }

// bulkReplay starts a bulk replay in each service and waits for all.
func bulkReplay(ctx context.Context, all []*desk, s config.DLQReplay, out, notes io.Writer) error {
	body := map[string]any{"rate": s.Rate, "dry_run": s.DryRun}
	for name, values := range params(&s.DLQFilter) {
		body[name] = values[0]
	}
	var failed []error
	for _, d := range all {
		if err := d.bulkReplay(ctx, body, s, out, notes); err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

func (d *desk) bulkReplay(ctx context.Context, body map[string]any, s config.DLQReplay, out, notes io.Writer) error {
	var raw json.RawMessage
	b, err := d.bulk(ctx, http.MethodPost, "/replay", body, &raw)
	if err != nil {
		return err
	}
	if !s.DryRun && !s.NoWait && !b.ended() {
		if b, err = d.follow(ctx, b, &raw, notes); err != nil {
			return err
		}
	}
	switch {
	case s.JSON:
		var members map[string]any
		if err = json.Unmarshal(raw, &members); err == nil {
			members["service"] = d.name
			err = printJSON(out, members)
		}
	case b.DryRun:
		_, err = fmt.Fprintf(out, "%s: %d would be replayed\n", d.name, b.Matched)
	case s.NoWait && !b.ended():
		_, err = fmt.Fprintf(out, "%s: bulk replay %s of %d has begun\n", d.name, b.ID, b.Total)
	default:
		_, err = fmt.Fprintf(out, "%s: %d replayed, %d refused again, %d not pending any more\n", d.name, b.Replayed, b.Failed, b.Skipped)
	}
	switch {
	case err != nil:
		return fmt.Errorf("print result: %w", err)
	case b.Status == "cancelled":
		return fmt.Errorf("%s: bulk replay %s was cancelled, %d are still pending", d.name, b.ID, b.Remaining)
	case b.Failed > 0:
		return fmt.Errorf("%s: %d were refused again and are still pending, the last one: %s", d.name, b.Failed, shorten(b.LastError, 200))
	}
	return nil
}

func (d *desk) bulk(ctx context.Context, method, path string, body any, raw *json.RawMessage) (bulk, error) {
	var b bulk
	if err := d.call(ctx, method, path, url.Values{}, body, raw); err != nil {
		return b, err
	}
	if err := json.Unmarshal(*raw, &b); err != nil {
		return b, fmt.Errorf("read answer of %s: %w", d.name, err)
	}
	return b, nil
}

// follow waits until a bulk replay has ended, and tells how far it is.
func (d *desk) follow(ctx context.Context, b bulk, raw *json.RawMessage, notes io.Writer) (bulk, error) {
	terminal := isTerminal(notes)
	heard, told := time.Now(), time.Now()
	for !b.ended() {
		select {
		case <-time.After(progressEvery):
		case <-ctx.Done():
			return b, fmt.Errorf("%s: no longer waiting; bulk replay %s goes on in the service", d.name, b.ID)
		}
		now, err := d.bulk(ctx, http.MethodGet, "/replays/"+b.ID, nil, raw)
		var answered *refusal
		switch {
		case err == nil:
			b, heard = now, time.Now()
		case errors.As(err, &answered) && answered.status < 500, time.Since(heard) > silence:
			return b, err
		}
		line := fmt.Sprintf("%s: %d of %d, %d refused, %s", d.name, b.Total-b.Remaining, b.Total, b.Failed, b.Status)
		switch {
		case terminal:
			_, _ = fmt.Fprintf(notes, "\r%-70s", line)
		case time.Since(told) > 5*time.Second:
			_, _ = fmt.Fprintln(notes, line)
			told = time.Now()
		}
	}
	if terminal {
		_, _ = fmt.Fprintf(notes, "\r%-70s\r", "")
	}
	return b, nil
}
