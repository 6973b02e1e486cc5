package api

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"
)

// Paging are the parameters of every list.
type Paging struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"20" doc:"Items on a page."`
	Cursor string `query:"cursor" minLength:"1" maxLength:"1024" pattern:"^[A-Za-z0-9_-]+$" patternDescription:"a next_cursor that this API has given out" doc:"The next_cursor of the page before, with the same filters."`
}

// Span is a range of time, each end of which may be open.
type Span struct {
	From Moment `query:"from" json:"from,omitzero" format:"date-time" doc:"At this time or later."`
	To   Moment `query:"to" json:"to,omitzero" format:"date-time" doc:"Earlier than this time."`
}

// Resolve refuses a span that ends before it begins.
func (s *Span) Resolve(huma.Context) []error {
	if !s.From.IsZero() && !s.To.IsZero() && s.From.at.After(s.To.at) {
		return []error{&huma.ErrorDetail{Location: "query.from", Message: "must not be after to"}}
	}
	return nil
}

// Text is a text that is stored somewhere: printable and not empty. Tags bound its length.
type Text string

// Schema describes what [textRule] takes; see [huma.SchemaProvider].
func (Text) Schema(huma.Registry) *huma.Schema {
	least := 1
	return &huma.Schema{Type: huma.TypeString, MinLength: &least, Pattern: `^[^\x00-\x1f\x7f-\x9f]*$`, PatternDescription: "printable"}
}

// Moment is an RFC 3339 time in a request. It is rounded up to the microseconds that stored times have: event_time >=
// from and event_time < to then mean the same as with the time as it was given.
type Moment struct{ at time.Time }

// UnmarshalText reads a time; see [encoding.TextUnmarshaler].
func (m *Moment) UnmarshalText(text []byte) error {
	t, err := time.Parse(time.RFC3339Nano, string(text))
	if err != nil {
		return errors.New("must be an RFC 3339 time such as 2026-02-07T10:00:00Z; the '+' of an offset is written %2B in a URL")
	}
	t = t.UTC()
	if t.Year() < 1 || t.Year() > 9999 {
		return errors.New("must be between the years 0001 and 9999 in UTC")
	}
	t = t.Add(time.Microsecond - 1).Truncate(time.Microsecond)
	if t.IsZero() {
		// The first instant of year 1 is a time and not the absence of one; storage drops the nanosecond.
		t = t.Add(time.Nanosecond)
	}
	m.at = t
	return nil
}

// MarshalText writes the time in UTC; see [encoding.TextMarshaler].
func (m Moment) MarshalText() ([]byte, error) {
	return m.at.UTC().AppendFormat(nil, time.RFC3339Nano), nil
}

// IsZero reports whether no time was given.
func (m Moment) IsZero() bool { return m.at.IsZero() }

// uuidSchema describes a UUID in its one form: uuid.Parse also takes urn:uuid:, braces and bare hex.
type uuidSchema string

const uuidLength = 36

// Schema describes the type; see [huma.SchemaProvider].
func (uuidSchema) Schema(huma.Registry) *huma.Schema {
	length := uuidLength
	return &huma.Schema{Type: huma.TypeString, Format: "uuid", MinLength: &length, MaxLength: &length}
}

// checkParams holds the parameters of a request against what all of them must be, before the framework reads them: each
// is known, given once, not empty, printable UTF-8, and in bytes no longer than its schema says in characters. A
// mistyped filter that is ignored would select everything.
func checkParams(r *http.Request, op *huma.Operation) error {
	var query url.Values
	if r.URL.RawQuery != "" {
		var err error
		if query, err = url.ParseQuery(r.URL.RawQuery); err != nil {
			return mistake(http.StatusBadRequest, "query", "must be URL-encoded name=value pairs joined by '&'")
		}
	}
	var known []string
	for _, p := range op.Parameters {
		var values []string
		switch p.In {
		case "path":
			values = []string{r.PathValue(p.Name)}
		case "query":
			known = append(known, p.Name)
			values = query[p.Name]
			delete(query, p.Name)
		}
		rule := ""
		if len(values) > 1 {
			rule = "must be given once"
		} else if len(values) == 1 {
			rule = textRule(values[0], p.Schema)
		}
		if rule != "" {
			return mistake(http.StatusUnprocessableEntity, p.Name, rule)
		}
	}
	for name := range query {
		if len(known) == 0 {
			return mistake(http.StatusUnprocessableEntity, clip(name), "is not known, there are no query parameters here")
		}
		slices.Sort(known)
		return mistake(http.StatusUnprocessableEntity, clip(name), "is not known, query parameters are "+strings.Join(known, ", "))
	}
	return nil
}

// textRule refuses what no stored text can equal, and what PostgreSQL would not take as text.
func textRule(s string, schema *huma.Schema) string {
	switch {
	case s == "":
		return "must not be empty"
	case schema.Format == "uuid" && (len(s) != uuidLength || uuid.Validate(s) != nil):
		return "must be a UUID such as 0190a5c0-7b1e-7c3a-9d3e-5f6a7b8c9d0e"
	case schema.MaxLength != nil && len(s) > *schema.MaxLength:
		return fmt.Sprintf("must be at most %d bytes, is %d", *schema.MaxLength, len(s))
	case !utf8.ValidString(s):
		return "must be UTF-8"
	}
	for i, r := range s {
		if unicode.IsControl(r) {
			return fmt.Sprintf("must be printable, has %U at byte %d", r, i)
		}
	}
	return ""
}

// clip shortens a name that came from outside, so that a problem stays readable.
func clip(s string) string {
	const most = 64
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
