package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// generator makes requests of the schemas in a document: some that keep to them, others that do not.
type generator struct {
	*rand.Rand
	doc *openAPI
}

// texts are tried where a schema has a pattern.
var texts = []string{
	"sensor.reading", "user.login", "system.alert", "a.b", "sensor_state", "device-001", "x", "0", "c", "pending", "1m", "AQ", "é", "🌡️", "a b", "sensor.x", "ai.anomaly",
}

// anything is what may stand in the place of anything.
var anything = []any{
	nil, true, 0, -1, 1.5, 1e300, int64(1) << 62, "", " ", "x", "\x00", "\u202e", "\n", "a/b", "+", "#", "' OR 1=1 --", "%s%n", "../..", "9999-99-99T99:99:99Z",
	"0190a5c0-7b1e-7c3a-9d3e-5f6a7b8c9d0e", "00000000-0000-0000-0000-000000000000", []any{}, []any{nil, 1}, map[string]any{}, map[string]any{"": nil},
	strings.Repeat("x", 300), strings.Repeat("é", 5000), json.Number("1e400"), json.Number("-0.0"), json.Number(strings.Repeat("9", 500)), nested(100),
}

func nested(depth int) any {
	var v any = 1
	for range depth {
		v = map[string]any{"a": v}
	}
	return v
}

func pick[T any](g *generator, list []T) T { return list[g.IntN(len(list))] }

// junk returns something of its own: what it is put into may be spoilt further.
func (g *generator) junk() any { return clone(pick(g, anything)) }

func clone(v any) any {
	switch v := v.(type) {
	case map[string]any:
		copied := make(map[string]any, len(v))
		for name, member := range v {
			copied[name] = clone(member)
		}
		return copied
	case []any:
		copied := make([]any, len(v))
		for i, element := range v {
			copied[i] = clone(element)
		}
		return copied
	default:
		return v
	}
}

// chance is true once in n times.
func (g *generator) chance(n int) bool { return g.IntN(n) == 0 }

// value makes a value that keeps to a schema, as far as it is understood.
func (g *generator) value(schema map[string]any, depth int) any {
	schema = g.doc.resolve(schema)
	if list, ok := schema["enum"].([]any); ok {
		return pick(g, list)
	}
	if v, ok := schema["const"]; ok {
		return v
	}
	if list, ok := schema["examples"].([]any); ok && len(list) > 0 && g.chance(3) {
		return clone(pick(g, list))
	}
	for _, word := range []string{"anyOf", "oneOf"} {
		if list, ok := schema[word].([]any); ok {
			return g.value(pick(g, list).(map[string]any), depth)
		}
	}
	switch g.kind(schema) {
	case "object":
		return g.object(schema, depth)
	case "array":
		items, _ := schema["items"].(map[string]any)
		list := []any{}
		for range 1 + g.IntN(4) {
			list = append(list, g.value(items, depth+1))
		}
		return list
	case "integer", "number":
		return g.number(schema)
	case "boolean":
		return g.chance(2)
	case "string":
		return g.text(schema)
	case "null":
		return nil
	default:
		return g.junk()
	}
}

func (g *generator) kind(schema map[string]any) string {
	switch kind := schema["type"].(type) {
	case string:
		return kind
	case []any:
		return pick(g, kind).(string)
	}
	return ""
}

func (g *generator) object(schema map[string]any, depth int) map[string]any {
	properties, _ := schema["properties"].(map[string]any)
	required, _ := schema["required"].([]any)
	object := make(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(properties)) {
		if slices.Contains(required, any(name)) || g.chance(3) {
			object[name] = g.value(properties[name].(map[string]any), depth+1)
		}
	}
	if more, ok := schema["additionalProperties"]; ok && more != false && depth < 4 && g.chance(2) {
		object[pick(g, texts)] = pick(g, []any{1, 2.5, "x"})
	}
	g.conditions(schema, object, depth)
	return object
}

// conditions follows the if and then of an object's properties.
func (g *generator) conditions(schema, object map[string]any, depth int) {
	all, _ := schema["allOf"].([]any)
	for _, rule := range all {
		when, _ := rule.(map[string]any)["if"].(map[string]any)
		then, _ := rule.(map[string]any)["then"].(map[string]any)
		tests, _ := when["properties"].(map[string]any)
		holds := len(tests) > 0
		for name, test := range tests {
			if object[name] != test.(map[string]any)["const"] {
				holds = false
			}
		}
		if !holds {
			continue
		}
		replaced, _ := then["properties"].(map[string]any)
		for name, s := range replaced {
			object[name] = g.value(s.(map[string]any), depth+1)
		}
	}
}

func (g *generator) number(schema map[string]any) any {
	low, high := int64(-1000), int64(1_000_000)
	if v, ok := schema["minimum"].(float64); ok {
		low = int64(v)
	}
	if v, ok := schema["maximum"].(float64); ok {
		high = int64(v)
	}
	n := low + g.Int64N(max(high-low, 0)+1)
	if g.kind(schema) == "number" && g.chance(2) {
		return float64(n) + 0.5
	}
	return n
}

