package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// console stands in for Redpanda Console: it answers the health check, and lists the topics as text.
func console(ctx context.Context, _ []string) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(os.Getenv("KAFKA_BROKERS"), ",")...))
	if err != nil {
		return fmt.Errorf("KAFKA_BROKERS: %w", err)
	}
	defer client.Close()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /admin/health", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "ok\n") // a client that has gone
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		topics, err := kadm.NewClient(client).ListTopics(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		for _, topic := range topics.Sorted() {
			fmt.Fprintf(w, "%s\t%d partitions\n", topic.Topic, len(topic.Partitions))
		}
	})
	return serve(ctx, "0.0.0.0:8080", mux)
}

// wget asks for the one URL among its arguments; the answer is thrown away, whatever the flags say.
func wget(ctx context.Context, args []string) error {
	for _, arg := range args {
		if strings.HasPrefix(arg, "http://") {
			return fetch(ctx, arg, io.Discard)
		}
	}
	return errors.New("no http:// URL given")
}

// fetch writes what a URL answers, which must be 200.
func fetch(ctx context.Context, url string, to io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return fmt.Errorf("ask %s: %w", url, err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("ask %s: %w", url, err)
	}
	defer response.Body.Close() //nolint:errcheck // nothing was written
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", url, response.Status)
	}
	if _, err := io.Copy(to, response.Body); err != nil {
		return fmt.Errorf("read %s: %w", url, err)
	}
	return nil
}
