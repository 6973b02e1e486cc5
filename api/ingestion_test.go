package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
)

const (
	eventPath = "/api/v1/events"
	batchPath = "/api/v1/events/batch"
	reading   = `{"event_type":"sensor.reading","aggregate_id":"device-001","payload":{"value":72.5,"unit":"fahrenheit"}}`
)

func TestPostEvent(t *testing.T) {
	t.Parallel()
	m := &memory{}
	url := ingestionServer(t, m) + eventPath
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	res := post(t, url, reading, "X-Correlation-ID", "order-7", "traceparent", parent)
	require.Equal(t, http.StatusAccepted, res.status, "%s", res.body)
	require.Equal(t, mediaJSON, res.header.Get("Content-Type"))
	require.Equal(t, "order-7", res.header.Get("X-Correlation-ID"))
	require.Equal(t, "no-store", res.header.Get("Cache-Control"))
	got := m.stored()
	require.Len(t, got, 1)
	e := got[0]
	require.JSONEq(t, `{"event_id":"`+e.ID.String()+`","status":"accepted"}`, string(res.body))
	require.Equal(t, uuid.Version(7), e.ID.Version())
	require.Equal(t, now, e.Time)
	require.Equal(t, now, e.IngestedAt)
	require.Equal(t, event.Metadata{Source: "http", CorrelationID: "order-7", Traceparent: parent, SchemaVersion: 1, Position: 1}, e.Metadata)
}

func TestPostEventKeepsTheSendersFields(t *testing.T) {
	t.Parallel()
	m := &memory{}
	url := ingestionServer(t, m) + eventPath
	res := post(t, url, `{"event_id":"0190a5c0-7b1e-7c3a-9d3e-5f6a7b8c9d0e","event_time":"2026-01-01T02:00:00.5+02:00",
		"event_type":"door.opened","aggregate_id":"Tür 7","payload":{"deep":[1,{"a":null}]}}`)
	require.Equal(t, http.StatusAccepted, res.status, "%s", res.body)
	e := m.stored()[0]
	require.Equal(t, "0190a5c0-7b1e-7c3a-9d3e-5f6a7b8c9d0e", e.ID.String())
	require.Equal(t, time.Date(2026, 1, 1, 0, 0, 0, 5e8, time.UTC), e.Time)
	require.Equal(t, "door.opened", e.Type, "a type without a schema is accepted")
	require.Equal(t, "Tür 7", e.AggregateID)
	require.JSONEq(t, `{"deep":[1,{"a":null}]}`, string(e.Payload))
}

func TestCorrelationIDIsTheCallersOrNew(t *testing.T) {
	t.Parallel()
	m := &memory{}
	url := ingestionServer(t, m)
	for name, given := range map[string]string{"none": "", "too long": strings.Repeat("x", 257), "not UTF-8": "a\xff", "tab inside": "a\tb"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			res := post(t, url+eventPath, reading, "X-Correlation-ID", given)
			require.Equal(t, http.StatusAccepted, res.status)
			_, err := uuid.Parse(res.header.Get("X-Correlation-ID"))
			require.NoError(t, err)
		})
	}
	for _, path := range []string{eventPath, "/nowhere", "/openapi.json"} {
		res := get(t, url+path, "X-Correlation-ID", "mine ✓")
		require.Equal(t, "mine ✓", res.header.Get("X-Correlation-ID"), path)
	}
}

func with(field, value string) string {
	fields := map[string]string{"event_type": `"a.b"`, "aggregate_id": `"d"`, "payload": `{}`}
	fields[field] = value
	var parts []string
	for k, v := range fields {
		if v != "" {
			parts = append(parts, `"`+k+`":`+v)
		}
	}
	return "{" + strings.Join(parts, ",") + "}"
}

