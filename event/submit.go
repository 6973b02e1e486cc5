package event

import (
	"bytes"
	"cmp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
)

// Origin is what the door knows of a submission beside its body.
type Origin struct {
	Source        string    // "mqtt" or "http"
	Now           time.Time // becomes ingested_at, and event_time where the sender gave none
	NewID         func() uuid.UUID
	CorrelationID string // of the request or the MQTT user property; the event's own ID when empty
	Traceparent   string
	Clock         Clock

	keep bool // an event whose time is not believed, with the time at which it came
}

// Properties are the MQTT user properties that the platform honours; each may be empty.
type Properties struct {
	EventID, EventTime, CorrelationID, Traceparent string
}

// submission is the body of POST /api/v1/events. A full envelope is accepted too: ingested_at is the platform's to
// set and is not read.
type submission struct {
	EventID     *string        `json:"event_id"`
	EventType   *string        `json:"event_type"`
	AggregateID *string        `json:"aggregate_id"`
	EventTime   *string        `json:"event_time"`
	IngestedAt  jsontext.Value `json:"ingested_at"`
	Payload     jsontext.Value `json:"payload"`
	Metadata    jsontext.Value `json:"metadata"`
}

// claims are what a sender may say in metadata; the platform sets the rest, so the rest is not read.
type claims struct {
	CorrelationID string `json:"correlation_id"`
	Traceparent   string `json:"traceparent"`
}

// Parse reads one submitted event: the body of POST /api/v1/events, one element of a batch, or a message on the MQTT
// topic "events". The error is an [*Error].
func Parse(body []byte, o Origin) (Envelope, error) {
	return parse(body, Properties{CorrelationID: o.CorrelationID, Traceparent: o.Traceparent}, o)
}

// parse is Parse for a body beside which properties were given; what the body says goes before them.
func parse(body []byte, p Properties, o Origin) (Envelope, error) {
	if len(body) > MaxBody {
		return Envelope{}, tooLarge("", "an event is at most %d bytes, this is %d", MaxBody, len(body))
	}
	if len(bytes.TrimSpace(body)) == 0 {
		return Envelope{}, malformed("", "is empty, must be a JSON object")
	}
	var s submission
	if err := json.Unmarshal(body, &s, json.RejectUnknownMembers(true)); err != nil {
		return Envelope{}, jsonError(err)
	}
	if bytes.Equal(bytes.TrimSpace(body), []byte("null")) {
		return Envelope{}, malformed("", "must be a JSON object, not null")
	}
	if s.EventType == nil {
		return Envelope{}, invalid("event_type", "is required")
	}
	if s.AggregateID == nil {
		return Envelope{}, invalid("aggregate_id", "is required")
	}
	if s.Metadata != nil {
		var c claims
		if err := json.Unmarshal(s.Metadata, &c); err != nil {
			return Envelope{}, within("metadata", jsonError(err))
		}
		p.CorrelationID = cmp.Or(c.CorrelationID, p.CorrelationID)
		p.Traceparent = cmp.Or(c.Traceparent, p.Traceparent)
	}
	// An empty string is not the same as no field: the sender meant to say something.
	if s.EventID != nil {
		if *s.EventID == "" {
			return Envelope{}, invalid("event_id", "must be a UUID, not an empty string")
		}
		p.EventID = *s.EventID
	}
	if s.EventTime != nil {
		if *s.EventTime == "" {
			return Envelope{}, invalid("event_time", "must be an RFC 3339 time, not an empty string")
		}
		p.EventTime = *s.EventTime
	}
	return build(*s.EventType, *s.AggregateID, s.Payload, p, o)
}

// MQTT topics of devices.
const (
	MQTTEvents  = "events"   // body: an envelope
	mqttDevices = "devices/" // devices/{aggregate_id}/events/{event_type}, body: the payload
	mqttMiddle  = "/events/"
)

// ParseMQTT reads one event from an MQTT message on either topic form. The event may share the body's memory. A time that
// the [Clock] does not believe is kept in the metadata, and replaced by the time at which the event came: a device can't
// be told. The error is an [*Error].
func ParseMQTT(topic string, body []byte, p Properties, o Origin) (Envelope, error) {
	o.keep = true
	if topic == MQTTEvents {
		return parse(body, p, o)
	}
	aggregateID, eventType, err := SplitMQTTTopic(topic)
	if err != nil {
		return Envelope{}, err
	}
	return build(eventType, aggregateID, body, p, o)
}

// SplitMQTTTopic takes devices/{aggregate_id}/events/{event_type} apart. The parts are not validated.
func SplitMQTTTopic(topic string) (aggregateID, eventType string, err error) {
	rest, ok := strings.CutPrefix(topic, mqttDevices)
	if ok {
		aggregateID, eventType, ok = strings.Cut(rest, mqttMiddle)
	}
	if !ok || aggregateID == "" || strings.Contains(eventType, "/") {
		return "", "", invalid("topic", "must be devices/{aggregate_id}/events/{event_type} or events, is %s", quoted(topic, 120))
	}
	return aggregateID, eventType, nil
}

