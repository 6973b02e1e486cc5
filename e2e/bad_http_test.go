package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	longID = strings.Repeat("x", 300)
	deep   = strings.Repeat(`{"a":`, 10_000) + "1" + strings.Repeat("}", 10_000)
	huge   = strings.Repeat("x", 5<<20)
)

// mistake is an event that must be refused, as the body of POST /api/v1/events.
type mistake struct {
	name, body string
	status     int // 0: 400 or 422
}

// envelope is a good event with one of its members replaced or, with an empty value, left out.
func envelope(member, value string) string {
	members := map[string]string{"event_type": `"sensor.reading"`, "aggregate_id": `"bad-` + run + `"`, "payload": `{"value":1,"unit":"celsius"}`}
	if value == "" {
		delete(members, member)
	} else {
		members[member] = value
	}
	var list []string
	for _, name := range []string{"event_id", "event_type", "aggregate_id", "event_time", "ingested_at", "payload", "metadata", "extra"} {
		if v, ok := members[name]; ok {
			list = append(list, fmt.Sprintf("%q:%s", name, v))
		}
	}
	return "{" + strings.Join(list, ",") + "}"
}

func mistakes() []mistake {
	list := []mistake{
		{name: "not JSON", body: "temperature=21"},
		{name: "empty", body: ""},
		{name: "white space", body: " \n "},
		{name: "null", body: "null"},
		{name: "an array", body: "[]"},
		{name: "a string", body: `"x"`},
		{name: "breaks off", body: `{"event_type":"sensor.reading","aggregate_id":"a","payload":{"value":1`},
		{name: "trailing garbage", body: envelope("extra", "") + "garbage"},
		{name: "two objects", body: envelope("extra", "") + envelope("extra", "")},
		{name: "invalid UTF-8", body: envelope("aggregate_id", "\"a\xff\"")},
		{name: "byte order mark", body: "\ufeff" + envelope("extra", "")},
		{name: "payload too large", body: envelope("payload", `{"value":1,"unit":"`+strings.Repeat("x", 300<<10)+`"}`), status: http.StatusRequestEntityTooLarge},
		{name: "5 MB", body: envelope("payload", `{"value":1,"unit":"`+huge+`"}`), status: http.StatusRequestEntityTooLarge},
		{name: "5 MB of nothing", body: huge, status: http.StatusRequestEntityTooLarge},
		{name: "deep payload", body: envelope("payload", deep)},
		{name: "deep body", body: deep},
		{name: "deep arrays", body: strings.Repeat("[", 100_000)},
		{name: "a name twice", body: envelope("payload", `{"value":1,"value":2,"unit":"celsius"}`)},
	}
	for _, m := range []struct {
		member string
		values []string
	}{
		{"event_type", []string{"", `""`, `null`, `5`, `"sensor"`, `"Sensor.Reading"`, `"sensor reading.x"`, `"sensor.` + longID + `"`, `"sensor.\u0000"`}},
		{"aggregate_id", []string{"", `""`, `null`, `5`, `"a/b"`, `"a+b"`, `"a#"`, `"a\n"`, `"a\u0000b"`, `"\ud800"`, `"` + longID + `"`}},
		{"payload", []string{
			"", `null`, `5`, `"x"`, `[]`, `{}`, `{"unit":"celsius"}`, `{"value":"hot","unit":"celsius"}`, `{"value":null,"unit":"celsius"}`,
			`{"value":NaN,"unit":"celsius"}`, `{"value":Infinity,"unit":"celsius"}`, `{"value":01,"unit":"celsius"}`, `{"value":1e200000,"unit":"celsius"}`,
			`{"value":` + strings.Repeat("9", 5000) + `,"unit":"celsius"}`, `{"value":1,"unit":"\u0000"}`, `{"value":1,"unit":"\ud800"}`,
			`{"value":1,"unit":"\udc00\ud800"}`, `{"value":1,"unit":"c","a\u0000":1}`, `{"unit":"c","note":"not a number"}`, "{\"value\":1,\"unit\":\"\x01\"}",
		}},
		{"event_time", []string{
			`""`, `5`, `"now"`, `"2026-02-07"`, `"2026-02-07 10:00:00"`, `"2026-02-30T10:00:00Z"`, `"2026-02-07T10:00:00"`, `"+292278994-08-17T07:12:55.807Z"`,
			`"292278994-08-17T07:12:55Z"`, `"10000-01-01T00:00:00Z"`, `"0000-01-01T00:00:00Z"`, `"-0001-01-01T00:00:00Z"`, `"2026-02-07T10:00:00+24:00"`,
		}},
		{"event_id", []string{`""`, `5`, `"x"`, `"00000000-0000-0000-0000-000000000000"`, `"{0190a5c0-7b1e-7c3a-9d3e-5f6a7b8c9d0e}"`, `"0190a5c07b1e7c3a9d3e5f6a7b8c9d0e"`}},
		{"metadata", []string{`5`, `{"correlation_id":"` + longID + `"}`, `{"correlation_id":"a\u0000"}`, `{"correlation_id":5}`}},
		{"extra", []string{`1`}},
	} {
		for _, v := range m.values {
			list = append(list, mistake{name: fmt.Sprintf("%s %.30s", m.member, v), body: envelope(m.member, v)})
		}
	}
	return list
}

