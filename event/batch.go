package event

import (
	"bytes"
	"errors"
	"io"

	"github.com/go-json-experiment/json/jsontext"
)

// MaxBatch is the most events that one batch may hold; MaxBatchBody the most bytes.
const (
	MaxBatch     = 10_000
	MaxBatchBody = 32 << 20
)

// Rejection says why one element of a batch was refused.
type Rejection struct {
	Index int // place in the batch, from 0
	Err   *Error
}

// ParseBatch reads a JSON array of submitted events, or NDJSON: one event a line, blank lines skipped. Elements that
// break a rule are rejected alone; the error, an [*Error], is for a body that can't be taken apart, and then nothing
// of it is accepted. Elements keep their order.
func ParseBatch(body []byte, o Origin) (accepted []Envelope, rejected []Rejection, err error) {
	if len(body) > MaxBatchBody {
		return nil, nil, tooLarge("", "a batch is at most %d bytes, this is %d", MaxBatchBody, len(body))
	}
	trimmed := bytes.TrimSpace(body)
	if len(trimmed) == 0 {
		return nil, nil, invalid("", "is empty, must hold at least one event")
	}
	index := 0
	take := func(element []byte) error {
		if index == MaxBatch {
			return tooLarge("", "a batch holds at most %d events", MaxBatch)
		}
		e, err := Parse(element, o)
		var broken *Error
		if errors.As(err, &broken) {
			rejected = append(rejected, Rejection{Index: index, Err: broken})
		} else {
			accepted = append(accepted, e)
		}
		index++
		return nil
	}
	split := splitLines
	if trimmed[0] == '[' {
		split = splitArray
	}
	if err := split(trimmed, take); err != nil {
		return nil, nil, err
	}
	if index == 0 {
		return nil, nil, invalid("", "is empty, must hold at least one event")
	}
	return accepted, rejected, nil
}

func splitLines(body []byte, take func([]byte) error) error {
	for line := range bytes.Lines(body) {
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		if err := take(line); err != nil {
			return err
		}
	}
	return nil
}

// splitArray leaves what is inside an element to [Parse], but for what makes the array itself unreadable: invalid
// UTF-8, names given twice and lone surrogates are the element's own mistakes.
func splitArray(body []byte, take func([]byte) error) error {
	dec := jsontext.NewDecoder(bytes.NewBuffer(body), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if _, err := dec.ReadToken(); err != nil {
		return jsonError(err)
	}
	for dec.PeekKind() != ']' {
		v, err := dec.ReadValue()
		if err != nil {
			return jsonError(err)
		}
		// The decoder reuses its buffer; the body itself does not move.
		end := dec.InputOffset()
		if err := take(body[end-int64(len(v)) : end]); err != nil {
			return err
		}
	}
	if _, err := dec.ReadToken(); err != nil {
		return jsonError(err)
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return malformed("", "must be one JSON array, more follows it")
	}
	return nil
}
