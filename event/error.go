package event

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Kind says what sort of mistake an [Error] is about.
type Kind int

const (
	// Malformed input could not be read: not JSON, or not the JSON type that the field takes.
	Malformed Kind = iota
	// Invalid input was read and breaks a rule.
	Invalid
	// TooLarge input is over a size limit.
	TooLarge
)

// Error is one mistake in what a sender gave. It is permanent: the same input fails the same way again.
type Error struct {
	Kind  Kind
	Field string // dotted path such as "payload.value"; empty when the input as a whole is meant
	Rule  string // what the field must be
}

func (e *Error) Error() string {
	if e.Field == "" {
		return e.Rule
	}
	return e.Field + ": " + e.Rule
}

// Permanent marks the error as one that no retry mends.
func (e *Error) Permanent() bool { return true }

func invalid(field, rule string, args ...any) *Error {
	return &Error{Kind: Invalid, Field: field, Rule: fmt.Sprintf(rule, args...)}
}

func malformed(field, rule string, args ...any) *Error {
	return &Error{Kind: Malformed, Field: field, Rule: fmt.Sprintf(rule, args...)}
}

func tooLarge(field, rule string, args ...any) *Error {
	return &Error{Kind: TooLarge, Field: field, Rule: fmt.Sprintf(rule, args...)}
}

// jsonError turns an error of the JSON decoder into one that names the field.
func jsonError(err error) *Error {
	var own *Error
	if errors.As(err, &own) {
		return own
	}
	var syntactic *jsontext.SyntacticError
	if errors.As(err, &syntactic) {
		reason := "unexpected end of input"
		if syntactic.Err != nil {
			reason = syntactic.Err.Error()
		}
		return malformed(dotted(syntactic.JSONPointer), "is not valid JSON: %s at byte %d", clip(reason, 200), syntactic.ByteOffset)
	}
	var semantic *json.SemanticError
	if errors.As(err, &semantic) {
		field := dotted(semantic.JSONPointer)
		switch {
		case errors.Is(semantic.Err, json.ErrUnknownName):
			return invalid(field, "is not a field of an event")
		case field == "":
			return malformed("", "must be a JSON object, not %s", kindName(semantic.JSONKind))
		case semantic.JSONKind != 0 && semantic.Err == nil:
			return malformed(field, "must not be %s", kindName(semantic.JSONKind))
		case semantic.Err != nil:
			return malformed(field, "cannot be read: %s", clip(semantic.Err.Error(), 200))
		}
		return malformed(field, "cannot be read")
	}
	return malformed("", "is not valid JSON: %s", clip(err.Error(), 200))
}

// maxField is the length from which the path of a field is cut off, in bytes.
const maxField = 200

// dotted writes a JSON Pointer the way people write a path.
func dotted(p jsontext.Pointer) string {
	var b strings.Builder
	for token := range p.Tokens() {
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		b.WriteString(clip(token, 64))
		if b.Len() > maxField {
			break
		}
	}
	return clip(b.String(), maxField)
}

// clip shortens a string that came from outside to about n bytes, and escapes what is not printable, so that an error
// stays one readable line.
func clip(s string, n int) string {
	cut := len(s) > n
	if cut {
		s = s[:n]
	}
	s = strings.ToValidUTF8(s, "")
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		var b strings.Builder
		for _, r := range s {
			if unicode.IsPrint(r) {
				b.WriteRune(r)
			} else {
				literal := strconv.QuoteRune(r)
				b.WriteString(literal[1 : len(literal)-1])
			}
		}
		s = b.String()
	}
	if cut {
		s += "…"
	}
	return s
}

// quoted is clip for what stands in quotes.
func quoted(s string, n int) string {
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "") + "…"
	}
	return strconv.Quote(s)
}

// kindName names a kind of JSON value with its article.
func kindName(k jsontext.Kind) string {
	switch k {
	case 'n':
		return "null"
	case 't', 'f':
		return "a boolean"
	case '"':
		return "a string"
	case '0':
		return "a number"
	case '{':
		return "an object"
	case '[':
		return "an array"
	default:
		return "another value"
	}
}
