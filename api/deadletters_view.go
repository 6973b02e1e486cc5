package api

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"github.com/cornjacket/platform-services/deadletter"
)

// Encodings of a payload in an answer or a request.
const (
	encodingJSON   = "json"   // a text that is JSON
	encodingText   = "text"   // another UTF-8 text
	encodingBase64 = "base64" // bytes
)

// ConsumerName is the name of a consumer whose dead letters a port has.
type ConsumerName string

// Schema names the consumers of the port; see [huma.SchemaProvider].
func (ConsumerName) Schema(huma.Registry) *huma.Schema { return ref("Consumer") }

func defineConsumers(a *API, names []string) {
	s := &huma.Schema{Type: huma.TypeString}
	for _, name := range names {
		s.Enum = append(s.Enum, name)
	}
	s.PrecomputeMessages()
	a.OpenAPI().Components.Schemas.Map()["Consumer"] = s
}

// LetterFilter selects dead letters; what is empty selects all. It is given in a query or in a body.
type LetterFilter struct {
	Consumer  ConsumerName `query:"consumer" json:"consumer,omitempty" doc:"Only letters of this consumer."`
	EventID   uuid.UUID    `query:"event_id" json:"event_id,omitzero" doc:"Only letters of this event."`
	EventType Text         `query:"event_type" json:"event_type,omitempty" maxLength:"128" doc:"Only letters of events of this type."`
	Topic     Text         `query:"topic" json:"topic,omitempty" maxLength:"65535" doc:"Only letters that were read from this topic."`
	Error     Text         `query:"error" json:"error,omitempty" maxLength:"1024" doc:"Only letters with this in their error message, in any case."`
	Span
}

func (f *LetterFilter) filter(status string) deadletter.Filter {
	return deadletter.Filter{
		Status: status, Consumer: string(f.Consumer), EventID: f.EventID, EventType: string(f.EventType), Topic: string(f.Topic), Error: string(f.Error),
		From: f.From.at, To: f.To.at,
	}
}

// join returns the filters of a query and of a body as one.
func (f LetterFilter) join(body *LetterFilter) (LetterFilter, error) {
	err := errors.Join(once("consumer", &f.Consumer, body.Consumer), once("event_id", &f.EventID, body.EventID),
		once("event_type", &f.EventType, body.EventType), once("topic", &f.Topic, body.Topic), once("error", &f.Error, body.Error),
		once("from", &f.From, body.From), once("to", &f.To, body.To))
	for _, mistaken := range f.Resolve(nil) {
		err = errors.Join(err, invalid(http.StatusUnprocessableEntity, "", []error{mistaken}))
	}
	return f, err
}

// once takes what the body gives if the query has not given it.
func once[T comparable](name string, query *T, body T) error {
	var none T
	if body == none {
		return nil
	}
	if *query != none {
		return mistake(http.StatusUnprocessableEntity, name, "must be given once, in the query or in the body")
	}
	*query = body
	return nil
}

