package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/cornjacket/platform-services/internal/client"
	"github.com/cornjacket/platform-services/internal/config"
)

const (
	progressEvery = 250 * time.Millisecond
	// silence is how long a service may be away while its bulk replay is waited for: it goes on by itself when the
	// service is back.
	silence = time.Minute
)

func ended(r *client.BulkReplay) bool { return r.Status == "done" || r.Status == "cancelled" }

// bulkReplay starts a bulk replay in each service and waits for all.
func bulkReplay(ctx context.Context, all []*client.Service, s config.DLQReplay, out, notes io.Writer) error {
	request := map[string]any{"rate": s.Rate, "dry_run": s.DryRun}
	for name, values := range params(&s.DLQFilter) {
		request[name] = values[0]
	}
	run := replayService
	if s.DryRun {
		run = countService
	}
	var failed []error
	for _, service := range all {
		if err := run(ctx, service, request, s, out, notes); err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

func countService(ctx context.Context, service *client.Service, request map[string]any, s config.DLQReplay, out, _ io.Writer) error {
	count, err := service.CountReplay(ctx, request)
	if err != nil {
		return err
	}
	if s.JSON {
		return printOf(out, service, count)
	}
	return printed(fmt.Fprintf(out, "%s: %d would be replayed\n", service.Name, count.Matched))
}

func replayService(ctx context.Context, service *client.Service, request map[string]any, s config.DLQReplay, out, notes io.Writer) error {
	r, err := service.StartReplay(ctx, request)
	if err != nil {
		return err
	}
	if !s.NoWait && !ended(&r) {
		if r, err = follow(ctx, service, r, notes); err != nil {
			return err
		}
	}
	switch {
	case s.JSON:
		err = printOf(out, service, r)
	case s.NoWait && !ended(&r):
		err = printed(fmt.Fprintf(out, "%s: bulk replay %s of %d has begun\n", service.Name, r.ID, r.Total))
	default:
		err = printed(fmt.Fprintf(out, "%s: %d replayed, %d refused again, %d not pending any more\n", service.Name, r.Replayed, r.Failed, r.Skipped))
	}
	switch {
	case err != nil:
		return err
	case r.Status == "cancelled":
		return fmt.Errorf("%s: bulk replay %s was cancelled, %d are still pending", service.Name, r.ID, r.Remaining)
	case r.Failed > 0:
		return fmt.Errorf("%s: %d were refused again and are still pending, the last one: %s", service.Name, r.Failed, shorten(r.LastError, 200))
	}
	return nil
}

// printOf prints an answer as JSON, with the name of the service that gave it.
func printOf(out io.Writer, service *client.Service, answer any) error {
	data, err := json.Marshal(answer)
	if err != nil {
		return fmt.Errorf("encode result: %w", err)
	}
	members := map[string]any{}
	if err := json.Unmarshal(data, &members); err != nil {
		return fmt.Errorf("encode result: %w", err)
	}
	members["service"] = service.Name
	return printed(0, printJSON(out, members))
}

func printed(_ int, err error) error {
	if err != nil {
		return fmt.Errorf("print result: %w", err)
	}
	return nil
}

// follow waits until a bulk replay has ended, and reports how far it is.
func follow(ctx context.Context, service *client.Service, r client.BulkReplay, notes io.Writer) (client.BulkReplay, error) {
	terminal := isTerminal(notes)
	heard, told := time.Now(), time.Now()
	for !ended(&r) {
		select {
		case <-time.After(progressEvery):
		case <-ctx.Done():
			return r, fmt.Errorf("%s: no longer waiting; bulk replay %s goes on in the service", service.Name, r.ID)
		}
		now, err := service.BulkReplay(ctx, r.ID.String())
		switch status := client.StatusOf(err); {
		case err == nil:
			r, heard = now, time.Now()
		case status > 0 && status < http.StatusInternalServerError, time.Since(heard) > silence:
			return r, err
		}
		line := fmt.Sprintf("%s: %d of %d, %d refused, %s", service.Name, r.Total-r.Remaining, r.Total, r.Failed, r.Status)
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
	return r, nil
}
