package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cornjacket/platform-services/internal/config"
)

// largestLetters is more than a page of dead letters can be, in bytes.
const largestLetters = 64 << 20

// desk is a service that has dead letters, as a client sees it.
type desk struct {
	name, scheme, addr string
	token              string
	timeout            time.Duration
	client             *http.Client
}

// desks returns the services to ask; only one of them has the letters of a consumer.
func desks(s config.DLQTarget, consumer string) ([]*desk, error) {
	var all []*desk
	client, scheme, err := healthClient(s.TLSClient)
	if err != nil {
		return nil, err
	}
	add := func(name, addr string) {
		all = append(all, &desk{name: name, scheme: scheme, addr: reachable(addr), token: s.APIToken, timeout: s.Timeout, client: client})
	}
	for _, addr := range s.Addr {
		add(addr, addr)
	}
	if len(all) > 0 {
		return all, nil
	}
	for _, service := range s.Services {
		if consumer == "" || config.DeskOf(consumer) == service {
			add(service, s.Of(service))
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("dead letters of %s are those of service %s, which is not one to ask", consumer, config.DeskOf(consumer))
	}
	return all, nil
}

// refusal is a problem that a service has answered with.
type refusal struct {
	status int
	detail string
}

func (r *refusal) Error() string { return r.detail }

func isStatus(err error, status int) bool {
	var r *refusal
	return errors.As(err, &r) && r.status == status
}

// call asks a service and reads its answer into out, which may be a *json.RawMessage.
func (d *desk) call(ctx context.Context, method, path string, query url.Values, body, out any) error {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	var sent io.Reader = http.NoBody
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		sent = bytes.NewReader(data)
	}
	target := url.URL{Scheme: d.scheme, Host: d.addr, Path: "/api/v1/dlq" + path, RawQuery: query.Encode()}
	request, err := http.NewRequestWithContext(ctx, method, target.String(), sent)
	if err != nil {
		return fmt.Errorf("%s (%s) can't be asked: %w", d.name, d.addr, err)
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if d.token != "" {
		request.Header.Set("Authorization", "Bearer "+d.token)
	}
	response, err := d.client.Do(request)
	if err != nil {
		return fmt.Errorf("%s (%s) does not answer: %w", d.name, d.addr, errors.Unwrap(err))
	}
	defer response.Body.Close() //nolint:errcheck // nothing was written
	data, err := io.ReadAll(io.LimitReader(response.Body, largestLetters))
	if err != nil {
		return fmt.Errorf("answer of %s broke off: %w", d.name, err)
	}
	if response.StatusCode >= http.StatusBadRequest {
		return refused(d.name, response.StatusCode, data)
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("read answer of %s: %w", d.name, err)
	}
	return nil
}

func refused(name string, status int, data []byte) error {
	var problem struct {
		Detail string `json:"detail"`
	}
	if json.Unmarshal(data, &problem) != nil || problem.Detail == "" {
		problem.Detail = http.StatusText(status)
	}
	return &refusal{status: status, detail: fmt.Sprintf("%s answered %d: %s", name, status, problem.Detail)}
}

// letter is what this command reads of a dead letter; raw is all of it.
type letter struct {
	ID         string    `json:"dlq_id"`
	Consumer   string    `json:"consumer"`
	Status     string    `json:"status"`
	EventID    *string   `json:"event_id"`
	EventType  string    `json:"event_type"`
	Key        string    `json:"message_key"`
	Topic      string    `json:"source_topic"`
	Error      string    `json:"error_message"`
	FailedAt   time.Time `json:"failed_at"`
	RetryCount int       `json:"retry_count"`
	Payload    string    `json:"event_payload"`
	Encoding   string    `json:"payload_encoding"`

	raw  json.RawMessage
	desk *desk
}

// UnmarshalJSON reads a letter and keeps it as it came.
func (l *letter) UnmarshalJSON(data []byte) error {
	type plain letter
	if err := json.Unmarshal(data, (*plain)(l)); err != nil {
		return err
	}
	l.raw = bytes.Clone(data)
	return nil
}

// params are the filters as query parameters.
func params(f *config.DLQFilter) url.Values {
	query := url.Values{}
	for name, value := range map[string]string{
		"consumer": f.Consumer, "event_id": f.EventID, "event_type": f.EventType, "topic": f.Topic, "error": f.Error,
		"from": f.From, "to": f.To,
	} {
		if value != "" {
			query.Set(name, value)
		}
	}
	return query
}

// letters returns up to most letters of a service, the newest first; all if most is zero. more says that there are others.
func (d *desk) letters(ctx context.Context, query url.Values, most int) (all []letter, more bool, err error) {
	const pageSize = 1000
	for {
		size := pageSize
		if most > 0 {
			size = min(size, most-len(all))
		}
		query.Set("limit", fmt.Sprint(size))
		var page struct {
			Items []letter `json:"items"`
			Next  string   `json:"next_cursor"`
		}
		if err := d.call(ctx, http.MethodGet, "", query, nil, &page); err != nil {
			return nil, false, err
		}
		for i := range page.Items {
			page.Items[i].desk = d
		}
		all = append(all, page.Items...)
		if page.Next == "" || most > 0 && len(all) >= most {
			return all, page.Next != "", nil
		}
		query.Set("cursor", page.Next)
	}
}

// find returns the letter with an ID from the service that has it.
func find(ctx context.Context, all []*desk, id string) (*letter, error) {
	var failed []string
	for _, d := range all {
		var l letter
		switch err := d.call(ctx, http.MethodGet, "/"+id, nil, nil, &l); {
		case err == nil:
			l.desk = d
			return &l, nil
		case !isStatus(err, http.StatusNotFound):
			failed = append(failed, err.Error())
		}
	}
	if len(failed) > 0 {
		return nil, fmt.Errorf("dead letter %s: not found where there was an answer: %s", id, strings.Join(failed, "; "))
	}
	return nil, fmt.Errorf("there is no dead letter %s", id)
}
