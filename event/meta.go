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

// MetaRetain is the name under which MQTT sources hand out the retain flag of a message without a body, by which a device
// clears the message that the broker has retained. It is no user property.
const MetaRetain = "retain"