func TestPostEventRefuses(t *testing.T) {
	t.Parallel()
	long := `"` + strings.Repeat("x", 300) + `"`
	for name, c := range map[string]struct {
		body     string
		status   int
		location string
	}{
		"empty":                    {"", 400, "body"},
		"not JSON":                 {"value=72.5", 400, "body"},
		"broken off":               {`{"event_type":"a.b"`, 400, "body"},
		"array":                    {"[]", 400, "body"},
		"null":                     {"null", 400, "body"},
		"trailing garbage":         {reading + "x", 400, "body"},
		"two documents":            {reading + reading, 400, "body"},
		"name given twice":         {`{"event_type":"a.b","event_type":"a.c","aggregate_id":"d","payload":{}}`, 400, "event_type"},
		"unknown field":            {with("colour", `"red"`), 422, "colour"},
		"no event_type":            {with("event_type", ""), 422, "event_type"},
		"event_type a number":      {with("event_type", "5"), 400, "event_type"},
		"event_type empty":         {with("event_type", `""`), 422, "event_type"},
		"event_type without dot":   {with("event_type", `"reading"`), 422, "event_type"},
		"event_type upper case":    {with("event_type", `"Sensor.Reading"`), 422, "event_type"},
		"event_type too long":      {with("event_type", long), 422, "event_type"},
		"no aggregate_id":          {with("aggregate_id", ""), 422, "aggregate_id"},
		"aggregate_id too long":    {with("aggregate_id", long), 422, "aggregate_id"},
		"aggregate_id with NUL":    {with("aggregate_id", `"a\u0000b"`), 422, "aggregate_id"},
		"aggregate_id with slash":  {with("aggregate_id", `"a/b"`), 422, "aggregate_id"},
		"no payload":               {with("payload", ""), 422, "payload"},
		"payload a string":         {with("payload", `"x"`), 422, "payload"},
		"payload with NUL":         {with("payload", `{"a":"\u0000"}`), 422, "payload.a"},
		"payload lone surrogate":   {with("payload", `{"a":"\ud800"}`), 400, "payload"},
		"payload with NaN":         {with("payload", `{"a":NaN}`), 400, "payload"},
		"payload not UTF-8":        {with("payload", "{\"a\":\"\xff\"}"), 400, "payload"},
		"payload number too big":   {with("payload", `{"a":1e999}`), 422, "payload.a"},
		"payload too deep":         {with("payload", strings.Repeat(`{"a":`, 10_000)+"1"+strings.Repeat("}", 10_000)), 400, ""},
		"payload over 256 KiB":     {with("payload", `{"a":"`+strings.Repeat("x", 300<<10)+`"}`), 413, "payload"},
		"body over 1 MiB":          {with("payload", `{"a":"`+strings.Repeat("x", 5<<20)+`"}`), 413, "body"},
		"event_time of the future": {with("event_time", `"+292278994-08-17T07:12:55.807Z"`), 422, "event_time"},
		"event_time ahead":         {with("event_time", `"2099-01-01T00:00:00Z"`), 422, "event_time"},
		"event_time unset":         {with("event_time", `"1970-01-01T00:00:03Z"`), 422, "event_time"},
		"event_time a number":      {with("event_time", "1770458400"), 400, "event_time"},
		"event_id no UUID":         {with("event_id", `"7"`), 422, "event_id"},
		"schema: wrong type": {`{"event_type":"sensor.reading","aggregate_id":"d","payload":{"value":"hot","unit":"c"}}`,
			422, "payload.value"},
		"schema: missing field": {`{"event_type":"sensor.reading","aggregate_id":"d","payload":{"unit":"c"}}`, 422, "payload"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := &memory{}
			p := post(t, ingestionServer(t, m)+eventPath, c.body).problem(t, c.status)
			require.Len(t, p.Errors, 1)
			require.True(t, strings.HasPrefix(p.Errors[0].Location, c.location), "%+v", p)
			require.Equal(t, p.Errors[0].Location+": "+p.Errors[0].Message, p.Detail)
			require.Empty(t, m.stored())
		})
	}
}

func TestProblemReadsWell(t *testing.T) {
	t.Parallel()
	p := post(t, ingestionServer(t, &memory{})+eventPath,
		`{"event_type":"sensor.reading","aggregate_id":"d","payload":{"value":"hot","unit":"c"}}`).problem(t, 422)
	require.Equal(t, "payload.value: must be a number in sensor.reading, is a string", p.Detail)
	require.Equal(t, []Detail{{"payload.value", "must be a number in sensor.reading, is a string"}}, p.Errors)
}