// DeadLetter is a message that its consumer could not handle.
type DeadLetter struct {
	ID              uuid.UUID    `json:"dlq_id"`
	Consumer        ConsumerName `json:"consumer" doc:"Who could not handle it."`
	Status          string       `json:"status" enum:"pending,replayed,discarded"`
	EventID         *uuid.UUID   `json:"event_id" nullable:"true" doc:"Null if it could not be read."`
	EventType       string       `json:"event_type,omitempty" doc:"Absent if it could not be read."`
	Error           string       `json:"error_message" doc:"Why, the last time."`
	FailedAt        time.Time    `json:"failed_at" doc:"When it became a dead letter."`
	RetryCount      int          `json:"retry_count" minimum:"0" doc:"Attempts after the first, replays among them."`
	RetriedAt       *time.Time   `json:"retried_at,omitempty" doc:"The last replay that was refused."`
	ReplayedAt      *time.Time   `json:"replayed_at,omitempty" doc:"When its consumer has applied it."`
	DiscardedAt     *time.Time   `json:"discarded_at,omitempty" doc:"When it was discarded."`
	Reason          string       `json:"reason,omitempty" doc:"Why it is not pending any more."`
	DecidedBy       string       `json:"decided_by,omitempty" doc:"Who replayed or discarded it: the name of the token, absent where none is asked for."`
	SourceTopic     string       `json:"source_topic" doc:"Where it was read: a topic of the bus, an MQTT topic, outbox."`
	SourcePartition *int32       `json:"source_partition,omitempty"`
	SourceOffset    *int64       `json:"source_offset,omitempty"`
	Key             string       `json:"message_key,omitempty" doc:"The aggregate ID, where there is one."`
	CorrelationID   string       `json:"correlation_id,omitempty"`
	Position        int64        `json:"position,omitzero" minimum:"1" doc:"Of the event in the log."`
	BusTopic        string       `json:"bus_topic" doc:"The topic on which the dead letter is published too."`
	PublishedAt     *time.Time   `json:"published_at,omitempty" doc:"When it was published there."`

	Payload   string            `json:"event_payload" doc:"The bytes as they came. In a list only the first 1,024."`
	Encoding  string            `json:"payload_encoding" enum:"json,text,base64" doc:"json: a text that is JSON. text: another one. base64: bytes that are no UTF-8 text."`
	Size      int               `json:"payload_bytes" minimum:"0" doc:"Size of the payload."`
	Truncated bool              `json:"payload_truncated,omitzero" doc:"There is more of the payload than is shown."`
	Given     map[string]string `json:"properties,omitempty" doc:"What the sender of an MQTT message gave beside its body."`

	Edited         *string `json:"edited_payload,omitempty" doc:"What was replayed in place of it. Not in a list."`
	EditedEncoding string  `json:"edited_payload_encoding,omitempty" enum:"json,text,base64"`
	EditedTopic    string  `json:"edited_topic,omitempty" doc:"The MQTT topic under which it was replayed, if that was edited."`
}

// viewOf shows a letter; one that is not whole is that of a list.
func viewOf(l *deadletter.Letter, whole bool) DeadLetter {
	v := DeadLetter{
		ID: l.ID, Consumer: ConsumerName(l.Consumer), Status: l.Status, EventType: l.EventType, Error: l.Error, FailedAt: l.FailedAt.UTC(),
		RetryCount: l.RetryCount, RetriedAt: utc(l.RetriedAt), ReplayedAt: utc(l.ReplayedAt), DiscardedAt: utc(l.DiscardedAt), Reason: l.Reason, DecidedBy: l.DecidedBy,
		SourceTopic: l.Topic, SourcePartition: l.Partition, SourceOffset: l.Offset, Key: l.Key, CorrelationID: l.CorrelationID,
		Position: l.Position, BusTopic: l.BusTopic, PublishedAt: utc(l.PublishedAt), Size: l.Size, Given: l.Properties,
		EditedTopic: l.EditedTopic,
	}
	if l.EventID != uuid.Nil {
		v.EventID = &l.EventID
	}
	payload := l.Payload
	if v.Truncated = len(payload) < l.Size; v.Truncated {
		payload = wholeRunes(payload)
	}
	v.Payload, v.Encoding = encode(payload)
	if l.EditedBytes != nil && whole {
		edited, encoding := encode(l.EditedBytes)
		v.Edited, v.EditedEncoding = &edited, encoding
	}
	return v
}

func utc(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	u := t.UTC()
	return &u
}

// wholeRunes cuts a text off before a character that it holds only a part of.
func wholeRunes(data []byte) []byte {
	for i := 1; i < utf8.UTFMax && i <= len(data); i++ {
		if last := data[len(data)-i:]; utf8.RuneStart(last[0]) {
			if !utf8.FullRune(last) {
				return data[:len(data)-i]
			}
			break
		}
	}
	return data
}

func encode(data []byte) (text, encoding string) {
	switch {
	case !utf8.Valid(data):
		return base64.StdEncoding.EncodeToString(data), encodingBase64
	case jsontext.Value(data).IsValid():
		return string(data), encodingJSON
	default:
		return string(data), encodingText
	}
}

// ReplayEdit is what a replay uses in place of what is stored.
type ReplayEdit struct {
	Payload  json.RawMessage `json:"payload,omitempty" doc:"The bytes that the consumer is given. A string stands for the text in it, or what encoding says; any other JSON value for itself."`
	Encoding string          `json:"encoding,omitempty" enum:"json,text,base64" doc:"How a payload that is a string holds the bytes; text by default."`
	Topic    Text            `json:"topic,omitempty" maxLength:"65535" doc:"MQTT topic, for letters of ingestion; with events the payload is an envelope, and says everything itself."`
}