// refused holds an answer against RFC 9457 and the status that was expected.
func refused(t *testing.T, a answer, status int) {
	t.Helper()
	if status == 0 {
		require.Contains(t, []int{http.StatusBadRequest, http.StatusUnprocessableEntity}, a.status, "%s", a.body)
	} else {
		require.Equal(t, status, a.status, "%.500s", a.body)
	}
	require.Equal(t, "application/problem+json", a.header.Get("Content-Type"))
	require.NotEmpty(t, a.header.Get("X-Correlation-ID"))
	require.Less(t, len(a.body), 4096, "an answer that repeats what was wrong, however large")
	var problem struct {
		Title, Detail string
		Status        int
	}
	require.NoError(t, json.Unmarshal(a.body, &problem))
	require.Equal(t, a.status, problem.Status)
	require.NotEmpty(t, problem.Title)
	require.NotEmpty(t, problem.Detail)
}

func TestHTTPMistakes(t *testing.T) {
	t.Parallel()
	p := shared(t)
	for _, m := range mistakes() {
		t.Run(m.name, func(t *testing.T) { refused(t, p.post(t, eventsPath, typeJSON, m.body), m.status) })
	}
	good := envelope("extra", "")
	for name, c := range map[string]struct {
		method, path, body string
		headers            []string
		status             int
	}{
		"no content type":     {http.MethodPost, eventsPath, good, nil, http.StatusUnsupportedMediaType},
		"wrong content type":  {http.MethodPost, eventsPath, good, []string{"Content-Type", "text/plain"}, http.StatusUnsupportedMediaType},
		"form":                {http.MethodPost, eventsPath, good, []string{"Content-Type", "application/x-www-form-urlencoded"}, http.StatusUnsupportedMediaType},
		"other character set": {http.MethodPost, eventsPath, good, []string{"Content-Type", "application/json; charset=utf-16"}, http.StatusUnsupportedMediaType},
		"compressed":          {http.MethodPost, eventsPath, good, []string{"Content-Type", typeJSON, "Content-Encoding", "gzip"}, http.StatusUnsupportedMediaType},
		"wrong method":        {http.MethodPut, eventsPath, good, []string{"Content-Type", typeJSON}, http.StatusMethodNotAllowed},
		"no such path":        {http.MethodPost, "/api/v2/events", good, []string{"Content-Type", typeJSON}, http.StatusNotFound},
		"unknown parameter":   {http.MethodPost, eventsPath + "?sync=1", good, []string{"Content-Type", typeJSON}, http.StatusUnprocessableEntity},
		"lines as JSON":       {http.MethodPost, batchPath, good + "\n" + good, []string{"Content-Type", typeJSON}, http.StatusBadRequest},
		"an array as lines":   {http.MethodPost, batchPath, "[" + good + "]", []string{"Content-Type", typeLines}, http.StatusBadRequest},
		"batch breaks off":    {http.MethodPost, batchPath, "[" + good + ",", []string{"Content-Type", typeJSON}, http.StatusBadRequest},
		"batch of text":       {http.MethodPost, batchPath, "[" + good + ",x]", []string{"Content-Type", typeJSON}, http.StatusBadRequest},
		"batch with a tail":   {http.MethodPost, batchPath, "[" + good + "]x", []string{"Content-Type", typeJSON}, http.StatusBadRequest},
		"batch without type":  {http.MethodPost, batchPath, "[" + good + "]", nil, http.StatusUnsupportedMediaType},
		"batch of 10,001":     {http.MethodPost, batchPath, "[" + strings.Repeat("1,", 10_000) + "1]", []string{"Content-Type", typeJSON}, http.StatusRequestEntityTooLarge},
		"batch of 40 MB":      {http.MethodPost, batchPath, "[" + strings.Repeat(" ", 40<<20) + "]", []string{"Content-Type", typeJSON}, http.StatusRequestEntityTooLarge},
		"empty array":         {http.MethodPost, batchPath, "[]", []string{"Content-Type", typeJSON}, 0},
		"no lines":            {http.MethodPost, batchPath, "", []string{"Content-Type", typeLines}, 0},
		"empty lines":         {http.MethodPost, batchPath, "\n\n \n", []string{"Content-Type", typeLines}, 0},
		"no batch":            {http.MethodPost, batchPath, "", []string{"Content-Type", typeJSON}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := request(t.Context(), c.method, p.ingestionAPI()+c.path, []byte(c.body), c.headers...)
			require.NoError(t, err)
			refused(t, a, c.status)
		})
	}
	p.arrives(t)
}

