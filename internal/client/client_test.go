package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// serve returns a service that answers as h says, and its client.
func serve(t *testing.T, cfg Config, h http.HandlerFunc) *Service {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	c, err := New(cfg)
	require.NoError(t, err)
	return c.Service("query", server.Listener.Addr().String())
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	c, err := New(Config{})
	require.NoError(t, err)
	for in, want := range map[string]string{
		"0.0.0.0:80": "localhost:80", ":80": "localhost:80", "[::]:80": "localhost:80", "10.0.0.1:80": "10.0.0.1:80", "[::1]:80": "[::1]:80", "odd": "odd",
	} {
		require.Equal(t, want, c.Service("x", in).Addr)
	}
}

func TestProblemsAreReadable(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		`{"title":"Bad","detail":"limit: too large"}`: "query answered 422: limit: too large",
		`<html>`: "query answered 422: Unprocessable Entity",
	} {
		s := serve(t, Config{}, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusUnprocessableEntity)
			_, _ = io.WriteString(w, body)
		})
		_, err := s.Ledger(t.Context())
		require.EqualError(t, err, want)
		require.Equal(t, http.StatusUnprocessableEntity, StatusOf(err))
		require.Equal(t, err, Cause(err))
	}
	s := serve(t, Config{}, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"balanced":"yes"}`) })
	_, err := s.Ledger(t.Context())
	require.ErrorContains(t, err, "read answer of query")
	require.Zero(t, StatusOf(err))
}

func TestNoAnswerNamesTheServiceOnce(t *testing.T) {
	t.Parallel()
	c, err := New(Config{})
	require.NoError(t, err)
	_, err = c.Service("relay", "127.0.0.1:1").Ledger(t.Context())
	require.ErrorContains(t, err, "relay (127.0.0.1:1) does not answer: dial tcp")
	require.NotContains(t, err.Error(), "http://")
	require.NotContains(t, Cause(err).Error(), "does not answer")
	require.Zero(t, StatusOf(err))

	release := make(chan struct{})
	s := serve(t, Config{Timeout: 20 * time.Millisecond}, func(http.ResponseWriter, *http.Request) { <-release })
	t.Cleanup(func() { close(release) })
	_, _, err = s.Health(t.Context())
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

// Pages are asked for one after the other, with the filters and the token, until there is enough.
func TestPages(t *testing.T) {
	t.Parallel()
	const total = 2500
	var asked []url.Values
	s := serve(t, Config{Token: "secret"}, func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		asked = append(asked, query)
		var from, size int
		_, _ = fmt.Sscan(query.Get("cursor"), &from)
		_, _ = fmt.Sscan(query.Get("limit"), &size)
		if r.Header.Get("Authorization") != "Bearer secret" || query.Get("status") != "pending" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		answer := `{"items":[`
		for i := from; i < min(from+size, total); i++ {
			if i > from {
				answer += ","
			}
			answer += fmt.Sprintf(`{"retry_count":%d}`, i)
		}
		answer += "]"
		if from+size < total {
			answer += fmt.Sprintf(`,"next_cursor":"%d"`, from+size)
		}
		_, _ = io.WriteString(w, answer+"}")
	})
	filter := url.Values{"status": {"pending"}}
	all, more, err := s.DeadLetters(t.Context(), filter, 0)
	require.NoError(t, err)
	require.False(t, more)
	require.Len(t, all, total)
	for i, l := range all {
		require.Equal(t, i, l.RetryCount)
	}
	require.Len(t, asked, 3)
	require.Equal(t, url.Values{"status": {"pending"}}, filter, "the caller's filters stay as they are")
	some, more, err := s.DeadLetters(t.Context(), filter, 1200)
	require.NoError(t, err)
	require.True(t, more)
	require.Len(t, some, 1200)
	require.Equal(t, "200", asked[4].Get("limit"), "no more than is wanted")
}
