package event

import (
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
)

// Schemas holds the payload schemas: JSON Schema 2020-12, one file an event type, named <event_type>.json.
//
//go:embed schemas/*.json
var Schemas embed.FS

// payloadSchema is the schema of one event type.
type payloadSchema struct {
	full *jsonschema.Schema
	flat *flatSchema // nil if the schema says more than a flat one can
}

// schemas compiles the embedded files once. They are part of the program: one that does not compile is a bug.
var schemas = sync.OnceValue(func() map[string]payloadSchema {
	files, err := Schemas.ReadDir("schemas")
	if err != nil {
		panic(fmt.Errorf("read embedded schemas: %w", err))
	}
	compiler := jsonschema.NewCompiler()
	compiled := make(map[string]payloadSchema, len(files))
	for _, f := range files {
		data, err := Schemas.ReadFile(path.Join("schemas", f.Name()))
		if err != nil {
			panic(fmt.Errorf("read schema %s: %w", f.Name(), err))
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
		if err != nil {
			panic(fmt.Errorf("parse schema %s: %w", f.Name(), err))
		}
		if err := compiler.AddResource(f.Name(), doc); err != nil {
			panic(fmt.Errorf("add schema %s: %w", f.Name(), err))
		}
		compiled[strings.TrimSuffix(f.Name(), ".json")] = payloadSchema{
			full: compiler.MustCompile(f.Name()),
			flat: newFlatSchema(data),
		}
	}
	return compiled
})

// checkSchema holds a payload, which checkPayload has accepted, against the schema of its type; a type without one is
// accepted.
func checkSchema(eventType string, payload []byte) error {
	schema, ok := schemas()[eventType]
	if !ok || schema.flat != nil && schema.flat.accepts(payload) {
		return nil
	}
	return schema.validate(eventType, payload)
}

func (s payloadSchema) validate(eventType string, payload []byte) error {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(payload))
	if err != nil {
		return malformed("payload", "is not valid JSON: %s", clip(err.Error(), maxField))
	}
	err = s.full.Validate(doc)
	if err == nil && s.flat != nil && s.flat.number && !hasNumber(doc) {
		return invalid("payload", "must hold at least one number in %s", eventType)
	}
	if err == nil {
		return nil
	}
	var broken *jsonschema.ValidationError
	if !errors.As(err, &broken) {
		return invalid("payload", "cannot be validated: %s", clip(err.Error(), maxField))
	}
	return schemaError(eventType, broken)
}

// hasNumber reports whether there is a number in a value as the schema library reads it.
func hasNumber(value any) bool {
	switch v := value.(type) {
	case json.Number:
		return true
	case []any:
		return slices.ContainsFunc(v, hasNumber)
	case map[string]any:
		for _, member := range v {
			if hasNumber(member) {
				return true
			}
		}
	}
	return false
}

// schemaError names one leaf that a payload breaks: of several the first by path, since the library walks objects in
// no order.
func schemaError(eventType string, e *jsonschema.ValidationError) *Error {
	e = firstLeaf(e)
	parts := []string{"payload"}
	for _, p := range e.InstanceLocation {
		parts = append(parts, clip(p, 64))
	}
	field := clip(strings.Join(parts, "."), maxField)
	switch k := e.ErrorKind.(type) {
	case *kind.Required:
		return invalid(field+"."+k.Missing[0], "is required in %s", eventType)
	case *kind.Type:
		return invalid(field, "must be %s in %s, is %s", article(strings.Join(k.Want, " or ")), eventType, article(k.Got))
	default:
		return invalid(field, "breaks the schema of %s (%s)", eventType, strings.Join(k.KeywordPath(), "/"))
	}
}

func firstLeaf(e *jsonschema.ValidationError) *jsonschema.ValidationError {
	if len(e.Causes) == 0 {
		return e
	}
	first := firstLeaf(e.Causes[0])
	for _, cause := range e.Causes[1:] {
		if leaf := firstLeaf(cause); slices.Compare(leaf.InstanceLocation, first.InstanceLocation) < 0 {
			first = leaf
		}
	}
	return first
}

// article puts "a" or "an" before the name of a JSON type.
func article(name string) string {
	switch {
	case name == "null":
		return name
	case strings.HasPrefix(name, "o"), strings.HasPrefix(name, "a"), strings.HasPrefix(name, "i"):
		return "an " + name
	default:
		return "a " + name
	}
}
