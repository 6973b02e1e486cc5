package routers

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/google/uuid"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
)

// What each consumer does with a dead letter that is replayed. These functions do no I/O: the caller writes
// their result and the mark of the letter in one transaction. Their errors are permanent.

// ReplayIngestion reads a message again as the ingestion router does. An event whose sender gave no ID gets one that
// belongs to the letter, and one without a time, or with one that the clock does not believe, has the time at which it
// came.
func ReplayIngestion(clock event.Clock) func(*deadletter.Letter) (event.Envelope, error) {
	return func(l *deadletter.Letter) (event.Envelope, error) {
		given := l.Properties
		return event.ParseMQTT(l.From(), l.Bytes(), event.Properties{
			EventID:       given[event.MetaEventID],
			EventTime:     given[event.MetaEventTime],
			CorrelationID: given[event.MetaCorrelationID],
			Traceparent:   given[event.MetaTraceparent],
		}, event.Origin{Source: "mqtt", Now: l.FailedAt, Clock: clock, NewID: func() uuid.UUID { return idOfLetter(l) }})
	}
}

// idOfLetter is a UUIDv7 that is the same each time: the milliseconds at which the letter was written, and a hash.
func idOfLetter(l *deadletter.Letter) uuid.UUID {
	sum := sha256.Sum256(l.ID[:])
	id := uuid.UUID(sum[:16])
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(l.FailedAt.UnixMilli())) //nolint:gosec // after 1970
	copy(id[:6], ms[2:])
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	return id
}

// ReplayRelay reads the event that the relay could not store or publish. Its position in the log is that of the letter.
func ReplayRelay(l *deadletter.Letter) (event.Envelope, error) {
	e, err := event.Unmarshal(l.Bytes())
	if err != nil {
		return event.Envelope{}, fmt.Errorf("read event: %w", err)
	}
	return e, sameEvent(l, &e)
}

// sameEvent refuses an edit that makes another event of a letter: what depends on the event ID would not find it.
func sameEvent(l *deadletter.Letter, e *event.Envelope) error {
	if l.EventID != uuid.Nil && e.ID != l.EventID {
		return fault.Permanent(fmt.Errorf("event_id: must stay %s, is %s", l.EventID, e.ID))
	}
	return nil
}