// edit reads what was changed. A string stands for the text that it holds, or with an encoding for what that says; any
// other JSON value for itself.
func (b *ReplayEdit) edit() (e deadletter.Edit, err error) {
	if b == nil {
		return e, nil
	}
	e.Topic = string(b.Topic)
	isText := jsontext.Value(b.Payload).Kind() == '"'
	switch {
	case b.Payload == nil && b.Encoding != "":
		return e, mistake(http.StatusUnprocessableEntity, "encoding", "must be given with a payload")
	case b.Payload == nil:
		return e, nil
	case !isText && (b.Encoding == "" || b.Encoding == encodingJSON):
		e.Payload = b.Payload
		return e, nil
	}
	var text string
	if err := json.Unmarshal(b.Payload, &text); err != nil {
		return e, mistake(http.StatusUnprocessableEntity, "payload", "must be a string with this encoding")
	}
	e.Payload = []byte(text)
	if b.Encoding == encodingBase64 {
		if e.Payload, err = base64.StdEncoding.DecodeString(text); err != nil {
			return e, mistake(http.StatusUnprocessableEntity, "payload", "must be base64 with this encoding")
		}
	}
	return e, nil
}

// Discard says why a dead letter is discarded.
type Discard struct {
	Reason Text `json:"reason,omitempty" minLength:"0" maxLength:"1024" doc:"Why; kept with the dead letter."`
}

// BulkReplayRequest says which letters are replayed, and how fast. Without filters it is all that are pending.
type BulkReplayRequest struct {
	Status string `json:"status,omitempty" enum:"pending" doc:"Others can't be replayed."`
	LetterFilter
	Rate   float64 `json:"rate,omitempty" minimum:"0.01" maximum:"10000" default:"100" doc:"Most letters a second."`
	DryRun bool    `json:"dry_run" required:"false" doc:"Count only."`
}

// DryRun is what a bulk replay would be about.
type DryRun struct {
	DryRun  bool  `json:"dry_run"`
	Matched int64 `json:"matched" minimum:"0" doc:"Pending dead letters that match."`
}

// BulkReplay is a set of letters that was frozen when the replay of it began, and how far it is.
type BulkReplay struct {
	ID         uuid.UUID    `json:"replay_id"`
	Status     string       `json:"status" enum:"queued,running,interrupted,done,cancelled" doc:"interrupted: who ran it has gone; it goes on by itself."`
	Filter     ReplayFilter `json:"filter"`
	Rate       float64      `json:"rate" doc:"Most letters a second."`
	Total      int64        `json:"total" minimum:"0" doc:"Letters of the set."`
	Replayed   int64        `json:"replayed" minimum:"0" doc:"Applied by their consumers."`
	Failed     int64        `json:"failed" minimum:"0" doc:"Refused again; they are still pending."`
	Skipped    int64        `json:"skipped" minimum:"0" doc:"Not pending any more when their turn came."`
	Remaining  int64        `json:"remaining" minimum:"0" doc:"Without a turn yet; those of a cancelled one are still pending."`
	LastError  string       `json:"last_error,omitempty" doc:"Why the last one was refused."`
	AskedBy    string       `json:"asked_by,omitempty" doc:"Who asked for it: the name of the token, absent where none is asked for."`
	CreatedAt  time.Time    `json:"created_at"`
	FinishedAt *time.Time   `json:"finished_at,omitempty"`
}

// ReplayFilter is what a bulk replay was asked for.
type ReplayFilter struct {
	Status string `json:"status" enum:"pending"`
	LetterFilter
}

func viewOfReplay(r *deadletter.Replay) BulkReplay {
	f := &r.Filter
	return BulkReplay{
		ID: r.ID, Status: r.Status, Rate: r.Rate, Total: r.Total, Replayed: r.Replayed, Failed: r.Failed, Skipped: r.Skipped,
		Remaining: r.Left(), LastError: r.LastError, AskedBy: r.AskedBy, CreatedAt: r.CreatedAt.UTC(), FinishedAt: utc(r.FinishedAt),
		Filter: ReplayFilter{Status: deadletter.Pending, LetterFilter: LetterFilter{
			Consumer: ConsumerName(f.Consumer), EventID: f.EventID, EventType: Text(f.EventType), Topic: Text(f.Topic), Error: Text(f.Error),
			Span: Span{From: Moment{f.From}, To: Moment{f.To}},
		}},
	}
}
