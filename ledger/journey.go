package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
)

// Bus finds the record of an event. It is given the event's topic and key, and a time before which it was not
// published. It must return soon after ctx ends.
type Bus interface {
	Find(ctx context.Context, id uuid.UUID, topic, key string, notBefore time.Time) (BusPlace, error)
}

// Journeys tells the way of single events. It may be used concurrently.
type Journeys struct {
	events    *pgxpool.Pool
	consumers []Consumer
	bus       Bus
}

// NewJourneys returns the journeys of events in the database of events, over bus, to consumers; all stay the caller's.
func NewJourneys(events *pgxpool.Pool, consumers []Consumer, bus Bus) *Journeys {
	return &Journeys{events: events, consumers: consumers, bus: bus}
}

// travelled is what the database of the log knows of an event.
type travelled struct {
	event.Envelope
	found, logged bool // in the log or the outbox; in the log
	sequencedAt   *time.Time
	cursor        int64
}

// Journey returns the journey of an event. An event that nobody knows is [fault.ErrNotFound]; other errors wrap
// [fault.ErrUnavailable]. A bus that does not answer is no error: its stage is unknown.
func (j *Journeys) Journey(ctx context.Context, id uuid.UUID) (Journey, error) {
	journey := Journey{EventID: id, Status: StepDone, Steps: []Step{}, DeadLetters: []JourneyLetter{}}
	var e travelled
	err := snapshot(ctx, j.events, func(tx pgx.Tx) (err error) {
		if e, err = readTravelled(ctx, tx, id); err != nil {
			return err
		}
		return addLetters(ctx, tx, &journey, id, "ingestion", "relay")
	})
	if err != nil {
		return Journey{}, fmt.Errorf("read journey: %w", fault.Unavailable(err))
	}
	for _, c := range j.consumers {
		if err := addLetters(ctx, c.Pool, &journey, id, c.Name); err != nil {
			return Journey{}, fmt.Errorf("read dead letters of %s: %w", c.Name, fault.Unavailable(err))
		}
	}
	if !e.found {
		if len(journey.DeadLetters) == 0 {
			return Journey{}, fault.ErrNotFound
		}
		refused(&journey)
		return journey, nil
	}
	journey.EventType, journey.AggregateID = e.Type, e.AggregateID
	journey.CorrelationID, journey.Source = e.Metadata.CorrelationID, e.Metadata.Source
	add(&journey, "", Step{Stage: StageReceived, Status: StepDone, At: &e.IngestedAt})
	add(&journey, StageOutbox, stored(&e))
	if !e.logged {
		return journey, nil
	}
	var applied []Step
	for _, c := range j.consumers {
		step, err := c.applied(ctx, &e, journey.DeadLetters)
		if err != nil {
			return Journey{}, fmt.Errorf("read what %s has applied: %w", c.Name, fault.Unavailable(err))
		}
		applied = append(applied, step)
	}
	add(&journey, StageRelay, j.published(ctx, &e, applied, journey.DeadLetters))
	for _, step := range applied {
		add(&journey, step.Consumer, step)
	}
	return journey, nil
}

// add appends a step; place is where an event waits that has not done it.
func add(j *Journey, place string, s Step) {
	j.Steps = append(j.Steps, s)
	switch {
	case s.Status == StepDeadLettered:
		j.Status, j.WaitingAt = StepDeadLettered, ""
	case s.Status == StepWaiting && j.Status == StepDone:
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

// published asks the bus where the event is, if it can be there.
func (j *Journeys) published(ctx context.Context, e *travelled, applied []Step, letters []JourneyLetter) Step {
	s := Step{Stage: StagePublished, Status: StepDone, Topic: event.Topic(e.Type)}
	if l := unresolved(letters, "relay"); l != nil {
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
	place, err := j.bus.Find(ctx, e.ID, s.Topic, e.AggregateID, notBefore)
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

// applied tells whether a consumer has applied an event.
func (c *Consumer) applied(ctx context.Context, e *travelled, letters []JourneyLetter) (Step, error) {
	s := Step{Stage: StageApplied, Consumer: c.Name, Status: StepWaiting}
	types := c.Projections(e.Type)
	if len(types) == 0 {
		s.Status, s.Detail = StepSkipped, "events of this type have no projection"
		return s, nil
	}
	if l := unresolved(letters, c.Name); l != nil {
		s.Status, s.At, s.Detail = StepDeadLettered, &l.FailedAt, l.Error
		return s, nil
	}
	var rows int
	var at *time.Time
	var last bool
	err := c.Pool.QueryRow(ctx, `SELECT count(*), max(updated_at), coalesce(bool_and(position = $3), false) FROM projections
		WHERE projection_type = ANY ($1) AND aggregate_id = $2 AND position >= $3`, types, e.AggregateID, e.Metadata.Position).Scan(&rows, &at, &last)
	if err != nil {
		return s, err
	}
	if rows < len(types) {
		return s, nil
	}
	utc := at.UTC()
	s.Status, s.At, s.AtLatest = StepDone, &utc, !last
	return s, nil
}

func readTravelled(ctx context.Context, tx pgx.Tx, id uuid.UUID) (travelled, error) {
	var e travelled
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
	e.ID, e.Metadata.Position, e.found = id, position, true
	e.IngestedAt = e.IngestedAt.UTC()
	if e.sequencedAt != nil {
		*e.sequencedAt = e.sequencedAt.UTC()
	}
	return e, nil
}

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func addLetters(ctx context.Context, q querier, j *Journey, id uuid.UUID, consumers ...string) error {
	rows, err := q.Query(ctx, `SELECT dlq_id, consumer, status, failed_at, error_message FROM dlq
		WHERE event_id = $1 AND consumer = ANY ($2) ORDER BY failed_at, dlq_id LIMIT 100`, id, consumers)
	if err != nil {
		return fmt.Errorf("look for dead letters: %w", err)
	}
	letters, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (l JourneyLetter, err error) {
		err = row.Scan((*[16]byte)(&l.ID), &l.Consumer, &l.Status, &l.FailedAt, &l.Error)
		l.FailedAt = l.FailedAt.UTC()
		return l, err
	})
	if err != nil {
		return fmt.Errorf("look for dead letters: %w", err)
	}
	j.DeadLetters = append(j.DeadLetters, letters...)
	return nil
}