func (g *generator) text(schema map[string]any) any {
	switch schema["format"] {
	case "uuid":
		return fmt.Sprintf("%08x-%04x-7%03x-8%03x-%012x", g.Uint32(), g.IntN(1<<16), g.IntN(1<<12), g.IntN(1<<12), g.Int64N(1<<48))
	case "date-time":
		return time.Unix(g.Int64N(1<<33), g.Int64N(1e9)).UTC().Format(pick(g, []string{time.RFC3339, time.RFC3339Nano}))
	}
	pattern, ok := schema["pattern"].(string)
	if !ok {
		return pick(g, texts)
	}
	re, err := regexp.Compile(pattern)
	if err != nil {
		return pick(g, texts)
	}
	for range 50 {
		if s := pick(g, texts); re.MatchString(s) {
			return s
		}
	}
	return pick(g, texts)
}

// spoil puts junk into some place of a value, takes a member away or adds one.
func (g *generator) spoil(v any) any {
	switch v := v.(type) {
	case map[string]any:
		if len(v) == 0 || g.chance(6) {
			v[pick(g, []string{"extra", "", "\x00", "event_id", "__proto__"})] = g.junk()
			return v
		}
		name := pick(g, slices.Sorted(maps.Keys(v)))
		if g.chance(4) {
			delete(v, name)
		} else {
			v[name] = g.spoil(v[name])
		}
		return v
	case []any:
		if len(v) > 0 && !g.chance(4) {
			i := g.IntN(len(v))
			v[i] = g.spoil(v[i])
			return v
		}
	}
	return g.junk()
}

// garble breaks the bytes of a text.
func (g *generator) garble(text []byte) []byte {
	text = slices.Clone(text)
	for range 1 + g.IntN(3) {
		at := g.IntN(len(text) + 1)
		switch g.IntN(4) {
		case 0:
			text = text[:at]
		case 1:
			text = slices.Insert(text, at, []byte(pick(g, []string{"\x00", "\xff", `"`, "{", "]", ",", "\n", "\\ud800", `{"a":1,"a":2}`, "\ufeff"}))...)
		case 2:
			if at < len(text) {
				text[at] = byte(g.IntN(256))
			}
		case 3:
			text = append(text, text[at:]...)
		}
	}
	return text
}

// made is a request that was made.
type made struct {
	target  string // path and query
	body    []byte
	headers []string // names and values
}

func (m made) String() string {
	return fmt.Sprintf("%s %q\n%.2000q", m.target, m.headers, m.body)
}

// request makes one request of an operation; about half of them keep to its schemas.
func (g *generator) request(o *operation) made {
	var spoilt int // what is spoilt: 0 nothing
	if g.chance(2) {
		spoilt = 1 + g.IntN(4)
	}
	path, query, m := o.path, []string(nil), made{}
	for _, p := range o.parameters {
		if !p.required && !g.chance(3) {
			continue
		}
		value := fmt.Sprint(g.value(p.schema, 0))
		if spoilt == 1 && g.chance(2) {
			value = fmt.Sprint(g.junk())
		}
		switch p.in {
		case "path":
			if value == "" {
				value = "-"
			}
			path = strings.ReplaceAll(path, "{"+p.name+"}", url.PathEscape(value))
		case "query":
			query = append(query, url.QueryEscape(p.name)+"="+url.QueryEscape(value))
			if spoilt == 1 && g.chance(6) {
				query = append(query, query[len(query)-1])
			}
		case "header":
			if !strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) { // what no client sends
				m.headers = append(m.headers, p.name, value)
			}
		}
	}
	if spoilt == 2 {
		query = append(query, pick(g, []string{"unknown=1", "%zz", "a;b", "limit", "cursor=AQ", "limit=1&limit=2", "=", "from=now"}))
	}
	m.target = path
	if len(query) > 0 {
		m.target += "?" + strings.Join(query, "&")
	}
	g.body(o, &m, spoilt)
	return m
}

func (g *generator) body(o *operation, m *made, spoilt int) {
	if len(o.bodies) == 0 {
		return
	}
	media := pick(g, slices.Sorted(maps.Keys(o.bodies)))
	value := g.value(o.bodies[media], 0)
	if spoilt == 3 {
		value = g.spoil(value)
	}
	if text, ok := value.(string); ok && !strings.HasSuffix(media, "/json") {
		m.body = []byte(text) // lines
		if json, ok := o.bodies["application/json"]; ok {
			m.body = g.lines(g.value(json, 0))
		}
	} else {
		m.body = encode(value)
	}
	if spoilt == 4 {
		m.body = g.garble(m.body)
	}
	if spoilt == 2 && g.chance(2) {
		media = pick(g, []string{"", "text/plain", "application/json; charset=latin1", "application/xml", "*/*", "application/json;"})
	}
	m.headers = append(m.headers, "Content-Type", media)
}

// lines writes the elements of a list, each on a line.
func (g *generator) lines(v any) []byte {
	list, ok := v.([]any)
	if !ok {
		return encode(v)
	}
	var text []byte
	for _, element := range list {
		text = append(append(text, encode(element)...), '\n')
	}
	return text
}

func encode(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		return []byte(fmt.Sprint(v))
	}
	return text
}
