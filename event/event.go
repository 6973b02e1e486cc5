// Package event defines the fact that flows through the platform: its envelope, the rules a sender must keep, the
// topic it travels on and the schema of its payload. It does no I/O and reads no clock.
package event

import (
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
)

// SchemaVersion is the version of the envelope that this build writes.
const SchemaVersion = 1

// Limits on what a sender may give. Sizes are in bytes.
const (
	MaxEventType   = 128
	MaxAggregateID = 256
	MaxPayload     = 256 << 10
	MaxBody        = 1 << 20 // one event with its envelope and white space
	MaxDepth       = 64      // nesting of a payload; PostgreSQL's JSON parser is recursive
	MaxNumber      = 400     // characters of one number literal
	MaxHeader      = 256     // correlation ID, traceparent
)

// Envelope is one event as it is stored and published. Times are UTC with microsecond precision, the precision of
// PostgreSQL's timestamptz.
type Envelope struct {
	ID          uuid.UUID      `json:"event_id"`
	Type        string         `json:"event_type"`
	AggregateID string         `json:"aggregate_id" doc:"What the event is about."`
	Time        time.Time      `json:"event_time" doc:"When it happened, in UTC."`
	IngestedAt  time.Time      `json:"ingested_at" doc:"When the platform took it in, in UTC."`
	Payload     jsontext.Value `json:"payload"`
	Metadata    Metadata       `json:"metadata" doc:"What the platform knows of the event."`
}

// Metadata is what the platform knows of an event beyond what its sender said.
type Metadata struct {
	Source        string `json:"source" doc:"The door it came through: http, mqtt."`
	CorrelationID string `json:"correlation_id" doc:"Of the request or message that brought it."`
	Traceparent   string `json:"traceparent,omitempty" doc:"W3C Trace Context."`
	SchemaVersion int    `json:"schema_version" minimum:"1" doc:"Of the envelope."`
	DeviceTime    string `json:"device_time,omitempty" doc:"The time that the device gave, as it gave it, if its clock is not believed; event_time is then when the event came."`
	Clock         string `json:"clock,omitempty" doc:"What is wrong with the device's clock: ahead (EVENT_TIME_MAX_AHEAD), unset (EVENT_TIME_MIN)."`
	// Position orders all events of the log; it only grows. Zero until the relay has sequenced the event.
	Position int64 `json:"position,omitzero" minimum:"1" doc:"Its place in the log; only grows."`
}

// Topics on the bus. Each has a dead letter topic beside it, see [DeadLetterTopic].
const (
	TopicSensor = "sensor-events"
	TopicUser   = "user-actions"
	TopicSystem = "system-events"
)

// Route says which topic events travel on whose type begins with a prefix. No prefix begins with another.
type Route struct{ Prefix, Topic string }

var routes = []Route{{"sensor.", TopicSensor}, {"user.", TopicUser}}

// Routes returns the routes of events. What none of them is for travels on [TopicSystem].
func Routes() []Route { return slices.Clone(routes) }

// Topics returns every topic that events travel on.
func Topics() []string {
	var topics []string
	for _, r := range append(Routes(), Route{Topic: TopicSystem}) {
		if !slices.Contains(topics, r.Topic) {
			topics = append(topics, r.Topic)
		}
	}
	return topics
}

// Topic returns the topic that events of a type travel on.
func Topic(eventType string) string {
	for i := range routes {
		if strings.HasPrefix(eventType, routes[i].Prefix) {
			return routes[i].Topic
		}
	}
	return TopicSystem
}

// DeadLetterTopic returns the topic that the dead letters of a topic are published on.
func DeadLetterTopic(topic string) string { return topic + ".dlq" }

// Unmarshal reads an envelope from the bus or the outbox. Members that it does not know are ignored, so that a newer
// writer does not stop an older reader. Others can write to the bus too, so what the database could not hold is refused
// here as it is at the door; payload schemas are not held against it again. The error is an [*Error].
func Unmarshal(data []byte) (Envelope, error) {
	var e Envelope
	if err := json.Unmarshal(data, &e); err != nil {
		return Envelope{}, jsonError(err)
	}
	if e.ID == uuid.Nil {
		return Envelope{}, invalid("event_id", "is required")
	}
	if err := checkType(e.Type); err != nil {
		return Envelope{}, err
	}
	if err := checkAggregateID(e.AggregateID); err != nil {
		return Envelope{}, err
	}
	if err := e.Metadata.check(); err != nil {
		return Envelope{}, err
	}
	var err error
	if e.Time, err = normalTime("event_time", e.Time); err != nil {
		return Envelope{}, err
	}
	if e.IngestedAt, err = normalTime("ingested_at", e.IngestedAt); err != nil {
		return Envelope{}, err
	}
	if e.Payload, err = checkPayload(e.Payload, false); err != nil {
		return Envelope{}, err
	}
	return e, nil
}

// check holds the texts of the metadata against the rules for what the door puts there.
func (m *Metadata) check() error {
	if err := checkHeader("metadata.source", m.Source); err != nil {
		return err
	}
	if err := checkHeader("metadata.correlation_id", m.CorrelationID); err != nil {
		return err
	}
	if err := checkHeader("metadata.traceparent", m.Traceparent); err != nil {
		return err
	}
	if err := checkHeader("metadata.device_time", m.DeviceTime); err != nil {
		return err
	}
	return checkHeader("metadata.clock", m.Clock)
}
