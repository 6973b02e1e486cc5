package api

import (
	"maps"
	"net/http"
	"reflect"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// schemaName names a type in the documents: an envelope is an event, and lists are named after their items.
func schemaName(t reflect.Type, hint string) string {
	name := strings.Replace(huma.DefaultSchemaNamer(t, hint), "Envelope", "Event", 1)
	if item, ok := strings.CutPrefix(name, "Page"); ok {
		name = item + "Page"
	}
	return name
}

func ref(name string) *huma.Schema { return &huma.Schema{Ref: "#/components/schemas/" + name} }

// schemaFor describes a type, which is then among the named ones of the document.
func schemaFor[T any](a *API) *huma.Schema {
	return a.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[T](), true, "")
}

// explain describes answers by their status, in place of what is said of that status everywhere.
func explain(texts map[int]string) map[string]*huma.Response {
	responses := make(map[string]*huma.Response, len(texts))
	for status, text := range texts {
		responses[strconv.Itoa(status)] = &huma.Response{Description: text}
	}
	return responses
}

// DocumentOperation adds an operation to the document, with what all of them have in common; see
// [huma.OperationDocumenter]. The document must say exactly what is answered.
func (a *API) DocumentOperation(op *huma.Operation) {
	op.Parameters = append(op.Parameters, &huma.Param{
		Name: "X-Correlation-ID", In: "header", Schema: &huma.Schema{Type: huma.TypeString},
		Description: "Names the request in logs and answers; 1 to 256 bytes of printable UTF-8. A new one is made when it is absent or breaks that.",
	})
	delete(op.Responses, "default")
	for status, text := range usualProblems(op) {
		if op.Responses[strconv.Itoa(status)] == nil {
			op.Responses[strconv.Itoa(status)] = &huma.Response{Description: text}
		}
	}
	secure(op)
	for code, response := range op.Responses {
		status, _ := strconv.Atoi(code)
		if status >= http.StatusBadRequest {
			response.Content = map[string]*huma.MediaType{problemContentType: {Schema: ref("Problem")}}
		}
		describeHeaders(status, response)
	}
	op.Responses["431"] = &huma.Response{ // of the HTTP server itself, before any of this package has seen the request
		Description: "Request line and headers are over 32 KiB. The connection is closed; there is no correlation ID.",
		Content:     map[string]*huma.MediaType{"text/plain": {Schema: &huma.Schema{Type: huma.TypeString}}},
	}
	a.OpenAPI().AddOperation(op)
}

func usualProblems(op *huma.Operation) map[int]string {
	problems := map[int]string{
		http.StatusBadRequest:          "The query string can't be read.",
		http.StatusUnprocessableEntity: "A parameter breaks a rule, or is not known.",
		http.StatusTooManyRequests:     "More is asked for than can be done at once.",
		http.StatusServiceUnavailable:  "Storage is away.",
		http.StatusInternalServerError: "A fault of the platform, logged under the correlation ID.",
	}
	if strings.Contains(op.Path, "{") { // a path parameter with a dot segment or a slash makes it another path
		problems[http.StatusNotFound] = "There is nothing at this path."
	}
	if op.RequestBody != nil {
		for status, text := range map[int]string{
			http.StatusBadRequest:            "The body is not JSON, a member has the wrong JSON type, or the query string can't be read.",
			http.StatusRequestTimeout:        "The body did not arrive in time.",
			http.StatusRequestEntityTooLarge: "The body is over 2 MiB.",
			http.StatusUnsupportedMediaType:  "The body is not application/json, or it is compressed.",
			http.StatusUnprocessableEntity:   "A parameter or a member of the body breaks a rule, or is not known.",
			http.StatusServiceUnavailable:    "Storage is away. It is not known whether anything was done; asking again is safe.",
		} {
			problems[status] = text
		}
	}
	return problems
}

func describeHeaders(status int, response *huma.Response) {
	least := 1.0
	headers := map[string]*huma.Header{"X-Correlation-ID": {Description: "The caller's, or a new one.", Schema: &huma.Schema{Type: huma.TypeString}}}
	switch status {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		headers["Retry-After"] = &huma.Header{Description: "Seconds.", Schema: &huma.Schema{Type: huma.TypeInteger, Minimum: &least}}
	case http.StatusUnauthorized, http.StatusForbidden:
		headers["WWW-Authenticate"] = &huma.Header{Description: "RFC 6750.", Schema: &huma.Schema{Type: huma.TypeString}}
	}
	maps.Copy(headers, response.Headers) // those of the operation's output
	for _, header := range headers {
		header.Required = true
	}
	response.Headers = headers
}