func TestContentTypes(t *testing.T) {
	t.Parallel()
	url := ingestionServer(t, &memory{})
	lines := reading + "\n\n" + reading + "\r\n"
	for _, c := range []struct {
		path, contentType, body string
		status                  int
	}{
		{eventPath, "application/json; charset=utf-8", reading, 202},
		{eventPath, "application/json;charset=UTF-8", reading, 202},
		{eventPath, "APPLICATION/JSON", reading, 202},
		{eventPath, "application/vnd.cornjacket.event+json", reading, 202},
		{eventPath, "", reading, 415},
		{eventPath, "text/plain", reading, 415},
		{eventPath, "application/x-www-form-urlencoded", reading, 415},
		{eventPath, "application/json; charset=iso-8859-1", reading, 415},
		{eventPath, "application/json; charset", reading, 415},
		{eventPath, "application/x-ndjson", reading, 415},
		{eventPath, ";", reading, 415},
		{batchPath, "application/json", "[" + reading + "]", 202},
		{batchPath, "application/json", lines, 400},
		{batchPath, "application/json", reading, 400},
		{batchPath, "application/x-ndjson", lines, 202},
		{batchPath, "application/jsonl", lines, 202},
		{batchPath, "application/x-ndjson", " [" + reading + "]", 400},
		{batchPath, "text/csv", lines, 415},
		{batchPath, "", lines, 415},
	} {
		t.Run(c.path+" "+c.contentType, func(t *testing.T) {
			t.Parallel()
			var headers []string
			if c.contentType != "" {
				headers = []string{"Content-Type", c.contentType}
			}
			res := call(t, http.MethodPost, url+c.path, strings.NewReader(c.body), headers...)
			if c.status == 202 {
				require.Equal(t, 202, res.status, "%s", res.body)
				return
			}
			res.problem(t, c.status)
			if c.status == 415 && !strings.Contains(c.contentType, "iso") {
				require.Contains(t, res.header.Get("Accept-Post"), mediaJSON)
			}
		})
	}
	res := post(t, url+eventPath, reading, "Content-Encoding", "gzip")
	require.Equal(t, "Content-Encoding", res.problem(t, 415).Errors[0].Location)
}

func TestBatch(t *testing.T) {
	t.Parallel()
	elements := make([]string, 10)
	for i := range elements {
		elements[i] = fmt.Sprintf(`{"event_type":"a.b","aggregate_id":"d%d","payload":{}}`, i)
	}
	elements[2] = `{"event_type":"a.b","aggregate_id":"d","payload":7}`
	elements[5] = `"no object"`
	elements[9] = `{"aggregate_id":"d","payload":{}}`
	for contentType, body := range map[string]string{
		"application/json":     "[" + strings.Join(elements, ", ") + "]",
		"application/x-ndjson": strings.Join(elements, "\n"),
	} {
		t.Run(contentType, func(t *testing.T) {
			t.Parallel()
			m := &memory{}
			res := call(t, http.MethodPost, ingestionServer(t, m)+batchPath, strings.NewReader(body),
				"Content-Type", contentType, "X-Correlation-ID", "lot-1")
			require.Equal(t, 202, res.status, "%s", res.body)
			require.JSONEq(t, `{"accepted":7,"rejected":[
				{"index":2,"error":"payload: must be a JSON object, is a number"},
				{"index":5,"error":"must be a JSON object, not a string"},
				{"index":9,"error":"event_type: is required"}]}`, string(res.body))
			got := m.stored()
			require.Len(t, got, 7)
			require.Equal(t, "d0", got[0].AggregateID)
			require.Equal(t, "d8", got[6].AggregateID)
			require.Equal(t, "lot-1", got[3].Metadata.CorrelationID)
		})
	}
}

func TestBatchAnswersListsAlways(t *testing.T) {
	t.Parallel()
	url := ingestionServer(t, &memory{}) + batchPath
	require.JSONEq(t, `{"accepted":1,"rejected":[]}`, string(post(t, url, "["+reading+"]").body))
	res := post(t, url, "[1]")
	require.Equal(t, 202, res.status)
	require.Contains(t, string(res.body), `"accepted":0`)
}

