package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/cornjacket/platform-services/internal/client"
	"github.com/cornjacket/platform-services/internal/config"
)

// letter is a dead letter and the service that has it.
type letter struct {
	client.DeadLetter
	service *client.Service
}

// letterServices returns the services to ask; only one of them has the letters of a consumer.
func letterServices(s config.DLQTarget, consumer string) (all []*client.Service, err error) {
	c, err := client.New(client.Config{CertFile: s.CertFile, CAFile: s.CAFile, Token: s.APIToken, Timeout: s.Timeout})
	if err != nil {
		return nil, err
	}
	for _, addr := range s.Addr {
		all = append(all, c.Service(addr, addr))
	}
	if len(all) > 0 {
		return all, nil
	}
	for _, service := range s.Services {
		if consumer == "" || config.DeskOf(consumer) == service {
			all = append(all, c.Service(service, s.Of(service)))
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("dead letters of %s are those of service %s, which is not one to ask", consumer, config.DeskOf(consumer))
	}
	return all, nil
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
func letters(ctx context.Context, s *client.Service, query url.Values, most int) (all []letter, more bool, err error) {
	list, more, err := s.DeadLetters(ctx, query, most)
	for i := range list {
		all = append(all, letter{list[i], s})
	}
	return all, more, err
}

// find returns the letter with an ID from the service that has it.
func find(ctx context.Context, all []*client.Service, id string) (*letter, error) {
	var failed []string
	for _, s := range all {
		l, err := s.DeadLetter(ctx, id)
		switch {
		case err == nil:
			return &letter{l, s}, nil
		case client.StatusOf(err) != http.StatusNotFound:
			failed = append(failed, err.Error())
		}
	}
	if len(failed) > 0 {
		return nil, fmt.Errorf("dead letter %s: not found where there was an answer: %s", id, strings.Join(failed, "; "))
	}
	return nil, fmt.Errorf("there is no dead letter %s", id)
}
