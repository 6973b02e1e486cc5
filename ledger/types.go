// Package ledger says where every event is: counts of all of them, and the journey of one.
package ledger

import (
	"time"

	"github.com/google/uuid"
)

// Ledger says where every event is: what came in is what was applied, what is a dead letter, and what is on its way.
type Ledger struct {
	At       time.Time `json:"at"`       // when it was read
	Balanced bool      `json:"balanced"` // nothing is on its way or missing, nothing is too much

	Accepted   int64 `json:"accepted"`   // events that were acknowledged to their senders, duplicates too
	Duplicates int64 `json:"duplicates"` // of these, those whose event_id was in the log already
	Sequenced  int64 `json:"sequenced"`  // in the event log
	Published  int64 `json:"published"`  // acknowledged by the bus

	Applied      map[string]int64            `json:"applied"`       // by consumer
	DeadLettered map[string]DeadLetterCounts `json:"dead_lettered"` // by consumer; rows
	Pending      map[string]int64            `json:"pending"`       // by stage; negative if there is more than came in
	Lag          map[string]Lag              `json:"lag"`           // by stage; the outbox is the relay's
	Missing      []Missing                   `json:"missing"`       // what keeps it from being balanced
	Topics       []TopicCounts               `json:"topics"`
	Consumers    []ConsumerCounts            `json:"consumers"`
}

// DeadLetterCounts are rows of a dlq table by status.
type DeadLetterCounts struct {
	Pending   int64 `json:"pending"`
	Replayed  int64 `json:"replayed"`
	Discarded int64 `json:"discarded"`
}

// Lag is how far a stage is behind.
type Lag struct {
	Events  int64   `json:"events"`
	Seconds float64 `json:"seconds"` // since the oldest of them came in, at a consumer the oldest that was found
}

// Missing is a stage at which events are neither done nor dead letters, or of which nothing can be said.
type Missing struct {
	Stage  string `json:"stage"`
	Events int64  `json:"events"` // negative: that many too many; zero: unknown
	Detail string `json:"detail"`
}

// TopicCounts are the events of one topic.
type TopicCounts struct {
	Topic        string `json:"topic"`
	Sequenced    int64  `json:"sequenced"`
	Published    int64  `json:"published"`
	DeadLettered int64  `json:"dead_lettered"` // events that the bus will not get unless they are replayed
}

// ConsumerCounts are the events of one consumer.
type ConsumerCounts struct {
	Consumer     string   `json:"consumer"`
	Topics       []string `json:"topics"`
	Published    int64    `json:"published"` // on these topics
	Applied      int64    `json:"applied"`
	DeadLettered int64    `json:"dead_lettered"` // events that are not applied unless they are replayed
	Pending      int64    `json:"pending"`
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
	EventID       uuid.UUID `json:"event_id"`
	EventType     string    `json:"event_type,omitempty"`
	AggregateID   string    `json:"aggregate_id,omitempty"`
	CorrelationID string    `json:"correlation_id,omitempty"`
	Source        string    `json:"source,omitempty"`
	// Status is that of the whole: done, waiting, dead_lettered, or unknown.
	Status string `json:"status"`
	// WaitingAt is where it waits: outbox, relay or the name of a consumer.
	WaitingAt   string          `json:"waiting_at,omitempty"`
	Steps       []Step          `json:"stages"`
	DeadLetters []JourneyLetter `json:"dead_letters"`
}

// Step is one stage of a journey. Fields that do not belong to the stage are left out.
type Step struct {
	Stage    string     `json:"stage"`
	Consumer string     `json:"consumer,omitempty"` // of the stage applied
	Status   string     `json:"status"`
	At       *time.Time `json:"at,omitempty"`
	// AtLatest says that the step was done at this time or before.
	AtLatest  bool   `json:"at_latest,omitzero"`
	Position  int64  `json:"position,omitzero"`
	Topic     string `json:"topic,omitempty"`
	Partition *int32 `json:"partition,omitempty"`
	Offset    *int64 `json:"offset,omitempty"`
	Detail    string `json:"detail,omitempty"`
}

// JourneyLetter is a dead letter of the event.
type JourneyLetter struct {
	ID       uuid.UUID `json:"dlq_id"`
	Consumer string    `json:"consumer"`
	Status   string    `json:"status"`
	FailedAt time.Time `json:"failed_at"`
	Error    string    `json:"error_message"`
}

// BusPlace is where a record is on the bus. A record that is not there any more has no offset.
type BusPlace struct {
	Topic     string
	Partition int32
	Offset    int64 // -1 if it was not found
	At        time.Time
	Expired   bool // the bus has dropped what it had of that time
}
