package event

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

// Filter selects events of the log; zero fields select all.
type Filter struct {
	AggregateID, EventType string
	From, To               time.Time // event_time, From inclusive, To exclusive
	Before                 int64     // only positions below this one; zero means from the newest
	Limit                  int
}

// Names of Watermill message metadata, Kafka headers and MQTT user properties that carry an event's own fields.
const (
	MetaEventID       = "event_id"
	MetaEventType     = "event_type"
	MetaAggregateID   = "aggregate_id"
	MetaEventTime     = "event_time"
	MetaCorrelationID = "correlation_id"
	MetaTraceparent   = "traceparent"
	MetaMQTTTopic     = "mqtt_topic" // the topic that an MQTT message was published on
)

// DeadLetter is a message that a consumer could not handle, kept as it came.
type DeadLetter struct {
	ID            uuid.UUID
	Consumer      string
	EventID       uuid.UUID // nil if unreadable
	Payload       []byte    // the bytes as they came
	Error         string
	FailedAt      time.Time
	RetryCount    int
	Topic         string // where it was read: a bus topic, an MQTT topic, the outbox
	Partition     *int32
	Offset        *int64
	Key           string
	CorrelationID string
	BusTopic      string // the dead letter topic that it is published on
	EventType     string // empty if unreadable
	Position      int64  // of the event in the log; zero if it is not there, or unreadable
	// Properties are what an MQTT sender gave beside the body, by their Meta names; nil for other sources.
	Properties map[string]string
}
