package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/cornjacket/platform-services/internal/client"
	"github.com/cornjacket/platform-services/internal/config"
)

// listLetters prints the newest letters of all services. Those of services that do not answer are missing, which is an
// error once the others are printed.
func listLetters(ctx context.Context, s config.DLQList, out, notes io.Writer) error {
	all, err := letterServices(s.DLQTarget, s.Consumer)
	if err != nil {
		return err
	}
	var list []letter
	var failed []error
	more := false
	for _, d := range all {
		query := params(&s.DLQFilter)
		if s.Status != "all" {
			query.Set("status", s.Status)
		}
		some, others, err := letters(ctx, d, query, s.Limit)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		list, more = append(list, some...), more || others
	}
	if len(failed) == len(all) {
		return errors.Join(failed...)
	}
	slices.SortStableFunc(list, func(a, b letter) int { return b.FailedAt.Compare(a.FailedAt) })
	if len(list) > s.Limit {
		list, more = list[:s.Limit], true
	}
	if err := printLetters(list, s.JSON, out); err != nil {
		return fmt.Errorf("print dead letters: %w", err)
	}
	if more {
		_, _ = fmt.Fprintf(notes, "there are more: these are the newest %d, see --limit and the filters\n", len(list))
	}
	return errors.Join(failed...)
}

func printLetters(list []letter, asJSON bool, out io.Writer) error {
	if asJSON {
		for i := range list {
			if err := printJSON(out, &list[i].DeadLetter); err != nil {
				return err
			}
		}
		return nil
	}
	if len(list) == 0 {
		_, err := fmt.Fprintln(out, "no dead letters")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "DLQ ID\tCONSUMER\tSTATUS\tFAILED AT\tEVENT TYPE\tSOURCE\tRETRIES\tERROR") // Flush reports any error
	for i := range list {
		l := &list[i]
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", l.ID, l.Consumer, l.Status, l.FailedAt.Format(time.RFC3339),
			dash(l.EventType), shorten(l.SourceTopic, 40), l.RetryCount, shorten(l.Error, 100))
	}
	return w.Flush()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// shorten is the first line of a text, or its beginning.
func shorten(s string, most int) string {
	s, _, cut := strings.Cut(s, "\n")
	if runes := []rune(s); len(runes) > most {
		s, cut = string(runes[:most]), true
	}
	if cut {
		s += "…"
	}
	return dash(s)
}

func printJSON(out io.Writer, v any) error {
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(v)
}

// showLetters prints letters whole.
func showLetters(ctx context.Context, s config.DLQShow, out io.Writer) error {
	all, err := letterServices(s.DLQTarget, "")
	if err != nil {
		return err
	}
	var failed []error
	for _, id := range s.IDs {
		l, err := find(ctx, all, id)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		if s.JSON {
			err = printJSON(out, &l.DeadLetter)
		} else {
			err = printLetter(out, l)
		}
		if err != nil {
			return fmt.Errorf("print dead letter: %w", err)
		}
	}
	return errors.Join(failed...)
}

