package routers

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/handlers"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/store"
)

// Application is an event and the projections that it is for.
type Application struct {
	Event       *event.Envelope
	Projections []handlers.Projection
}

// Keys returns the rows that the event is applied to.
func (a *Application) Keys() []store.ProjectionKey {
	keys := make([]store.ProjectionKey, len(a.Projections))
	for i, p := range a.Projections {
		keys[i] = store.ProjectionKey{Type: p.Type, AggregateID: a.Event.AggregateID}
	}
	return keys
}

// Projector returns the consumer that applies events to projections, those of [handlers.Projections] if nil. A
// projection without a table yet is left out: it is being built from the log.
func Projector(projections []handlers.Projection) Consumer[Application] {
	if projections == nil {
		projections = handlers.Projections()
	}
	p := &projector{}
	return Consumer[Application]{
		Name: Eventhandler, Topics: handlers.Topics(projections),
		Read:  reader(projections),
		Apply: p.apply, Begin: p.begin, Replay: p.replay, Done: p.done,
	}
}

// ProjectorOf returns the consumer that builds one version of a projection, in a table of its own.
func ProjectorOf(v *store.Version, projection handlers.Projection) Consumer[Application] {
	p := &projector{writer: store.NewProjections(map[string]string{v.Type: v.Table()})}
	return Consumer[Application]{
		Name: v.Consumer(), Topics: []string{projection.Topic()},
		Read:  reader([]handlers.Projection{projection}),
		Apply: p.apply, Done: p.done,
	}
}

func reader(projections []handlers.Projection) func(e *event.Envelope) (Application, error) {
	return func(e *event.Envelope) (Application, error) {
		a := Application{Event: e}
		for _, p := range projections {
			if p.Applies(e.Type) {
				a.Projections = append(a.Projections, p)
			}
		}
		if len(a.Projections) == 0 {
			return a, ErrNotConcerned
		}
		return a, nil
	}
}

// projector folds events into projections. It belongs to one consumer.
type projector struct {
	writer *store.Projections
	folded bool // the last batch had several events for each of its rows
}

func (p *projector) begin(ctx context.Context, q store.Querier) error {
	tables, err := store.ActiveTables(ctx, q)
	if err != nil {
		return err
	}
	p.writer = store.NewProjections(tables)
	return nil
}

// apply folds events into their projections, in order.
func (p *projector) apply(ctx context.Context, tx pgx.Tx, items []Application) error {
	distinct := make(map[store.ProjectionKey]struct{}, len(items))
	for i := range items {
		items[i].Projections = slices.DeleteFunc(items[i].Projections, func(h handlers.Projection) bool { return !p.writer.Has(h.Type) })
		for _, k := range items[i].Keys() {
			distinct[k] = struct{}{}
		}
	}
	p.folded = len(items) >= 2*len(distinct)
	return p.writer.Update(ctx, tx, slices.Collect(maps.Keys(distinct)), func(rows map[store.ProjectionKey]*store.Projection) error {
		for i := range items {
			for _, h := range items[i].Projections {
				if err := Reduce(rows, h, items[i].Event); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

const (
	slowWrite = 20 * time.Millisecond
	maxPause  = 500 * time.Millisecond
)

// done lets the next batch gather when rows become costly to write, because an old transaction keeps all their dead
// versions or the database is slow, and events fold into few rows: writing then takes a quarter of the time at most, rows
// are written less often, and the rate of events stays.
func (p *projector) done(committed bool, took time.Duration) time.Duration {
	p.writer.Done(committed)
	if !p.folded || took <= slowWrite {
		return 0
	}
	return min(3*took, maxPause)
}

// replay leaves out the projections whose version was built from the log after the event had come into it, and refuses an
// event that is older than what a projection that depends on the order of events has applied.
func (p *projector) replay(ctx context.Context, tx pgx.Tx, l *deadletter.Letter, a Application) (Application, error) {
	at := a.Event.Metadata.Position
	if l.Partition != nil {
		built, err := store.BuiltWith(ctx, tx, a.Event.ID, store.Partition{Topic: event.Topic(a.Event.Type), Partition: *l.Partition}, at)
		if err != nil {
			return a, err
		}
		a.Projections = slices.DeleteFunc(a.Projections, func(h handlers.Projection) bool { return built[h.Type] })
	}
	for _, h := range a.Projections {
		// That holds the row until tx ends: while events flow it would be another one each time.
		newest, err := store.PositionOf(ctx, tx, store.ProjectionKey{Type: h.Type, AggregateID: a.Event.AggregateID})
		if err != nil {
			return a, err
		}
		if h.OrderMatters && newest > at {
			return a, fault.Permanent(fmt.Errorf("%s of %s %w: it depends on the order of events and has applied up to position %d; `platform rebuild %s --aggregate %s` applies all in order",
				h.Type, a.Event.AggregateID, deadletter.ErrNeedsRebuild, newest, h.Type, a.Event.AggregateID))
		}
	}
	return a, nil
}

// Reduce puts an event into the row of its aggregate, which is created if there is none. Its error is permanent.
func Reduce(rows map[store.ProjectionKey]*store.Projection, p handlers.Projection, e *event.Envelope) error {
	key := store.ProjectionKey{Type: p.Type, AggregateID: e.AggregateID}
	row := rows[key]
	var current handlers.State
	if row != nil {
		current = handlers.State{Value: row.State, EventID: row.LastEventID, EventTime: row.LastEventTimestamp}
	}
	next, err := p.Reduce(current, e)
	if err != nil {
		return fault.Permanent(fmt.Errorf("apply event %s to %s: %w", e.ID, p.Type, err))
	}
	if row == nil {
		row = &store.Projection{Type: p.Type, AggregateID: e.AggregateID}
		rows[key] = row
	}
	row.State, row.LastEventID, row.LastEventTimestamp = next.Value, next.EventID, next.EventTime
	row.Position = max(row.Position, e.Metadata.Position)
	row.EventCount++
	return nil
}
