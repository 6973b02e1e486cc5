package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
)

// Bus finds the record of an event. It is given the event's topic and key, and a time before which it was not
// published. It must return soon after ctx ends.
type Bus interface {
	Find(ctx context.Context, id uuid.UUID, topic, key string, notBefore time.Time) (BusPlace, error)
}

// travelled is what the database of the log knows of an event.
type travelled struct {
	event.Envelope
	found, logged bool // in the log or the outbox; in the log
	sequencedAt   *time.Time
	cursor        int64
}

// stop is what one consumer's database says of an event.
type stop struct {
	consumerView
	letters []JourneyLetter
}

// Journey returns the journey of an event. An unknown event is [fault.ErrNotFound]; other errors wrap
// [fault.ErrUnavailable]. A bus that does not answer is no error, nor is a consumer's database: its stage is unknown.
func (r *Reader) Journey(ctx context.Context, id uuid.UUID) (Journey, error) {
	j := Journey{EventID: id, Status: StepDone, Steps: []Step{}, DeadLetters: []JourneyLetter{}}
	var e travelled
	err := snapshot(ctx, r.cfg.Events, func(tx pgx.Tx) (err error) {
		if e, err = readTravelled(ctx, tx, id); err != nil {
			return err
		}
		j.DeadLetters, err = lettersOf(ctx, tx, id, "ingestion", "relay")
		return err
	})
	if err != nil {
		return Journey{}, fmt.Errorf("read journey: %w", fault.Unavailable(err))
	}
	stops := r.stops(ctx, &e)
	for i := range stops {
		j.DeadLetters = append(j.DeadLetters, stops[i].letters...)
	}
	if !e.found {
		return j.unknown(stops)
	}
	j.EventType, j.AggregateID = e.Type, e.AggregateID
	j.CorrelationID, j.Source = e.Metadata.CorrelationID, e.Metadata.Source
	add(&j, "", Step{Stage: StageReceived, Status: StepDone, At: &e.IngestedAt})
	add(&j, StageOutbox, stored(&e))
	if !e.logged {
		return j, nil
	}
	var applied []Step
	for i := range stops {
		step, err := r.applied(ctx, &stops[i], &e, j.DeadLetters)
		if err != nil {
			return Journey{}, fmt.Errorf("read what %s has applied: %w", stops[i].Name, err)
		}
		applied = append(applied, step)
	}
	add(&j, StageRelay, r.published(ctx, &e, applied, j.DeadLetters))
	for _, step := range applied {
		add(&j, step.Consumer, step)
	}
	return j, nil
}

// stops asks all consumers at once.
func (r *Reader) stops(ctx context.Context, e *travelled) []stop {
	stops := make([]stop, len(r.cfg.Consumers))
	var all sync.WaitGroup
	for i := range stops {
		s := &stops[i]
		s.Consumer = &r.cfg.Consumers[i]
		all.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
			defer cancel()
			s.err = snapshot(ctx, s.Pool, func(tx pgx.Tx) (err error) {
				if s.letters, err = lettersOf(ctx, tx, e.ID, s.Name); err != nil {
					return err
				}
				return s.readPositions(ctx, tx, []string{event.Topic(e.Type)})
			})
		})
	}
	all.Wait()
	return stops
}

// unknown returns the journey of an event that is neither in the log nor in the outbox.
func (j *Journey) unknown(stops []stop) (Journey, error) {
	if len(j.DeadLetters) > 0 {
		refused(j)
		return *j, nil
	}
	for i := range stops {
		if s := &stops[i]; s.err != nil { // it may have a dead letter there
			return Journey{}, fmt.Errorf("read dead letters of %s: %w", s.Name, fault.Unavailable(s.err))
		}
	}
	return Journey{}, fault.ErrNotFound
}

// add appends a step; place is where an event waits that has not done it.
func add(j *Journey, place string, s Step) {
	j.Steps = append(j.Steps, s)
	switch {
	case s.Status == StepDeadLettered:
		j.Status, j.WaitingAt = StepDeadLettered, ""
	case s.Status == StepUnknown && s.Stage == StageApplied && j.Status == StepDone:
		j.Status = StepUnknown
	case s.Status == StepWaiting && (j.Status == StepDone || j.Status == StepUnknown):
		j.Status, j.WaitingAt = StepWaiting, place
	}
}

