// Package ledger says where every event is: counts of all of them, and the journey of one. The tags of its types are also
// their description in the documents of the API.
package ledger

import (
	"time"

	"github.com/google/uuid"
)

// Ledger says where every event is: what came in is what was applied, what is a dead letter, and what is on its way.
type Ledger struct {
	At       time.Time `json:"at" doc:"When it was read, in UTC."`
	Balanced bool      `json:"balanced" doc:"Nothing is on its way or missing, nothing is too much."`

	Accepted   int64 `json:"accepted" minimum:"0" doc:"Events that were acknowledged to their senders, duplicates too."`
	Duplicates int64 `json:"duplicates" minimum:"0" doc:"Of these, repeats: their event_id was in the log already, with the same content."`
	Sequenced  int64 `json:"sequenced" minimum:"0" doc:"In the event log."`
	Published  int64 `json:"published" minimum:"0" doc:"Acknowledged by the bus."`

	Applied      map[string]int64            `json:"applied" doc:"By consumer."`
	DeadLettered map[string]DeadLetterCounts `json:"dead_lettered" doc:"Rows of the dlq table by consumer; those of ingestion were never accepted."`
	Pending      map[string]int64            `json:"pending" doc:"Events on their way or missing, by stage; negative if there is more than came in."`
	Lag          map[string]Lag              `json:"lag" doc:"By stage; the relay's has the outbox in it."`
	Missing      []Missing                   `json:"missing" doc:"What keeps it from being balanced."`
	Topics       []TopicCounts               `json:"topics"`
	Consumers    []ConsumerCounts            `json:"consumers"`
}

// DeadLetterCounts are rows of a dlq table by status.
type DeadLetterCounts struct {
	Pending   int64 `json:"pending" minimum:"0"`
	Replayed  int64 `json:"replayed" minimum:"0"`
	Discarded int64 `json:"discarded" minimum:"0"`
}

// Lag is how far a stage is behind.
type Lag struct {
	Events  int64   `json:"events" minimum:"0"`
	Seconds float64 `json:"seconds" minimum:"0" doc:"Since the oldest of them came in; at a consumer the oldest that was found."`
}

// Missing is a stage at which events are neither done nor dead letters, or of which nothing can be said.
type Missing struct {
	Stage  string `json:"stage" doc:"outbox, relay or the name of a consumer."`
	Events int64  `json:"events" doc:"Negative: that many too many. 0: its database cannot be read, so nothing is known."`
	Detail string `json:"detail"`
}

// TopicCounts are the events of one topic.
type TopicCounts struct {
	Topic        string `json:"topic"`
	Sequenced    int64  `json:"sequenced" minimum:"0"`
	Published    int64  `json:"published" minimum:"0"`
	DeadLettered int64  `json:"dead_lettered" minimum:"0" doc:"Events that the bus will not get unless they are replayed."`
}

// ConsumerCounts are the events of one consumer.
type ConsumerCounts struct {
	Consumer     string   `json:"consumer"`
	Topics       []string `json:"topics"`
	Published    int64    `json:"published" minimum:"0" doc:"On these topics, without the events that turned out not to concern it."`
	Applied      int64    `json:"applied" minimum:"0" doc:"Each once."`
	DeadLettered int64    `json:"dead_lettered" minimum:"0" doc:"Events that are not applied unless they are replayed."`
	Pending      int64    `json:"pending" doc:"Neither applied nor a dead letter."`
}

// Stages of a journey, and of the ledger.
const (
	StageReceived  = "received"
	StageStored    = "stored"
	StagePublished = "published"
	StageApplied   = "applied"
	StageOutbox    = "outbox"
	StageRelay     = "relay"
)

// Status of a step of a journey.
const (
	StepDone         = "done"
	StepWaiting      = "waiting"
	StepDeadLettered = "dead_lettered"
	StepUnknown      = "unknown" // what would tell is away, or does not remember
	StepSkipped      = "skipped" // there is nothing to do
)

// Journey is where an event has been, and where it is.
type Journey struct {
	EventID       uuid.UUID       `json:"event_id"`
	EventType     string          `json:"event_type,omitempty" doc:"Absent if the event is known as a dead letter alone."`
	AggregateID   string          `json:"aggregate_id,omitempty" doc:"Absent likewise."`
	CorrelationID string          `json:"correlation_id,omitempty" doc:"Of the request or message that brought it."`
	Source        string          `json:"source,omitempty" doc:"The door it came through: http, mqtt."`
	Status        string          `json:"status" enum:"done,waiting,dead_lettered,unknown" doc:"Of the whole."`
	WaitingAt     string          `json:"waiting_at,omitempty" doc:"Where it waits: outbox, relay or the name of a consumer."`
	Steps         []Step          `json:"stages" doc:"In the order of the flow; not those behind the one where it waits or ended."`
	DeadLetters   []JourneyLetter `json:"dead_letters"`
}

// Step is one stage of a journey. Fields that do not belong to the stage are left out.
type Step struct {
	Stage     string     `json:"stage" enum:"received,stored,published,applied"`
	Consumer  string     `json:"consumer,omitempty" doc:"Who applies."`
	Status    string     `json:"status" enum:"done,waiting,dead_lettered,unknown,skipped" doc:"skipped: there is nothing to do. unknown: what would tell is away."`
	At        *time.Time `json:"at,omitempty" doc:"When, in UTC."`
	AtLatest  bool       `json:"at_latest,omitzero" doc:"It was at this time or before: later events of the aggregate were applied since."`
	Position  int64      `json:"position,omitzero" minimum:"1" doc:"In the log."`
	Topic     string     `json:"topic,omitempty" doc:"Of the bus."`
	Partition *int32     `json:"partition,omitempty" minimum:"0"`
	Offset    *int64     `json:"offset,omitempty" minimum:"0"`
	Detail    string     `json:"detail,omitempty" doc:"What else there is to say."`
}

// JourneyLetter is a dead letter of the event.
type JourneyLetter struct {
	ID       uuid.UUID `json:"dlq_id"`
	Consumer string    `json:"consumer"`
	Status   string    `json:"status" enum:"pending,replayed,discarded"`
	FailedAt time.Time `json:"failed_at"`
	Error    string    `json:"error_message"`

	offset *int64 // of those of the relay: the position of the event that they are about
}

// BusPlace is where a record is on the bus. A record that is not there any more has no offset.
type BusPlace struct {
	Topic     string
	Partition int32
	Offset    int64 // -1 if it was not found
	At        time.Time
	Expired   bool // the bus has dropped what it had of that time
}
