// Package handlers says what one event does to a state. It does no I/O, reads no clock and logs nothing.
package handlers

import (
	"bytes"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"github.com/cornjacket/platform-services/event"
)

// State is the state of one aggregate and the event that gave it. The zero State is that of an aggregate without one.
type State struct {
	Value     jsontext.Value
	EventID   uuid.UUID
	EventTime time.Time
}

// Exists reports whether any event has given the state.
func (s *State) Exists() bool { return s.EventID != uuid.Nil }

// Reducer returns the state after an event. It is pure: the same state and event give the same result, and the state
// it is given is not changed. It sees each event of an aggregate once, in the order of the log, which need not be that
// of event_time. Its error is permanent: the event becomes a dead letter and the state stays.
type Reducer func(current State, e *event.Envelope) (State, error)

// Newest is the reducer of projections that are the payload of the event with the newest event_time; of two with the
// same time the larger event ID wins, so that the result does not depend on the order in which events arrive.
func Newest(current State, e *event.Envelope) (State, error) {
	if current.Exists() {
		switch order := e.Time.Compare(current.EventTime); {
		case order < 0, order == 0 && bytes.Compare(e.ID[:], current.EventID[:]) <= 0:
			return current, nil
		}
	}
	return State{Value: e.Payload, EventID: e.ID, EventTime: e.Time}, nil
}