func TestBatchRefuses(t *testing.T) {
	t.Parallel()
	m := &memory{}
	url := ingestionServer(t, m) + batchPath
	many := "[" + strings.Repeat(reading+",", event.MaxBatch) + reading + "]"
	for name, c := range map[string]struct {
		body   string
		status int
	}{
		"empty body":        {"", 422},
		"white space":       {" \n", 422},
		"empty array":       {"[]", 422},
		"not closed":        {"[" + reading, 400},
		"trailing garbage":  {"[" + reading + "] x", 400},
		"not JSON":          {"[value=7]", 400},
		"an object":         {reading, 400},
		"10,001 events":     {many, 413},
		"10,000 brackets":   {strings.Repeat("[", 10_001), 400},
		"more than 32 MiB":  {strings.Repeat(" ", event.MaxBatchBody) + "[" + reading + "]", 413},
		"byte order marked": {"\ufeff[" + reading + "]", 400},
	} {
		t.Run(name, func(t *testing.T) {
			post(t, url, c.body).problem(t, c.status)
			require.Empty(t, m.stored())
		})
	}
	full := strings.Repeat(" ", event.MaxBatchBody-len(reading)-2) + "[" + reading + "]"
	require.Equal(t, 202, post(t, url, full).status, "a body of exactly 32 MiB")
	res := call(t, http.MethodPost, url, io.MultiReader(strings.NewReader(full)), "Content-Type", mediaJSON)
	require.Equal(t, 202, res.status, "and one of unknown length: %s", res.body)
	require.Len(t, m.stored(), 2)
}

func TestIngestErrors(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err    error
		status int
		retry  bool
	}{
		"overloaded":  {fmt.Errorf("queue: %w", fault.ErrOverloaded), 429, true},
		"unavailable": {fmt.Errorf("insert: %w", fault.ErrUnavailable), 503, true},
		"event error": {&event.Error{Kind: event.Invalid, Field: "payload", Rule: "cannot be stored"}, 422, false},
		"bug":         {errors.New("secret: password=hunter2"), 500, false},
	} {
		for _, path := range []string{eventPath, batchPath} {
			t.Run(name+path, func(t *testing.T) {
				t.Parallel()
				log := &logged{}
				m := &memory{fail: func(context.Context) error { return c.err }}
				url := serve(t, NewIngestion(IngestionConfig{Ingester: m, Log: slog.New(slog.NewTextHandler(log, nil))}))
				body := reading
				if path == batchPath {
					body = "[" + reading + "]"
				}
				res := post(t, url+path, body, "X-Correlation-ID", "find-me")
				res.problem(t, c.status)
				require.Equal(t, c.retry, res.header.Get("Retry-After") != "")
				require.NotContains(t, string(res.body), "hunter2")
				require.Equal(t, c.status == 500, strings.Contains(log.String(), "hunter2"))
				require.Equal(t, c.status == 500, strings.Contains(log.String(), "find-me"))
			})
		}
	}
}

func TestUnknownQueryParameterOfPost(t *testing.T) {
	t.Parallel()
	m := &memory{}
	p := post(t, ingestionServer(t, m)+eventPath+"?dry_run=1", reading).problem(t, 422)
	require.Equal(t, "dry_run", p.Errors[0].Location)
	require.Empty(t, m.stored())
}

func BenchmarkPostEvent(b *testing.B) {
	url := serve(b, NewIngestion(IngestionConfig{Ingester: nothing{}, Log: quiet()})) + eventPath
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	b.ReportAllocs()
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			res, err := client.Post(url, mediaJSON, strings.NewReader(reading))
			if err != nil {
				b.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
			if res.StatusCode != http.StatusAccepted {
				b.Errorf("status %d", res.StatusCode)
				return
			}
		}
	})
}

// BenchmarkPostEventHandler leaves the client and the connection out.
func BenchmarkPostEventHandler(b *testing.B) {
	h := NewIngestion(IngestionConfig{Ingester: nothing{}, Log: quiet()})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r := httptest.NewRequest(http.MethodPost, eventPath, strings.NewReader(reading))
			r.Header.Set("Content-Type", mediaJSON)
			h.ServeHTTP(httptest.NewRecorder(), r)
		}
	})
}

type nothing struct{}

func (nothing) Ingest(context.Context, []event.Envelope) error { return nil }
