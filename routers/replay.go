package routers

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"runtime/debug"

	"github.com/google/uuid"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/handlers"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/store"
)

// What each consumer does with a dead letter that is replayed. These functions do no I/O: whoever calls them writes
// their result and the mark of the letter in one transaction. Their errors are permanent.

// ReplayIngestion reads a message again as the ingestion router does. An event whose sender gave no ID gets one that
// belongs to the letter, and one without a time has the time at which it came.
func ReplayIngestion(l *deadletter.Letter) (event.Envelope, error) {
	given := l.Properties
	return event.ParseMQTT(l.From(), l.Bytes(), event.Properties{
		EventID:       given[event.MetaEventID],
		EventTime:     given[event.MetaEventTime],
		CorrelationID: given[event.MetaCorrelationID],
		Traceparent:   given[event.MetaTraceparent],
	}, event.Origin{Source: "mqtt", Now: l.FailedAt, NewID: func() uuid.UUID { return idOfLetter(l) }})
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

// Reapplication is one event that is applied to its projections after newer ones may have been.
type Reapplication struct {
	Event event.Envelope
	Keys  []store.ProjectionKey
	app   application
}

// ReplayEventhandler reads a record again as the event handler does. The position of an event is what its record said,
// and zero if that can't be read: an edit can't move it, since a position that is not the event's own would make its
// projections ignore others.
func ReplayEventhandler(l *deadletter.Letter, projections []handlers.Projection) (*Reapplication, error) {
	if projections == nil {
		projections = Projections()
	}
	r := &Reapplication{}
	if l.EditedBytes == nil {
		r.app.record = l.Payload
		if err := r.app.read(projections); err != nil {
			return nil, err
		}
	} else {
		e, err := event.Unmarshal(l.EditedBytes)
		if err != nil {
			return nil, fmt.Errorf("read event: %w", err)
		}
		if err := sameEvent(l, &e); err != nil {
			return nil, err
		}
		e.Metadata.Position = positionOf(l)
		r.app.event = e
		r.app.choose(projections)
	}
	r.Event = r.app.event
	for _, p := range r.app.projections {
		r.Keys = append(r.Keys, store.ProjectionKey{Type: p.Type, AggregateID: r.Event.AggregateID})
	}
	return r, nil
}

func positionOf(l *deadletter.Letter) int64 {
	original, err := event.Unmarshal(l.Payload)
	if err != nil {
		return l.Position
	}
	return cmp.Or(l.Position, original.Metadata.Position)
}

// Fold applies the event to rows, which its caller holds, and changes each row that it counts in. A row whose newest
// event this is has applied it already. The error of a projection that depends on order and has applied newer events
// wraps [deadletter.ErrNeedsRebuild].
func (r *Reapplication) Fold(rows map[store.ProjectionKey]*store.Projection) (err error) {
	defer func() {
		if panicked := recover(); panicked != nil {
			err = fault.Permanent(fmt.Errorf("the handler panicked: %v\n%s", panicked, debug.Stack()))
		}
	}()
	for _, p := range r.app.projections {
		if err := reapply(rows, p, &r.Event); err != nil {
			return err
		}
	}
	return nil
}

// reapply is reduce without its guard: the event is usually older than what the row has applied.
func reapply(rows map[store.ProjectionKey]*store.Projection, p handlers.Projection, e *event.Envelope) error {
	row, at := rows[store.ProjectionKey{Type: p.Type, AggregateID: e.AggregateID}], e.Metadata.Position
	switch {
	case row == nil:
		return count(rows, nil, p, e, max(0, at))
	case row.LastEventID == e.ID, at > 0 && row.Position == at:
		return nil
	case p.OrderMatters && row.Position > at:
		return fault.Permanent(fmt.Errorf("%s of %s %w: it depends on the order of events and has applied up to position %d; `platform rebuild %s` applies all in order",
			p.Type, e.AggregateID, deadletter.ErrNeedsRebuild, row.Position, p.Type))
	}
	return count(rows, row, p, e, max(row.Position, at))
}