func build(eventType, aggregateID string, payload []byte, p Properties, o Origin) (Envelope, error) {
	if err := checkType(eventType); err != nil {
		return Envelope{}, err
	}
	if err := checkAggregateID(aggregateID); err != nil {
		return Envelope{}, err
	}
	e := Envelope{
		Type:        eventType,
		AggregateID: aggregateID,
		IngestedAt:  o.Now.UTC().Truncate(time.Microsecond),
		Metadata:    Metadata{Source: o.Source, SchemaVersion: SchemaVersion},
	}
	var err error
	if e.ID, err = parseID(p.EventID, o.NewID); err != nil {
		return Envelope{}, err
	}
	if err := e.setTime(p.EventTime, &o); err != nil {
		return Envelope{}, err
	}
	if err := checkHeader("correlation_id", p.CorrelationID); err != nil {
		return Envelope{}, err
	}
	e.Metadata.CorrelationID = p.CorrelationID
	if e.Metadata.CorrelationID == "" {
		e.Metadata.CorrelationID = e.ID.String()
	}
	if ValidTraceparent(p.Traceparent) { // W3C: what can't be read is dropped, not refused
		e.Metadata.Traceparent = p.Traceparent
	}
	if e.Payload, err = checkPayload(payload, true); err != nil {
		return Envelope{}, err
	}
	if err := checkSchema(eventType, e.Payload); err != nil {
		return Envelope{}, err
	}
	return e, nil
}

func parseID(s string, newID func() uuid.UUID) (uuid.UUID, error) {
	if s == "" {
		return newID(), nil
	}
	id, err := uuid.Parse(s)
	if err != nil || len(s) != 36 { // uuid.Parse also takes urn:uuid:, braces and bare hex
		return uuid.Nil, invalid("event_id", "must be a UUID such as 0190a5c0-7b1e-7c3a-9d3e-5f6a7b8c9d0e")
	}
	if id == uuid.Nil {
		return uuid.Nil, invalid("event_id", "must not be the nil UUID")
	}
	return id, nil
}

// strictTime refuses what time.Parse takes beyond RFC 3339: 1:00:00, 10:00:00,5 and the offset +24:00.
func strictTime(s string) bool {
	const date, offset = len("2006-01-02T15"), len("24:00")
	return s[date] == ':' && !strings.Contains(s, ",") && (s[len(s)-1] == 'Z' || s[len(s)-offset:][:2] < "24")
}

// normalTime gives a time the form in which it is stored.
func normalTime(field string, t time.Time) (time.Time, error) {
	t = t.UTC().Truncate(time.Microsecond)
	if t.Year() < 1 || t.Year() > 9999 {
		return time.Time{}, invalid(field, "must be between the years 0001 and 9999 in UTC")
	}
	return t, nil
}

func checkType(s string) error {
	if s == "" {
		return invalid("event_type", "must not be empty")
	}
	if len(s) > MaxEventType {
		return invalid("event_type", "must be at most %d bytes, is %d", MaxEventType, len(s))
	}
	dot := false
	for i := range len(s) {
		c := s[i]
		switch {
		case c == '.':
			dot = true
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '_', c == '-':
		default:
			return invalid("event_type", "must be made of a-z, 0-9, '_', '.' and '-', has %s at byte %d", quoted(s[i:], 4), i)
		}
	}
	if !dot {
		return invalid("event_type", "must have at least one dot, such as sensor.reading")
	}
	return nil
}

func checkAggregateID(s string) error {
	if s == "" {
		return invalid("aggregate_id", "must not be empty")
	}
	if len(s) > MaxAggregateID {
		return invalid("aggregate_id", "must be at most %d bytes, is %d", MaxAggregateID, len(s))
	}
	if !utf8.ValidString(s) {
		return invalid("aggregate_id", "must be UTF-8")
	}
	for i, r := range s {
		if r == '/' || r == '+' || r == '#' {
			return invalid("aggregate_id", "must not contain '/', '+' or '#', has %q at byte %d", r, i)
		}
		if !unicode.IsPrint(r) {
			return invalid("aggregate_id", "must be printable, has %U at byte %d", r, i)
		}
	}
	return nil
}

func checkHeader(field, s string) error {
	if len(s) > MaxHeader {
		return invalid(field, "must be at most %d bytes, is %d", MaxHeader, len(s))
	}
	if !utf8.ValidString(s) {
		return invalid(field, "must be UTF-8")
	}
	for i, r := range s {
		if !unicode.IsPrint(r) {
			return invalid(field, "must be printable, has %U at byte %d", r, i)
		}
	}
	return nil
}

// ValidCorrelationID reports whether s can travel as a correlation ID: 1–256 bytes of printable UTF-8.
func ValidCorrelationID(s string) bool { return s != "" && checkHeader("", s) == nil }

// ValidTraceparent reports whether s is a version 00 traceparent header. Source: https://www.w3.org/TR/trace-context/
func ValidTraceparent(s string) bool {
	if len(s) != 55 || s[:3] != "00-" || s[35] != '-' || s[52] != '-' {
		return false
	}
	trace, span, flags := s[3:35], s[36:52], s[53:]
	return lowerHex(trace) && lowerHex(span) && lowerHex(flags) &&
		strings.Trim(trace, "0") != "" && strings.Trim(span, "0") != ""
}

func lowerHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