// refused tells of an event that is known from its dead letters alone: it never came into the log.
func refused(j *Journey) {
	for _, l := range j.DeadLetters {
		s := Step{Stage: StageReceived, Consumer: l.Consumer, Status: StepDeadLettered, At: &l.FailedAt, Detail: l.Error}
		switch {
		case l.Consumer == "relay":
			s.Stage = StageStored
		case l.Consumer != "ingestion":
			s.Stage = StageApplied
		}
		if l.Status == letterReplayed {
			s.Status, s.Detail = StepUnknown, "was replayed, and is not in the log under this event_id"
		}
		add(j, "", s)
		if s.Status == StepUnknown && j.Status == StepDone {
			j.Status = StepUnknown
		}
	}
}

const letterReplayed = "replayed"

func stored(e *travelled) Step {
	s := Step{Stage: StageStored, Status: StepWaiting, Detail: "in the outbox: accepted and durable, not in the event log yet"}
	if e.logged {
		s = Step{Stage: StageStored, Status: StepDone, Position: e.Metadata.Position, At: e.sequencedAt}
	}
	return s
}

// unresolved returns the dead letter for which an event has not passed a consumer.
func unresolved(letters []JourneyLetter, consumer string) *JourneyLetter {
	var found *JourneyLetter
	for i, l := range letters {
		switch {
		case l.Consumer != consumer:
		case l.Status == letterReplayed: // one that was published twice has two; it has passed with either
			return nil
		case found == nil:
			found = &letters[i]
		}
	}
	return found
}

// unpublished returns the dead letter for which an event is not on the bus. One at another position is about an event that
// came later under the same event_id.
func (e *travelled) unpublished(letters []JourneyLetter) *JourneyLetter {
	return unresolved(slices.DeleteFunc(slices.Clone(letters), func(l JourneyLetter) bool {
		return l.offset == nil || *l.offset != e.Metadata.Position
	}), "relay")
}

// published asks the bus where the event is, if it can be there.
func (r *Reader) published(ctx context.Context, e *travelled, applied []Step, letters []JourneyLetter) Step {
	s := Step{Stage: StagePublished, Status: StepDone, Topic: event.Topic(e.Type)}
	if l := e.unpublished(letters); l != nil {
		s.Status, s.At, s.Detail = StepDeadLettered, &l.FailedAt, l.Error
		return s
	}
	passed := e.Metadata.Position <= e.cursor
	for _, a := range applied { // the cursor is saved some time after it has moved
		passed = passed || a.Status == StepDone || a.Status == StepDeadLettered
	}
	if !passed {
		s.Status, s.Detail = StepWaiting, "in the event log; the relay has not noted yet that the bus has it"
		return s
	}
	notBefore := e.IngestedAt
	if e.sequencedAt != nil {
		notBefore = *e.sequencedAt
	}
	place, err := r.cfg.Bus.Find(ctx, e.ID, s.Topic, e.AggregateID, notBefore)
	switch {
	case err != nil:
		s.Status, s.Detail = StepUnknown, "it was published, but the bus can't be asked now where it is"
		return s
	case place.Offset >= 0:
		s.Offset, s.At = &place.Offset, &place.At
	case place.Expired:
		s.Detail = "it was published; the bus has dropped it since, as its retention says"
	default:
		s.Detail = "it was published; the bus does not show it any more where it must have been"
	}
	s.Partition = &place.Partition
	return s
}

