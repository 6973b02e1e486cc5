package event

import (
	"path"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
)

var flatSchemas = []string{
	`{"type":"object"}`,
	`{"type":"object","required":["a","b"],"properties":{"a":{"type":"number"},"c":{}}}`,
	`{"type":"object","properties":{"a":{"type":"boolean"},"b":{"type":"null"},"c":{"type":"object"},"d":{"type":"array"}}}`,
	`{"type":"object","required":["x"],"additionalProperties":{"type":"string","title":"t"}}`,
	`{"type":"object","required":["x"],"x-holds-number":true}`,
}

func compile(t testing.TB, name, schema string) payloadSchema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(schema))
	require.NoError(t, err)
	compiler := jsonschema.NewCompiler()
	require.NoError(t, compiler.AddResource(name, doc))
	full, err := compiler.Compile(name)
	require.NoError(t, err)
	return payloadSchema{full: full, flat: newFlatSchema([]byte(schema))}
}

func allFlat(t testing.TB) map[string]payloadSchema {
	t.Helper()
	all := make(map[string]payloadSchema)
	for _, schema := range flatSchemas {
		all[schema] = compile(t, "test.json", schema)
	}
	for name, s := range schemas() {
		all[name] = s
	}
	for name, s := range all {
		require.NotNil(t, s.flat, name)
	}
	return all
}

func TestFlatSchemaKnowsWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	for _, schema := range []string{
		`{"type":"array"}`, `{}`, `true`, `{"type":["object"]}`, `{"type":"object","minProperties":1}`,
		`{"type":"object","properties":{"a":{"type":"integer"}}}`, `{"type":"object","properties":{"a":{"type":"string","minLength":1}}}`,
		`{"type":"object","additionalProperties":false}`, `{"type":"object","additionalProperties":{"type":"integer"}}`,
		`{"type":"object","properties":{"a":false}}`, `{"type":"object","$defs":{}}`, `{"type":"object","required":[1]}`,
	} {
		require.Nil(t, newFlatSchema([]byte(schema)), schema)
	}
}

// FuzzFlatSchema holds the fast path against the schema library, for every payload that gets as far as a schema.
func FuzzFlatSchema(f *testing.F) {
	all := allFlat(f)
	for _, s := range []string{
		`{}`, `{"value":1,"unit":"C"}`, `{"value":1,"unit":"C","a":2}`, `{"value":"1","unit":"C"}`, `{"a":1,"b":2}`, `{"a":true,"b":null,"c":{},"d":[]}`,
		`{"a":false,"b":null,"c":{"a":[1,{}]},"d":[{}]}`, `{"x":"y","z":"w"}`, `{"x":1}`, `{"user_id":"u","ip":"i"}`, `{"online":true}`, `{"level":"l","message":"m","a":null}`,
		`{"\u0061":1,"b":1e5}`, `{"":""}`, `{"x":[[],{"a":[true,1,2]}],"y":[3]}`, `{"x":{"1":{}},"y":"1"}`, `{"a":"1"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		payload, err := checkPayload(data, true)
		if err != nil {
			return
		}
		for name, s := range all {
			full := s.validate("a.b", payload)
			if fast := s.flat.accepts(payload); fast != (full == nil) {
				t.Errorf("%s: fast path %t, library %v for %q", name, fast, full, payload)
			}
		}
	})
}

func TestEverySchemaFileIsValid(t *testing.T) {
	t.Parallel()
	files, err := Schemas.ReadDir("schemas")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, f := range files {
		require.NoError(t, checkType(strings.TrimSuffix(f.Name(), ".json")), "the file is named after its event type")
		data, err := Schemas.ReadFile(path.Join("schemas", f.Name()))
		require.NoError(t, err)
		var doc struct {
			Schema string `json:"$schema"`
			Title  string `json:"title"`
		}
		require.NoError(t, json.Unmarshal(data, &doc))
		require.Equal(t, "https://json-schema.org/draft/2020-12/schema", doc.Schema)
		require.Equal(t, strings.TrimSuffix(f.Name(), ".json"), doc.Title)
	}
}