// printLetter prints the members of a letter in a fixed order, the payload last.
func printLetter(out io.Writer, l *letter) error {
	data, err := json.Marshal(&l.DeadLetter)
	if err != nil {
		return err
	}
	var members map[string]any
	if err := json.Unmarshal(data, &members); err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, name := range []string{
		"dlq_id", "consumer", "status", "event_id", "event_type", "error_message", "failed_at", "retry_count", "retried_at", "replayed_at",
		"discarded_at", "reason", "source_topic", "source_partition", "source_offset", "message_key", "correlation_id", "position",
		"bus_topic", "published_at", "properties", "edited_topic", "edited_payload_encoding", "edited_payload", "payload_encoding",
		"payload_bytes",
	} {
		if value, ok := members[name]; ok && value != nil {
			text, isText := value.(string)
			if !isText {
				data, err := json.Marshal(value)
				if err != nil {
					return err
				}
				text = string(data)
			}
			_, _ = fmt.Fprintf(w, "%s\t%s\n", name, strings.ReplaceAll(text, "\n", "\n\t"))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "event_payload:\n%s\n", l.Payload)
	return err
}

// replayLetters replays the letters that are named, or starts bulk replays and waits for them.
func replayLetters(ctx context.Context, s config.DLQReplay, in io.Reader, out, notes io.Writer) error {
	all, err := letterServices(s.DLQTarget, s.Consumer)
	if err != nil {
		return err
	}
	if s.All {
		return bulkReplay(ctx, all, s, out, notes)
	}
	edit, err := editOf(s, in)
	if err != nil {
		return err
	}
	return eachLetter(ctx, all, s.IDs, step{verb: "replay", done: "replayed", body: edit, dryRun: s.DryRun, json: s.JSON}, out)
}

// editOf returns what was edited, nil if nothing was.
func editOf(s config.DLQReplay, in io.Reader) (any, error) {
	if s.AsTopic == "" && s.PayloadFile == "" {
		return nil, nil
	}
	edit := &client.ReplayEdit{Topic: client.Text(s.AsTopic)}
	if s.PayloadFile == "" {
		return edit, nil
	}
	var data []byte
	var err error
	if s.PayloadFile == "-" {
		data, err = io.ReadAll(in)
	} else {
		data, err = os.ReadFile(s.PayloadFile)
	}
	if err != nil {
		return nil, fmt.Errorf("read --payload-file: %w", err)
	}
	edit.Encoding = "base64"
	edit.Payload, err = json.Marshal(data)
	return edit, err
}

// discardLetters discards the letters that are named, or all that match when it begins.
func discardLetters(ctx context.Context, s config.DLQDiscard, out io.Writer) error {
	all, err := letterServices(s.DLQTarget, s.Consumer)
	if err != nil {
		return err
	}
	do := step{verb: "discard", done: "discarded", dryRun: s.DryRun, json: s.JSON}
	if s.Reason != "" {
		do.body = &client.Discard{Reason: client.Text(s.Reason)}
	}
	if !s.All {
		return eachLetter(ctx, all, s.IDs, do, out)
	}
	var matching []letter
	for _, d := range all {
		query := params(&s.DLQFilter)
		query.Set("status", "pending")
		some, _, err := letters(ctx, d, query, 0)
		if err != nil {
			return err
		}
		matching = append(matching, some...)
	}
	var failed []error
	for i := range matching {
		if err := do.on(ctx, &matching[i], out); err != nil {
			failed = append(failed, err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	if !s.JSON {
		verb := "discarded"
		if s.DryRun {
			verb = "would be discarded"
		}
		if _, err := fmt.Fprintf(out, "%d of %d %s\n", len(matching)-len(failed), len(matching), verb); err != nil {
			return fmt.Errorf("print result: %w", err)
		}
	}
	return some(failed)
}

// some is an error that shows the first of many.
func some(failed []error) error {
	const most = 5
	if len(failed) <= most {
		return errors.Join(failed...)
	}
	return fmt.Errorf("%w; and %d more", errors.Join(failed[:most]...), len(failed)-most)
}

// step is what is done with each letter.
type step struct {
	verb, done   string
	body         any
	dryRun, json bool
}

func eachLetter(ctx context.Context, all []*client.Service, ids []string, do step, out io.Writer) error {
	var failed []error
	for _, id := range ids {
		l, err := find(ctx, all, id)
		if err == nil {
			err = do.on(ctx, l, out)
		}
		if err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// on does the step with a letter and prints what has come of it.
func (s *step) on(ctx context.Context, l *letter, out io.Writer) error {
	if s.dryRun {
		if l.Status != "pending" {
			return fmt.Errorf("dead letter %s is not pending but %s", l.ID, l.Status)
		}
		return s.print(out, l, "would be "+s.done)
	}
	changed, err := l.service.Change(ctx, l.ID.String(), s.verb, s.body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", s.verb, l.ID, err)
	}
	return s.print(out, &letter{changed, l.service}, s.done)
}

func (s *step) print(out io.Writer, l *letter, what string) error {
	var err error
	if s.json {
		err = printJSON(out, &l.DeadLetter)
	} else {
		eventID := "-"
		if l.EventID != nil {
			eventID = l.EventID.String()
		}
		_, err = fmt.Fprintf(out, "%s  %s  %s  event %s\n", l.ID, l.Consumer, what, eventID)
	}
	if err != nil {
		return fmt.Errorf("print result: %w", err)
	}
	return nil
}
