package api

import (
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"
)

// Helpers that describe operations: the document must say exactly what is answered.

// define adds a named schema to the document.
func (a *API) define(name string, s *huma.Schema) {
	a.huma.OpenAPI().Components.Schemas.Map()[name] = s
}

func ref(name string) *huma.Schema { return &huma.Schema{Ref: "#/components/schemas/" + name} }

func text(description string) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Description: description}
}

func bounded(description string, shortest, longest int) *huma.Schema {
	s := text(description)
	s.MinLength, s.MaxLength = &shortest, &longest
	return s
}

// name is a text that may be asked for, see textRule.
func name(description string, longest int) *huma.Schema {
	s := bounded(description, 1, longest)
	s.Pattern = `^[^\x00-\x1f\x7f-\x9f]+$`
	return s
}

func formatted(format, description string) *huma.Schema {
	s := text(description)
	s.Format = format
	return s
}

func integer(description string, least float64) *huma.Schema {
	return &huma.Schema{Type: huma.TypeInteger, Format: "int64", Description: description, Minimum: &least}
}

func constant(value, description string) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Description: description, Enum: []any{value}}
}

func nullable(s *huma.Schema) *huma.Schema {
	s.Nullable = true
	return s
}

// object is a JSON object with no other than these properties.
func object(description string, required []string, properties map[string]*huma.Schema) *huma.Schema {
	return &huma.Schema{
		Type: huma.TypeObject, Description: description, Required: required, Properties: properties, AdditionalProperties: false,
	}
}

// page is a list with a cursor to its continuation.
func page(item string) *huma.Schema {
	return object("One page.", []string{"items"}, map[string]*huma.Schema{
		"items":       {Type: huma.TypeArray, Items: ref(item)},
		"next_cursor": text("Gives the next page as cursor. Absent on the last page."),
	})
}

func pathParam(name string, s *huma.Schema) *huma.Param {
	return &huma.Param{Name: name, In: "path", Required: true, Schema: s, Description: s.Description}
}

func queryParam(name string, s *huma.Schema) *huma.Param {
	return &huma.Param{Name: name, In: "query", Schema: s, Description: s.Description}
}

func headerParam(name, description string) *huma.Param {
	return &huma.Param{Name: name, In: "header", Schema: text(""), Description: description}
}

func correlationParam() *huma.Param {
	return headerParam("X-Correlation-ID", "Names the request in logs and answers; 1 to 256 bytes of printable UTF-8. A new one is made when it is absent or breaks that.")
}

// pagingParams are those of every list.
func pagingParams() []*huma.Param {
	limit := integer("Items on a page.", 1)
	most := float64(maxLimit)
	limit.Maximum, limit.Default, limit.Format = &most, defaultLimit, ""
	cursor := bounded("The next_cursor of the page before, with the same filters.", 1, 1024)
	cursor.Pattern = `^[A-Za-z0-9_-]+$`
	return []*huma.Param{
		queryParam("limit", limit),
		queryParam("cursor", cursor),
	}
}

// answers describes a success and the problems that an operation has. 500 belongs to all.
func answers(status int, description string, body *huma.Schema, problems map[int]string) map[string]*huma.Response {
	all := map[string]*huma.Response{
		strconv.Itoa(status): {
			Description: description,
			Headers:     answerHeaders(status),
			Content:     map[string]*huma.MediaType{mediaJSON: {Schema: body}},
		},
	}
	for code, why := range problems {
		all[strconv.Itoa(code)] = problemAnswer(code, why)
	}
	all["500"] = problemAnswer(http.StatusInternalServerError, "A fault of the platform, logged under the correlation ID.")
	return all
}

// headersTooLarge is what the HTTP server answers by itself, before any of this package has seen the request.
func headersTooLarge() *huma.Response {
	return &huma.Response{
		Description: "Request line and headers are over 32 KiB. The connection is closed; there is no correlation ID.",
		Content:     map[string]*huma.MediaType{"text/plain": {Schema: text("")}},
	}
}

func problemAnswer(code int, why string) *huma.Response {
	return &huma.Response{
		Description: why,
		Headers:     answerHeaders(code),
		Content:     map[string]*huma.MediaType{problemContentType: {Schema: ref("Problem")}},
	}
}

func answerHeaders(code int) map[string]*huma.Header {
	headers := map[string]*huma.Header{
		"X-Correlation-ID": {Required: true, Schema: text(""), Description: "The caller's, or a new one."},
	}
	if code == http.StatusTooManyRequests || code == http.StatusServiceUnavailable {
		headers["Retry-After"] = &huma.Header{Required: true, Schema: integer("", 1), Description: "Seconds."}
	}
	return headers
}

func problemSchema() *huma.Schema {
	least, most := 400.0, 599.0
	return object("RFC 9457 problem details.", []string{"type", "title", "status", "detail"}, map[string]*huma.Schema{
		"type":   formatted("uri-reference", "Kind of problem; about:blank means what the status says."),
		"title":  text("The status in words."),
		"status": {Type: huma.TypeInteger, Minimum: &least, Maximum: &most},
		"detail": text("What was wrong, and where."),
		"errors": {Type: huma.TypeArray, Items: object("One mistake.", []string{"location", "message"}, map[string]*huma.Schema{
			"location": text("Dotted path into the body, or the name of a parameter or header."),
			"message":  text("What it must be."),
		})},
		"correlation_id": text("That of the request."),
	})
}
