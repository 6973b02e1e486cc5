// Package deadletter is all there is of dead letters but their HTTP: what they are, the tables they are kept in, their
// replay, one by one and in bulk, and their publication on the bus.
package deadletter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// States of a dead letter.
const (
	Pending   = "pending"
	Replayed  = "replayed"  // its consumer has applied it since
	Discarded = "discarded" // an operator has decided that it is not to be applied
)

// Letter is a dead letter as it is kept, with what has become of it.
type Letter struct {
	Entry
	Status      string
	Size        int // bytes of the payload, of which a list holds only the first
	PublishedAt *time.Time
	RetriedAt   *time.Time // last attempt at a replay, if it failed
	ReplayedAt  *time.Time
	DiscardedAt *time.Time
	Reason      string // why it is not pending any more; may be empty
	DecidedBy   string // who replayed or discarded it; empty if that is not known
	EditedTopic string // in place of Topic at the replay; empty if it was not edited
	EditedBytes []byte // in place of Payload at the replay; nil if it was not edited
}

// Bytes returns what a replay hands to the consumer.
func (l *Letter) Bytes() []byte {
	if l.EditedBytes != nil {
		return l.EditedBytes
	}
	return l.Payload
}

// From returns the topic that a replay hands to the consumer.
func (l *Letter) From() string {
	if l.EditedTopic != "" {
		return l.EditedTopic
	}
	return l.Topic
}

// Edit is what a replay uses in place of what was stored, which is kept as it came.
type Edit struct {
	Payload []byte // nil: as it is
	Topic   string // MQTT topic, for letters of ingestion; empty: as it is
}

// Filter selects dead letters; zero fields select all.
type Filter struct {
	Status, Consumer string
	EventID          uuid.UUID
	EventType, Topic string
	Error            string // part of the error message, in any case
	From, To         time.Time
	BeforeTime       time.Time // only letters listed after this one: the page before ended with it
	BeforeID         uuid.UUID
	Limit            int
}

// States of a bulk replay.
const (
	ReplayQueued      = "queued"
	ReplayRunning     = "running"
	ReplayInterrupted = "interrupted" // it has not gone on for a while; an instance that can goes on with it by itself
	ReplayDone        = "done"
	ReplayCancelled   = "cancelled"
)

// Replay is a bulk replay: a set of letters that was frozen when it began, and how far it is.
type Replay struct {
	ID         uuid.UUID
	Status     string
	Filter     Filter
	Rate       float64 // letters a second, at most
	Total      int64
	Replayed   int64
	Failed     int64 // still pending, with a new error message
	Skipped    int64 // no longer pending when their turn came
	LastError  string
	AskedBy    string // who began it; empty if that is not known
	CreatedAt  time.Time
	FinishedAt *time.Time
}

type operatorKey struct{}

// By returns a context for what somebody does with dead letters, whose name is kept with them.
func By(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, operatorKey{}, name)
}

// operator returns who does something.
func operator(ctx context.Context) string {
	name, _ := ctx.Value(operatorKey{}).(string)
	return text(name)
}

// Left returns how many letters have not had their turn.
func (r *Replay) Left() int64 { return max(0, r.Total-r.Replayed-r.Failed-r.Skipped) }

// ErrNeedsRebuild marks why a letter can't be replayed: newer events have been applied to a projection that depends on
// their order.
var ErrNeedsRebuild = errors.New("needs a rebuild")

// NotPendingError says that a letter is not to be replayed or discarded any more.
type NotPendingError struct {
	ID     uuid.UUID
	Status string
	At     time.Time
}

func (e *NotPendingError) Error() string {
	return fmt.Sprintf("dead letter %s is not pending, it was %s at %s", e.ID, e.Status, e.At.UTC().Format(time.RFC3339))
}

// RefusedError says that the consumer has refused a letter again. The letter is still pending.
type RefusedError struct {
	Err    error
	Letter Letter // as it is now
}

func (e *RefusedError) Error() string { return e.Err.Error() }

func (e *RefusedError) Unwrap() error { return e.Err }

// Entry is a message that a consumer could not handle, kept as it came.
type Entry struct {
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