// applied reports whether a consumer has applied an event: its place in the event's partition says so, unless the counts
// of the consumer say that it has passed events that it did not handle.
func (r *Reader) applied(ctx context.Context, c *stop, e *travelled, letters []JourneyLetter) (Step, error) {
	s := Step{Stage: StageApplied, Consumer: c.Name, Status: StepWaiting}
	topic := event.Topic(e.Type)
	if s.Detail = c.skips(e.Type); s.Detail != "" {
		s.Status = StepSkipped
		return s, nil
	}
	if c.err != nil {
		s.Status, s.Detail = StepUnknown, "its database can't be read now"
		return s, nil
	}
	if l := unresolved(letters, c.Name); l != nil {
		s.Status, s.At, s.Detail = StepDeadLettered, &l.FailedAt, l.Error
		return s, nil
	}
	place := c.at(topic, e.AggregateID)
	if place.position < e.Metadata.Position || e.unpublished(letters) != nil {
		return s, nil
	}
	a, err := r.account(ctx)
	if err != nil {
		return s, err
	}
	if slices.Contains(a.doubt[c.Name], topic) {
		s.Status, s.Detail = StepUnknown, "it has passed this event; the ledger shows that it has lost events of "+topic+", or applied some twice"
		return s, nil
	}
	s.Status, s.At, s.AtLatest = StepDone, &place.at, place.position > e.Metadata.Position
	if c.Changed == nil {
		return s, nil
	}
	position, at, err := c.Changed(ctx, e.Type, e.AggregateID)
	if err == nil && position >= e.Metadata.Position { // nearer than what the partition says; without it that has to do
		s.At, s.AtLatest = &at, position > e.Metadata.Position
	}
	return s, nil
}

// skips returns why a consumer has nothing to do with events of a type, or nothing if it has.
func (c *Consumer) skips(eventType string) string {
	switch {
	case !slices.Contains(c.Topics, event.Topic(eventType)):
		return "it does not read " + event.Topic(eventType)
	case c.Skips != nil:
		return c.Skips(eventType)
	}
	return ""
}

func readTravelled(ctx context.Context, tx pgx.Tx, id uuid.UUID) (travelled, error) {
	e := travelled{Envelope: event.Envelope{ID: id}}
	var metadata []byte
	err := tx.QueryRow(ctx, `
		SELECT event_type, aggregate_id, ingested_at, metadata::text, position, sequenced_at, (SELECT position FROM relay_cursor WHERE name = 'bus')
		FROM event_store WHERE event_id = $1`, id).Scan(&e.Type, &e.AggregateID, &e.IngestedAt, &metadata, &e.Metadata.Position, &e.sequencedAt, &e.cursor)
	e.logged = err == nil
	if errors.Is(err, pgx.ErrNoRows) {
		err = tx.QueryRow(ctx, `SELECT event_type, aggregate_id, ingested_at, metadata::text FROM outbox
			WHERE event_id = $1 AND id > (SELECT floor FROM relay_cursor WHERE name = 'bus') LIMIT 1`, id).
			Scan(&e.Type, &e.AggregateID, &e.IngestedAt, &metadata)
	}
	if errors.Is(err, pgx.ErrNoRows) {
		return e, nil
	}
	if err != nil {
		return e, fmt.Errorf("look for event: %w", err)
	}
	position := e.Metadata.Position
	_ = json.Unmarshal(metadata, &e.Metadata) // what a stranger wrote there does not keep the event from having a journey
	e.Metadata.Position, e.found = position, true
	e.IngestedAt = e.IngestedAt.UTC()
	if e.sequencedAt != nil {
		*e.sequencedAt = e.sequencedAt.UTC()
	}
	return e, nil
}

func lettersOf(ctx context.Context, tx pgx.Tx, id uuid.UUID, consumers ...string) ([]JourneyLetter, error) {
	rows, err := tx.Query(ctx, `SELECT dlq_id, consumer, status, failed_at, error_message, source_offset FROM dlq
		WHERE event_id = $1 AND consumer = ANY ($2) ORDER BY failed_at, dlq_id LIMIT 100`, id, consumers)
	if err != nil {
		return nil, fmt.Errorf("look for dead letters: %w", err)
	}
	letters, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (l JourneyLetter, err error) {
		err = row.Scan((*[16]byte)(&l.ID), &l.Consumer, &l.Status, &l.FailedAt, &l.Error, &l.offset)
		l.FailedAt = l.FailedAt.UTC()
		return l, err
	})
	if err != nil {
		return nil, fmt.Errorf("look for dead letters: %w", err)
	}
	return letters, nil
}
