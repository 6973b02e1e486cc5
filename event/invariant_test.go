package event_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
)

// cleanError tells what is wrong with the form of an error that is shown to senders.
func cleanError(err error) error {
	var broken *event.Error
	s := err.Error()
	switch {
	case !errors.As(err, &broken):
		return fmt.Errorf("is no *event.Error: %T", err)
	case broken.Rule == "":
		return errors.New("has no rule")
	case !fault.IsPermanent(err):
		return errors.New("is not permanent")
	case !utf8.ValidString(s):
		return fmt.Errorf("is not UTF-8: %q", s)
	case strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }):
		return fmt.Errorf("is not one printable line: %q", s)
	case len(s) >= 1024:
		return fmt.Errorf("is %d bytes long", len(s))
	}
	return nil
}

// storable tells what is wrong with an event that a decoder accepted. It judges the payload by the standard library,
// which the package does not use.
func storable(e event.Envelope) error {
	switch {
	case e.ID == uuid.Nil:
		return errors.New("no ID")
	case !slices.Contains(event.Topics(), event.Topic(e.Type)):
		return fmt.Errorf("topic %q", event.Topic(e.Type))
	case !utf8.ValidString(e.Type+e.AggregateID) || strings.ContainsRune(e.Type+e.AggregateID, 0):
		return fmt.Errorf("texts %q %q", e.Type, e.AggregateID)
	case len(e.Payload) > event.MaxPayload:
		return fmt.Errorf("payload of %d bytes", len(e.Payload))
	}
	if err := checkStrictObject(e.Payload); err != nil {
		return fmt.Errorf("payload %.200q: %w", e.Payload, err)
	}
	data, err := e.Marshal()
	if err != nil {
		return err
	}
	if len(data) > len(e.Payload)+4096 {
		return fmt.Errorf("envelope of %d bytes around a payload of %d", len(data), len(e.Payload))
	}
	back, err := event.Unmarshal(data)
	if err != nil {
		return fmt.Errorf("read back %.500q: %w", data, err)
	}
	if a, b := fmt.Sprintf("%#v", e), fmt.Sprintf("%#v", back); a != b {
		return fmt.Errorf("came back changed: %.500s, was %.500s", b, a)
	}
	return nil
}

func checkStrictObject(payload []byte) error {
	if !utf8.Valid(payload) {
		return errors.New("is not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(payload))
	dec.UseNumber()
	depth := 0
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		switch tok := tok.(type) {
		case json.Delim:
			if tok == '{' || tok == '[' {
				depth++
			} else {
				depth--
			}
			if depth > event.MaxDepth {
				return errors.New("nests too deep")
			}
		case string:
			// The standard library reads a lone surrogate as U+FFFD; so whoever writes that one plainly is excused.
			if strings.ContainsRune(tok, 0) {
				return errors.New("holds NUL")
			}
			if strings.ContainsRune(tok, utf8.RuneError) && !bytes.ContainsRune(payload, utf8.RuneError) &&
				!bytes.Contains(bytes.ToLower(payload), []byte(`\ufffd`)) {
				return errors.New("holds a lone surrogate")
			}
		case json.Number:
			if _, err := tok.Float64(); err != nil {
				return err
			}
		}
	}
	var object map[string]any
	return json.Unmarshal(payload, &object)
}

func quote(t testing.TB, s string) string {
	t.Helper()
	data, err := json.Marshal(s)
	require.NoError(t, err)
	return string(data)
}

// judge holds what a decoder answered against the invariants.
func judge(t *testing.T, e event.Envelope, err error) {
	t.Helper()
	if err != nil {
		require.NoError(t, cleanError(err), "the error")
		require.Zero(t, e)
		return
	}
	require.NoError(t, storable(e))
}

func unchanged(t *testing.T, data []byte) func() {
	before := bytes.Clone(data)
	return func() {
		t.Helper()
		require.True(t, bytes.Equal(before, data), "the decoder wrote into its input")
	}
}

func fuzzOrigin() event.Origin {
	return event.Origin{Source: "http", Now: time.Unix(1770000000, 0), NewID: func() uuid.UUID { return generatedID },
		Clock: event.Clock{MaxAhead: time.Hour, Min: time.Unix(0, 0)}}
}
