package event

import (
	"bytes"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// flatSchema is a JSON Schema that says no more than which members an object must have and which type each has. By a
// keyword of its own, x-holds-number, it says that there must be a number in the object, at any depth; JSON Schema has no
// short way to say that.
// Telling that a payload keeps one takes a tenth of the time of the schema library, which still words the refusals.
type flatSchema struct {
	required   int // how many members are
	properties map[string]property
	others     kindSet
	number     bool // there must be one
}

type property struct {
	kinds    kindSet
	required bool
}

// kindSet holds the first bytes of the JSON values that are allowed; nil allows all.
type kindSet []byte

func (k kindSet) has(kind jsontext.Kind) bool { return k == nil || bytes.IndexByte(k, byte(kind)) >= 0 }

var kindsOf = map[string]kindSet{
	"":        nil,
	"null":    {'n'},
	"boolean": {'t', 'f'},
	"string":  {'"'},
	"number":  {'0'},
	"object":  {'{'},
	"array":   {'['},
}

// newFlatSchema reads a schema file; it returns nil if the file uses any keyword that a flat schema has not.
func newFlatSchema(file []byte) *flatSchema {
	type typed struct {
		Type        string `json:"type"`
		Title       string `json:"title"`
		Description string `json:"description"`
	}
	var doc struct {
		typed
		Schema               string           `json:"$schema"`
		Required             []string         `json:"required"`
		Properties           map[string]typed `json:"properties"`
		AdditionalProperties typed            `json:"additionalProperties"`
		HoldsNumber          bool             `json:"x-holds-number"`
	}
	if err := json.Unmarshal(file, &doc, json.RejectUnknownMembers(true)); err != nil || doc.Type != "object" {
		return nil
	}
	others, ok := kindsOf[doc.AdditionalProperties.Type]
	if !ok {
		return nil
	}
	f := &flatSchema{properties: make(map[string]property, len(doc.Properties)), others: others, number: doc.HoldsNumber}
	for name, p := range doc.Properties {
		kinds, ok := kindsOf[p.Type]
		if !ok {
			return nil
		}
		f.properties[name] = property{kinds: kinds}
	}
	for _, name := range doc.Required {
		p, ok := f.properties[name]
		if !ok {
			p.kinds = others
		}
		p.required = true
		f.properties[name] = p
	}
	f.required = len(doc.Required)
	return f
}

// accepts reports whether a JSON object without names given twice keeps the schema.
func (f *flatSchema) accepts(object []byte) bool {
	s := newScanner(object)
	defer s.free()
	dec := &s.dec
	if tok, err := dec.ReadToken(); err != nil || tok.Kind() != '{' {
		return false
	}
	missing, number := f.required, !f.number
	for dec.PeekKind() == '"' {
		name, err := dec.ReadToken()
		if err != nil {
			return false
		}
		p, ok := f.properties[name.String()]
		if !ok {
			p.kinds = f.others
		}
		if p.required {
			missing--
		}
		if !p.kinds.has(dec.PeekKind()) {
			return false
		}
		if number {
			err = dec.SkipValue()
		} else {
			number, err = holdsNumber(dec)
		}
		if err != nil {
			return false
		}
	}
	return missing == 0 && number && dec.PeekKind() == '}'
}

// holdsNumber reads a value and reports whether it is a number, or has one in it.
func holdsNumber(dec *jsontext.Decoder) (found bool, err error) {
	for depth := dec.StackDepth(); ; {
		tok, err := dec.ReadToken()
		if err != nil {
			return false, err
		}
		if found = found || tok.Kind() == '0'; dec.StackDepth() <= depth {
			return found, nil
		}
	}
}
