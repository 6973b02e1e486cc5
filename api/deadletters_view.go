package api

import (
	"encoding/base64"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
)

// Encodings of a payload in an answer or a request.
const (
	encodingJSON   = "json"   // a text that is JSON
	encodingText   = "text"   // another UTF-8 text
	encodingBase64 = "base64" // bytes
)

// letterView is a dead letter as it is answered.
type letterView struct {
	ID              uuid.UUID  `json:"dlq_id"`
	Consumer        string     `json:"consumer"`
	Status          string     `json:"status"`
	EventID         *uuid.UUID `json:"event_id"`
	EventType       string     `json:"event_type,omitempty"`
	Error           string     `json:"error_message"`
	FailedAt        time.Time  `json:"failed_at"`
	RetryCount      int        `json:"retry_count"`
	RetriedAt       *time.Time `json:"retried_at,omitempty"`
	ReplayedAt      *time.Time `json:"replayed_at,omitempty"`
	DiscardedAt     *time.Time `json:"discarded_at,omitempty"`
	Reason          string     `json:"reason,omitempty"`
	SourceTopic     string     `json:"source_topic"`
	SourcePartition *int32     `json:"source_partition,omitempty"`
	SourceOffset    *int64     `json:"source_offset,omitempty"`
	Key             string     `json:"message_key,omitempty"`
	CorrelationID   string     `json:"correlation_id,omitempty"`
	Position        int64      `json:"position,omitzero"`
	BusTopic        string     `json:"bus_topic"`
	PublishedAt     *time.Time `json:"published_at,omitempty"`

	Payload   string            `json:"event_payload"`
	Encoding  string            `json:"payload_encoding"`
	Size      int               `json:"payload_bytes"`
	Truncated bool              `json:"payload_truncated,omitzero"`
	Given     map[string]string `json:"properties,omitempty"`

	Edited         *string `json:"edited_payload,omitempty"`
	EditedEncoding string  `json:"edited_payload_encoding,omitempty"`
	EditedTopic    string  `json:"edited_topic,omitempty"`
}

// viewOf shows a letter; one that is not whole is that of a list.
func viewOf(l *deadletter.Letter, whole bool) letterView {
	v := letterView{
		ID: l.ID, Consumer: l.Consumer, Status: l.Status, EventType: l.EventType, Error: l.Error, FailedAt: l.FailedAt.UTC(),
		RetryCount: l.RetryCount, RetriedAt: utc(l.RetriedAt), ReplayedAt: utc(l.ReplayedAt), DiscardedAt: utc(l.DiscardedAt), Reason: l.Reason,
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

// replayBody is what may be changed for a replay.
type replayBody struct {
	Payload  jsontext.Value `json:"payload"`
	Encoding *string        `json:"encoding"`
	Topic    *string        `json:"topic"`
}

// edit reads what was changed. A string stands for the text that it holds, or with an encoding for what that says; any
// other JSON value for itself.
func (b *replayBody) edit() (e deadletter.Edit, err error) {
	if b.Topic != nil {
		if e.Topic, err = checkText("topic", *b.Topic, maxTopic); err != nil {
			return e, err
		}
	}
	if b.Payload == nil {
		if b.Encoding != nil {
			return e, mistake(http.StatusUnprocessableEntity, "encoding", "must be given with a payload")
		}
		return e, nil
	}
	encoding := encodingJSON
	if b.Payload.Kind() == '"' {
		encoding = encodingText
	}
	if b.Encoding != nil {
		encoding = *b.Encoding
	}
	if encoding == encodingJSON && b.Payload.Kind() != '"' {
		e.Payload = b.Payload
		return e, nil
	}
	var text string
	if err := json.Unmarshal(b.Payload, &text); err != nil {
		return e, mistake(http.StatusUnprocessableEntity, "payload", "must be a string with this encoding")
	}
	switch encoding {
	case encodingText, encodingJSON:
		e.Payload = []byte(text)
	case encodingBase64:
		if e.Payload, err = base64.StdEncoding.DecodeString(text); err != nil {
			return e, mistake(http.StatusUnprocessableEntity, "payload", "must be base64 with this encoding")
		}
	default:
		return e, mistake(http.StatusUnprocessableEntity, "encoding", "must be json, text or base64")
	}
	return e, nil
}

// replayView is a bulk replay as it is answered.
type replayView struct {
	ID         uuid.UUID      `json:"replay_id"`
	Status     string         `json:"status"`
	Filter     map[string]any `json:"filter"`
	Rate       float64        `json:"rate"`
	Total      int64          `json:"total"`
	Replayed   int64          `json:"replayed"`
	Failed     int64          `json:"failed"`
	Skipped    int64          `json:"skipped"`
	Remaining  int64          `json:"remaining"`
	LastError  string         `json:"last_error,omitempty"`
	CreatedAt  time.Time      `json:"created_at"`
	FinishedAt *time.Time     `json:"finished_at,omitempty"`
}

func viewOfReplay(r *deadletter.Replay) replayView {
	return replayView{
		ID: r.ID, Status: r.Status, Filter: filterView(&r.Filter), Rate: r.Rate, Total: r.Total, Replayed: r.Replayed, Failed: r.Failed,
		Skipped: r.Skipped, Remaining: r.Left(), LastError: r.LastError, CreatedAt: r.CreatedAt.UTC(), FinishedAt: utc(r.FinishedAt),
	}
}

func filterView(f *deadletter.Filter) map[string]any {
	v := map[string]any{"status": deadletter.Pending}
	for name, value := range map[string]string{
		"consumer": f.Consumer, "event_type": f.EventType, "topic": f.Topic, "error": f.Error,
	} {
		if value != "" {
			v[name] = value
		}
	}
	if f.EventID != uuid.Nil {
		v["event_id"] = f.EventID.String()
	}
	if !f.From.IsZero() {
		v["from"] = f.From.UTC().Format(time.RFC3339Nano)
	}
	if !f.To.IsZero() {
		v["to"] = f.To.UTC().Format(time.RFC3339Nano)
	}
	return v
}
