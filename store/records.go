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
	LastEventID        uuid.UUID      `json:"last_event_id"`        // the event that gave the state
	LastEventTimestamp time.Time      `json:"last_event_timestamp"` // its event_time
	Position           int64          `json:"position"`             // of the newest event that was applied
	EventCount         int64          `json:"event_count"`          // events that were applied, each counted once
	UpdatedAt          time.Time      `json:"updated_at"`
}

// ProjectionKey names one projection.
type ProjectionKey struct{ Type, AggregateID string }

// EventFilter selects events of the log; zero fields select all.
type EventFilter struct {
	AggregateID, EventType string
	From, To               time.Time // event_time, From inclusive, To exclusive
	Before                 int64     // only positions below this one; zero means from the newest
	Limit                  int
}
