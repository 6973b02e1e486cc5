package api

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
)

type document struct {
	OpenAPI string `json:"openapi"`
	Info    struct{ Title, Version string }
	Paths   map[string]map[string]struct {
		OperationID string `json:"operationId"`
		Parameters  []struct{ Name, In string }
		RequestBody struct{ Content map[string]any } `json:"requestBody"`
		Responses   map[string]struct {
			Description string
			Content     map[string]struct{ Schema map[string]any }
		}
	}
}

func documentOf(t *testing.T, base string) (document, answer) {
	t.Helper()
	res := get(t, base+"/openapi.json")
	require.Equal(t, 200, res.status)
	require.Equal(t, mediaJSON, res.header.Get("Content-Type"))
	var d document
	res.json(t, &d)
	return d, res
}

func TestDocumentsListEveryRoute(t *testing.T) {
	t.Parallel()
	for base, paths := range map[string][]string{
		ingestionServer(t, &memory{}): {eventPath, batchPath},
		queryServer(t, &memory{}): {
			eventPath, "/api/v1/events/{event_id}", "/api/v1/projections/{type}", "/api/v1/projections/{type}/{aggregate_id}",
		},
	} {
		d, _ := documentOf(t, base)
		require.True(t, strings.HasPrefix(d.OpenAPI, "3.1."))
		require.Equal(t, "test", d.Info.Version)
		require.ElementsMatch(t, paths, slices.Collect(maps.Keys(d.Paths)))
		for path, operations := range d.Paths {
			for _, op := range operations {
				require.NotEmpty(t, op.OperationID, path)
				for status, r := range op.Responses {
					require.NotEmpty(t, r.Description, path+status)
					media := mediaJSON
					if status >= "400" {
						media = problemContentType
					}
					if status == "431" { // of the HTTP server itself
						media = "text/plain"
					}
					require.Contains(t, r.Content, media, path+status)
				}
				for _, p := range op.Parameters {
					require.Equal(t, p.In == "path", strings.Contains(path, "{"+p.Name+"}"))
				}
			}
		}
	}
}

// schemaOf compiles one schema of a document, so that answers can be held against it.
func schemaOf(t *testing.T, doc answer, pointer string) *jsonschema.Schema {
	t.Helper()
	parsed, err := jsonschema.UnmarshalJSON(strings.NewReader(string(doc.body)))
	require.NoError(t, err)
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	require.NoError(t, c.AddResource("openapi.json", parsed))
	s, err := c.Compile("openapi.json#" + pointer)
	require.NoError(t, err)
	return s
}

func conforms(t *testing.T, s *jsonschema.Schema, body []byte) error {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(strings.NewReader(string(body)))
	require.NoError(t, err)
	return s.Validate(v)
}

func TestAnswersKeepTheirSchemas(t *testing.T) {
	t.Parallel()
	m := filled()
	ingestion, query := ingestionServer(t, &memory{}), queryServer(t, m)
	_, in := documentOf(t, ingestion)
	_, out := documentOf(t, query)
	for _, c := range []struct {
		doc    answer
		schema string
		res    answer
	}{
		{in, "Accepted", post(t, ingestion+eventPath, reading)},
		{in, "Problem", post(t, ingestion+eventPath, "{}")},
		{in, "Problem", get(t, ingestion+"/nowhere")},
		{in, "BatchResult", post(t, ingestion+batchPath, "["+reading+",7]")},
		{out, "Event", get(t, query+eventPath+"/"+m.events[0].ID.String())},
		{out, "EventPage", get(t, query+eventPath)},
		{out, "Projection", get(t, query+"/api/v1/projections/sensor_state/device-001")},
		{out, "ProjectionPage", get(t, query+"/api/v1/projections/sensor_state?limit=2")},
		{out, "ProjectionPage", get(t, query+"/api/v1/projections/none")},
		{out, "Problem", get(t, query+eventPath+"?limit=0")},
	} {
		require.NoError(t, conforms(t, schemaOf(t, c.doc, "/components/schemas/"+c.schema), c.res.body), "%s", c.res.body)
	}
}

func TestSubmissionSchemaSaysWhatIsAccepted(t *testing.T) {
	t.Parallel()
	base := ingestionServer(t, &memory{})
	_, doc := documentOf(t, base)
	schema := schemaOf(t, doc, "/components/schemas/EventSubmission")
	for body, want := range map[string]int{
		reading:                       202,
		with("payload", `{"a":[{}]}`): 202,
		`{"event_type":"a.b","aggregate_id":"d","payload":{},"event_id":null,"event_time":null,"metadata":null,"ingested_at":7}`: 202,
		`{"event_type":"a.b","aggregate_id":"d","payload":{},"metadata":{"correlation_id":"x","other":1}}`:                       202,
		with("event_type", `"reading"`):   422,
		with("event_type", `"A.b"`):       422,
		with("event_type", ""):            422,
		with("aggregate_id", `"a/b"`):     422,
		with("aggregate_id", `"a\u0007"`): 422,
		with("payload", "null"):           422,
		with("payload", ""):               422,
		with("colour", "1"):               422,
		with("event_id", `"7"`):           422,
		with("event_time", `"now"`):       422,
		with("event_time", "7"):           400,
		`{"event_type":"sensor.reading","aggregate_id":"d","payload":{"value":"hot","unit":"c"}}`: 422,
		`{"event_type":"user.login","aggregate_id":"d","payload":{}}`:                             422,
		`[]`: 400,
	} {
		require.Equal(t, want, post(t, base+eventPath, body).status, body)
		require.Equal(t, want == 202, conforms(t, schema, []byte(body)) == nil, body)
	}
}

func TestOtherOperationsJoinTheDocument(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	a := MountQuery(mux, QueryConfig{Reader: &memory{}, Log: quiet()})
	register(a, huma.Operation{OperationID: "more", Method: http.MethodGet, Path: "/api/v1/more"}, reads{&memory{}}.events)
	base := serve(t, Wrap(quiet(), mux))
	d, doc := documentOf(t, base)
	require.Contains(t, d.Paths, "/api/v1/more")
	require.Equal(t, 200, get(t, base+"/api/v1/more").status)
	get(t, base+"/api/v1/more?limit=0").problem(t, 422)
	require.True(t, json.Valid(doc.body))
}