// What is wrong with a query is said too, and is never a failure of the server.
func TestQueryMistakes(t *testing.T) {
	t.Parallel()
	p := shared(t)
	const list = "/api/v1/projections/sensor_state"
	for path, status := range map[string]int{
		list + "?limit=0": 0, list + "?limit=1001": 0, list + "?limit=x": 0, list + "?limit=99999999999999999999": 0, list + "?cursor=x": 0,
		list + "?cursor=AAAA": 0, list + "?nonsense=1": 0, list + "?limit=1&limit=2": 0, list + "/" + longID: 0, list + "/a%00b": 0, list + "/%ff": 0,
		"/api/v1/projections/%00": 0, eventsPath + "?from=yesterday": 0, eventsPath + "?from=2026-02-08T00:00:00Z&to=2026-02-07T00:00:00Z": 0,
		eventsPath + "?aggregate_id=%00": 0, eventsPath + "?event_type=%ff": 0, eventsPath + "/not-a-uuid": 0, eventsPath + "/" + newID(): http.StatusNotFound,
		list + "/" + unique("nobody"): http.StatusNotFound, "/nothing": http.StatusNotFound,
	} {
		t.Run(path, func(t *testing.T) {
			a, err := request(t.Context(), http.MethodGet, p.queryAPI()+path, nil)
			require.NoError(t, err)
			refused(t, a, status)
		})
	}
	var page struct {
		Items []projection `json:"items"`
	}
	status, err := p.get(t.Context(), "/api/v1/projections/no_such_type", &page)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status)
	require.Empty(t, page.Items)
}

// Bad events of a batch do not cost the good ones beside them.
func TestBatchWithBadEvents(t *testing.T) {
	t.Parallel()
	p := shared(t)
	for name, form := range map[string]struct{ contentType, open, between, end string }{
		"array": {typeJSON, "[", ",", "]"}, "NDJSON": {typeLines, "", "\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			aggregate := unique("mixed")
			var list []string
			for i := range 10 {
				list = append(list, reading(newID(), aggregate, "2026-02-07T10:00:00Z", i))
			}
			list[0], list[4], list[9] = envelope("payload", `{"value":1,"unit":"\u0000"}`), envelope("aggregate_id", `"\ud800"`), envelope("event_time", `"never"`)
			a := p.post(t, batchPath, form.contentType, form.open+strings.Join(list, form.between)+form.end)
			require.Equal(t, http.StatusAccepted, a.status, "%s", a.body)
			var result struct {
				Accepted int
				Rejected []struct {
					Index int
					Error string
				}
			}
			require.NoError(t, json.Unmarshal(a.body, &result))
			require.Equal(t, 7, result.Accepted)
			require.Len(t, result.Rejected, 3)
			for i, index := range []int{0, 4, 9} {
				require.Equal(t, index, result.Rejected[i].Index)
				require.NotEmpty(t, result.Rejected[i].Error)
			}
			newest := p.events(t, aggregate, 7)[0]
			p.projected(t, "sensor_state", aggregate, newest.Metadata.Position)
		})
	}
}
