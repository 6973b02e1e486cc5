package event

import (
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
	"sync"

	"github.com/go-json-experiment/json/jsontext"
)

// checkPayload reads a payload once and refuses what is no JSON object, and what PostgreSQL's jsonb can't hold: NUL
// and lone surrogates in strings (RFC 8259 §8.2), numbers beyond its range, nesting beyond its stack. It returns the
// payload without white space.
// The limits on length are for the door alone: what is stored comes back with its numbers written out.
func checkPayload(payload []byte, door bool) (jsontext.Value, error) {
	if len(bytes.TrimSpace(payload)) == 0 {
		return nil, invalid("payload", "is required")
	}
	if door && len(payload) > MaxBody {
		return nil, tooLarge("payload", "must be at most %d bytes, is %d", MaxPayload, len(payload))
	}
	s := newScanner(payload)
	defer s.free()
	dec := &s.dec
	// All ways to write NUL have these five characters in them: JSON takes no raw one.
	nul := bytes.Contains(payload, []byte("u0000"))
	first, done := true, false
	growth := 0
	for {
		tok, err := dec.ReadToken()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, within("payload", jsonError(err))
		}
		if first && tok.Kind() != '{' {
			return nil, invalid("payload", "must be a JSON object, is %s", kindName(tok.Kind()))
		}
		if done {
			return nil, malformed("payload", "must be one JSON object, more follows it")
		}
		first, done = false, dec.StackDepth() == 0
		if err := checkToken(tok, dec, nul, door); err != nil {
			return nil, err
		}
		if !door {
			continue
		}
		if growth += growthOf(tok); growth > MaxPayload {
			return nil, tooLarge("payload", "must be at most %d bytes with its numbers written out without exponents", MaxPayload)
		}
	}
	if (!door || len(payload) <= MaxPayload) && !bytes.ContainsAny(payload, " \t\r\n") {
		return payload, nil
	}
	v := jsontext.Value(bytes.Clone(payload))
	if err := v.Compact(); err != nil {
		return nil, within("payload", jsonError(err))
	}
	if door && len(v) > MaxPayload {
		return nil, tooLarge("payload", "must be at most %d bytes, is %d", MaxPayload, len(v))
	}
	return v, nil
}

// scanner is a decoder that is used again.
type scanner struct {
	buf bytes.Buffer // a Buffer: the decoder then works in place
	dec jsontext.Decoder
}

var scanners = sync.Pool{New: func() any { return new(scanner) }}

func newScanner(data []byte) *scanner {
	s := scanners.Get().(*scanner)
	s.buf = *bytes.NewBuffer(data)
	s.dec.Reset(&s.buf)
	return s
}

// free gives the scanner back, letting go of what it has read.
func (s *scanner) free() {
	s.buf = bytes.Buffer{}
	s.dec.Reset(&s.buf)
	scanners.Put(s)
}

func checkToken(tok jsontext.Token, dec *jsontext.Decoder, nul, door bool) error {
	switch tok.Kind() {
	case '{', '[':
		if dec.StackDepth() > MaxDepth {
			return invalid("payload", "must not nest deeper than %d levels", MaxDepth)
		}
	case '"':
		if nul && strings.IndexByte(tok.String(), 0) >= 0 {
			return invalid(pathOf(dec), `must not contain \u0000, which the database cannot hold`)
		}
	case '0':
		lit := tok.String()
		if door && len(lit) > MaxNumber {
			return invalid(pathOf(dec), "must be a number of at most %d characters, has %d", MaxNumber, len(lit))
		}
		// A number too small for a double is read as zero, which PostgreSQL refuses to do.
		if f, err := strconv.ParseFloat(lit, 64); err != nil || f == 0 && !isZero(lit) {
			return invalid(pathOf(dec), "must be a number within the range of an IEEE 754 double")
		}
		if i := strings.IndexAny(lit, "eE"); i >= 0 {
			if exp, err := strconv.Atoi(lit[i+1:]); err != nil || exp < -MaxNumber || exp > MaxNumber {
				return invalid(pathOf(dec), "must be a number with an exponent between -%d and %d", MaxNumber, MaxNumber)
			}
		}
	}
	return nil
}

// isZero reports whether a number literal says zero.
func isZero(lit string) bool {
	mantissa := lit
	if i := strings.IndexAny(lit, "eE"); i >= 0 {
		mantissa = lit[:i]
	}
	return !strings.ContainsAny(mantissa, "123456789")
}

func pathOf(dec *jsontext.Decoder) string {
	return within("payload", &Error{Field: dotted(dec.StackPointer())}).Field
}

// within puts an error's field below another one.
func within(parent string, e *Error) *Error {
	if e.Field == "" {
		e.Field = parent
	} else {
		e.Field = parent + "." + e.Field
	}
	return e
}

// growthOf returns by how much a number grows at most when jsonb writes it out: 1e300 has 301 digits. What is published
// again from the log must still fit in a record of the bus.
func growthOf(tok jsontext.Token) int {
	if tok.Kind() != '0' {
		return 0
	}
	lit := tok.String()
	i := strings.IndexAny(lit, "eE")
	if i < 0 {
		return 0
	}
	exp, err := strconv.Atoi(lit[i+1:])
	if err != nil {
		return 0 // checkToken has refused it
	}
	return max(exp, -exp)
}
