package event

// Names of Watermill message metadata, Kafka headers and MQTT user properties that carry an event's own fields.
const (
	MetaEventID       = "event_id"
	MetaEventType     = "event_type"
	MetaAggregateID   = "aggregate_id"
	MetaEventTime     = "event_time"
	MetaCorrelationID = "correlation_id"
	MetaTraceparent   = "traceparent"
)
