package api

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/store"
)

// now is what the clock of the tests says.
var now = time.Date(2026, 2, 7, 10, 0, 0, 123456000, time.UTC)

// memory keeps what is ingested, and reads it back.
type memory struct {
	mu          sync.Mutex
	events      []event.Envelope // in the order of their positions
	projections []store.Projection
	fail        func(ctx context.Context) error // answers in place of everything, if set
}

func (m *memory) failing(ctx context.Context) error {
	if m.fail == nil {
		return nil
	}
	return m.fail(ctx)
}

func (m *memory) Ingest(ctx context.Context, events []event.Envelope) error {
	if err := m.failing(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range events {
		e.Metadata.Position = int64(len(m.events) + 1)
		m.events = append(m.events, e)
	}
	return nil
}

func (m *memory) stored() []event.Envelope {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.events)
}

func (m *memory) Projection(ctx context.Context, kind, id string) (store.Projection, error) {
	if err := m.failing(ctx); err != nil {
		return store.Projection{}, err
	}
	for _, p := range m.projections {
		if p.Type == kind && p.AggregateID == id {
			return p, nil
		}
	}
	return store.Projection{}, fault.ErrNotFound
}

func (m *memory) Projections(ctx context.Context, kind, after string, limit int) ([]store.Projection, error) {
	if err := m.failing(ctx); err != nil {
		return nil, err
	}
	var found []store.Projection
	for _, p := range m.projections {
		if p.Type == kind && p.AggregateID > after {
			found = append(found, p)
		}
	}
	slices.SortFunc(found, func(a, b store.Projection) int { return cmp.Compare(a.AggregateID, b.AggregateID) })
	return found[:min(limit, len(found))], nil
}

func (m *memory) Event(ctx context.Context, id uuid.UUID) (event.Envelope, error) {
	if err := m.failing(ctx); err != nil {
		return event.Envelope{}, err
	}
	for _, e := range m.stored() {
		if e.ID == id {
			return e, nil
		}
	}
	return event.Envelope{}, fault.ErrNotFound
}

func (m *memory) Events(ctx context.Context, f store.EventFilter) ([]event.Envelope, error) {
	if err := m.failing(ctx); err != nil {
		return nil, err
	}
	var found []event.Envelope
	list := m.stored()
	if f.ByTime() {
		slices.SortStableFunc(list, func(a, b event.Envelope) int { return a.Time.Compare(b.Time) })
	}
	for _, e := range slices.Backward(list) {
		later := e.Metadata.Position >= f.Before
		if order := e.Time.Compare(f.BeforeTime); f.ByTime() && order != 0 {
			later = order > 0
		}
		switch {
		case f.Before > 0 && later,
			f.AggregateID != "" && e.AggregateID != f.AggregateID,
			f.EventType != "" && e.Type != f.EventType,
			!f.From.IsZero() && e.Time.Before(f.From),
			!f.To.IsZero() && !e.Time.Before(f.To):
		case len(found) < f.Limit:
			found = append(found, e)
		}
	}
	return found, nil
}

func serve(t testing.TB, h http.Handler) string {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	limits := Server(slog.New(slog.DiscardHandler))
	limits.Handler = h
	srv.Config = limits
	srv.Start()
	t.Cleanup(srv.Close)
	return srv.URL
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func ingestionServer(t testing.TB, m *memory) string {
	t.Helper()
	return serve(t, NewIngestion(IngestionConfig{
		Ingester: m, Now: func() time.Time { return now }, NewID: func() uuid.UUID { return uuid.Must(uuid.NewV7()) },
		Log: quiet(), Version: "test", Clock: event.Clock{MaxAhead: 10 * time.Minute, Min: time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)},
	}))
}

func queryServer(t testing.TB, m *memory) string {
	t.Helper()
	return serve(t, NewQuery(QueryConfig{Reader: m, Log: quiet(), Version: "test"}))
}

type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a answer) json(t *testing.T, v any) {
	t.Helper()
	require.NoError(t, json.Unmarshal(a.body, v), "%s", a.body)
}

// problem checks all that every problem has and returns it.
func (a answer) problem(t *testing.T, status int) Problem {
	t.Helper()
	require.Equal(t, status, a.status, "%s", a.body)
	require.Equal(t, problemContentType, a.header.Get("Content-Type"))
	var p Problem
	a.json(t, &p)
	require.Equal(t, "about:blank", p.Type)
	require.Equal(t, status, p.Status)
	require.Equal(t, http.StatusText(status), p.Title)
	require.NotEmpty(t, p.Detail)
	require.NotEmpty(t, p.CorrelationID)
	require.Equal(t, a.header.Get("X-Correlation-ID"), p.CorrelationID)
	return p
}

// call sends a request; headers are name, value pairs.
func call(t testing.TB, method, url string, body io.Reader, headers ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	require.NoError(t, err)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultTransport.RoundTrip(req) // no redirects are followed
	require.NoError(t, err)
	defer func() { _ = res.Body.Close() }()
	data, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return answer{res.StatusCode, res.Header, data}
}

func post(t testing.TB, url, body string, headers ...string) answer {
	t.Helper()
	return call(t, http.MethodPost, url, strings.NewReader(body), append([]string{"Content-Type", mediaJSON}, headers...)...)
}

func get(t testing.TB, url string, headers ...string) answer {
	t.Helper()
	return call(t, http.MethodGet, url, nil, headers...)
}

// logged is a log that tests read.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}
