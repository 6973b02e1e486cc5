package store

import (
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
)

// Projection is the current state of one aggregate, computed from its events.
type Projection struct {
	ID                 uuid.UUID      `json:"projection_id"`
	Type               string         `json:"projection_type"`
	AggregateID        string         `json:"aggregate_id"`
	State              jsontext.Value `json:"state"`
	LastEventID        uuid.UUID      `json:"last_event_id" doc:"The event that gave the state."`
	LastEventTimestamp time.Time      `json:"last_event_timestamp" doc:"Its event_time, in UTC."`
	Position           int64          `json:"position" minimum:"0" doc:"Of the newest event that was applied."`
	EventCount         int64          `json:"event_count" minimum:"0" doc:"How many events the state is made of, each counted once."`
	UpdatedAt          time.Time      `json:"updated_at" doc:"When the state was written, in UTC."`
}

// ProjectionKey names one projection.
type ProjectionKey struct{ Type, AggregateID string }

// EventFilter selects events of the log; zero fields select all.
type EventFilter struct {
	AggregateID, EventType string
	From, To               time.Time // event_time, From inclusive, To exclusive
	Before                 int64     // only positions below this one; zero means from the newest
	BeforeTime             time.Time // event_time of the event at Before; used if the events are listed [EventFilter.ByTime]
	Limit                  int
}

// ByTime reports whether events are listed by event_time, newest first, and then by position: if nothing but their time is
// asked for. In the order of positions that would be a walk over all that are newer.
func (f *EventFilter) ByTime() bool {
	return f.AggregateID == "" && f.EventType == "" && (!f.From.IsZero() || !f.To.IsZero())
}
