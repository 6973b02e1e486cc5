package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
)

// openAPI is the document of one port.
type openAPI struct {
	base       string
	root       map[string]any
	operations []*operation

	mu       sync.Mutex // for the compiler
	compiler *jsonschema.Compiler
}

// operation is one of its operations.
type operation struct {
	doc          *openAPI
	method, path string
	pointer      string // where it stands in the document
	parameters   []parameter
	bodies       map[string]map[string]any // schemas by media type
}

type parameter struct {
	name, in string
	required bool
	schema   map[string]any
}

func (o *operation) String() string { return o.method + " " + o.path }

// readOpenAPI reads the document of a port; nil if the port has none.
func readOpenAPI(t *testing.T, base string) *openAPI {
	t.Helper()
	a, err := request(t.Context(), http.MethodGet, base+"/openapi.json", nil)
	require.NoError(t, err)
	if a.status == http.StatusNotFound {
		return nil
	}
	require.Equal(t, http.StatusOK, a.status)
	parsed, err := jsonschema.UnmarshalJSON(strings.NewReader(string(a.body)))
	require.NoError(t, err)
	d := &openAPI{base: base, compiler: jsonschema.NewCompiler()}
	d.compiler.AssertFormat()
	require.NoError(t, d.compiler.AddResource("openapi.json", parsed))
	require.NoError(t, json.Unmarshal(a.body, &d.root))
	paths := d.root["paths"].(map[string]any)
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		item := paths[path].(map[string]any)
		for _, method := range slices.Sorted(maps.Keys(item)) {
			d.operations = append(d.operations, d.operation(path, method, item[method].(map[string]any)))
		}
	}
	return d
}

func (d *openAPI) operation(path, method string, raw map[string]any) *operation {
	o := &operation{
		doc: d, method: strings.ToUpper(method), path: path, bodies: make(map[string]map[string]any),
		pointer: "/paths/" + escapePointer(path) + "/" + method,
	}
	list, _ := raw["parameters"].([]any)
	for _, p := range list {
		p := p.(map[string]any)
		required, _ := p["required"].(bool)
		o.parameters = append(o.parameters, parameter{p["name"].(string), p["in"].(string), required, p["schema"].(map[string]any)})
	}
	if body, ok := raw["requestBody"].(map[string]any); ok {
		for media, content := range body["content"].(map[string]any) {
			o.bodies[media] = content.(map[string]any)["schema"].(map[string]any)
		}
	}
	return o
}

func escapePointer(s string) string {
	return strings.NewReplacer("~", "~0", "/", "~1", "{", "%7B", "}", "%7D").Replace(s)
}

// resolve follows references.
func (d *openAPI) resolve(schema map[string]any) map[string]any {
	for {
		ref, ok := schema["$ref"].(string)
		if !ok {
			return schema
		}
		schema = d.root["components"].(map[string]any)["schemas"].(map[string]any)[strings.TrimPrefix(ref, "#/components/schemas/")].(map[string]any)
	}
}

// compile returns a schema of the document; those it has compiled it keeps.
func (d *openAPI) compile(pointer string) (*jsonschema.Schema, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.compiler.Compile("openapi.json#" + pointer)
}

// check returns what an answer has that the document does not say, nil if it keeps to it.
func (o *operation) check(status int, header http.Header, body []byte) error {
	raw := o.doc.root["paths"].(map[string]any)[o.path].(map[string]any)[strings.ToLower(o.method)].(map[string]any)
	key := strconv.Itoa(status)
	documented, ok := raw["responses"].(map[string]any)[key].(map[string]any)
	if !ok {
		return fmt.Errorf("status %d is not documented", status)
	}
	headers, _ := documented["headers"].(map[string]any)
	for name, h := range headers {
		if required, _ := h.(map[string]any)["required"].(bool); required && header.Get(name) == "" {
			return fmt.Errorf("status %d comes without the header %s", status, name)
		}
	}
	contents, _ := documented["content"].(map[string]any)
	if len(contents) == 0 {
		if len(body) > 0 {
			return fmt.Errorf("status %d has a body, which is not documented", status)
		}
		return nil
	}
	media, _, err := mime.ParseMediaType(header.Get("Content-Type"))
	if err != nil {
		return fmt.Errorf("read content type of status %d: %w", status, err)
	}
	content, ok := contents[media].(map[string]any)
	if !ok {
		return fmt.Errorf("status %d comes as %s, which is not documented", status, media)
	}
	if _, has := content["schema"]; !has || !strings.HasSuffix(media, "json") {
		return nil
	}
	schema, err := o.doc.compile(o.pointer + "/responses/" + key + "/content/" + escapePointer(media) + "/schema")
	if err != nil {
		return fmt.Errorf("compile schema of status %d: %w", status, err)
	}
	value, err := jsonschema.UnmarshalJSON(strings.NewReader(string(body)))
	if err != nil {
		return fmt.Errorf("body of status %d: %w", status, err)
	}
	return schema.Validate(value)
}
