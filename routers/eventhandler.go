package routers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/handlers"
	"github.com/cornjacket/platform-services/handlers/sensor"
	"github.com/cornjacket/platform-services/handlers/user"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/pubsub/batch"
	"github.com/cornjacket/platform-services/pubsub/window"
	"github.com/cornjacket/platform-services/store"
)

// Projections returns the projections of the platform.
func Projections() []handlers.Projection {
	return []handlers.Projection{sensor.State(), user.Session()}
}

func projectedTopics() []string { return topicsOf(Projections()) }

func topicsOf(projections []handlers.Projection) []string {
	var topics []string
	for _, p := range projections {
		if !slices.Contains(topics, p.Topic) {
			topics = append(topics, p.Topic)
		}
	}
	return topics
}

// ProjectionStore gives fold the rows of keys, to change and add to, and writes those whose position has grown, in one
// transaction. It calls fold again if the rows turn out to have been others. It returns fold's error as it is, and marks with [fault.Permanent] what no retry mends.
type ProjectionStore interface {
	Update(ctx context.Context, keys []store.ProjectionKey, fold func(map[store.ProjectionKey]*store.Projection) error) error
}

// EventhandlerConfig configures the router from the bus to the projections.
type EventhandlerConfig struct {
	Stack
	Subscriber  message.Subscriber
	Store       ProjectionStore
	Projections []handlers.Projection // those of [Projections] if nil
	Letters     DeadLetterStore
	Added       func() // told of each dead letter; may be nil
	Now         func() time.Time
	// MaxBatch is the most events of one transaction; 8,000 if zero.
	MaxBatch int
	// OnFlush, if set, is told the outcome of each attempt at a transaction.
	OnFlush func(events int, err error)
}

// NewEventhandler returns the router that applies each event to its projections, exactly once.
func NewEventhandler(cfg EventhandlerConfig) (*Router, error) {
	if cfg.Projections == nil {
		cfg.Projections = Projections()
	}
	if cfg.MaxBatch == 0 {
		cfg.MaxBatch = 8000
	}
	refused := &letters{consumer: Eventhandler, store: cfg.Letters, complete: completeBus, now: cfg.Now, log: cfg.Log, added: cfg.Added}
	topics := strings.Join(topicsOf(cfg.Projections), ",")
	return newRouter(Eventhandler, cfg.Stack, Policy{}, topics, cfg.Subscriber, func(ctx context.Context, b *batch.Batch) error {
		var apps []*application
		var broken []deadletter.Entry
		records := b.Records()
		for i := range records {
			a := &application{record: records[i].Value}
			if err := a.read(cfg.Projections); err != nil {
				broken = append(broken, refused.entry(&records[i], 1, err.Error()))
				continue
			}
			apps = append(apps, a)
		}
		if err := refused.add(ctx, broken...); err != nil {
			return err
		}
		_, err := apply(ctx, cfg.Store, apps)
		return err
	}, refused.refuse)
}

// completeBus adds to a dead letter the topic that it is published on.
func completeBus(r *batch.Record, l *deadletter.Entry) { l.BusTopic = event.DeadLetterTopic(r.Topic) }

// pace bounds how often projections are written under load. It belongs to the goroutine of the batcher.
type pace struct {
	folded  bool          // the last batch had several events for each of its rows
	writing time.Duration // how long it took to write
}

const maxGather = 500 * time.Millisecond

// next returns how long the next batch gathers after one that took so long in all. When rows become costly to write,
// because an old transaction keeps all their dead versions or the database is slow, and events fold into few rows,
// writing takes a quarter of the time at most: rows are written less often, and the rate of events stays.
func (p *pace) next(took time.Duration) time.Duration {
	wait := window.Gather(took)
	if p.folded && p.writing > window.MinGather {
		wait = max(wait, min(3*p.writing, maxGather))
	}
	return wait
}

// application is one event and the projections it is to be applied to.
type application struct {
	record      []byte
	event       event.Envelope
	projections []handlers.Projection
}

// read decodes the event. Its errors are permanent.
func (a *application) read(projections []handlers.Projection) error {
	e, err := event.Unmarshal(a.record)
	if err != nil {
		return fmt.Errorf("read event: %w", err)
	}
	if e.Metadata.Position <= 0 {
		return fault.Permanent(errors.New("metadata.position: is missing, the event did not come through the log"))
	}
	a.event = e
	a.choose(projections)
	return nil
}

// choose keeps the projections that the event is for.
func (a *application) choose(projections []handlers.Projection) {
	for _, p := range projections {
		if p.Applies(a.event.Type) {
			a.projections = append(a.projections, p)
		}
	}
}

// apply folds a batch into its projections, in order, in one transaction, and returns how many rows it is about. Rows
// remember the position of the newest event applied, so that an event that comes again has no second effect.
func apply(ctx context.Context, s ProjectionStore, batch []*application) (rows int, err error) {
	distinct := make(map[store.ProjectionKey]struct{}, len(batch))
	for _, a := range batch {
		for _, p := range a.projections {
			distinct[store.ProjectionKey{Type: p.Type, AggregateID: a.event.AggregateID}] = struct{}{}
		}
	}
	if len(distinct) == 0 {
		return 0, nil
	}
	keys := slices.Collect(maps.Keys(distinct))
	return len(keys), s.Update(ctx, keys, func(rows map[store.ProjectionKey]*store.Projection) error {
		for _, a := range batch {
			for _, p := range a.projections {
				if err := reduce(rows, p, &a.event); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func reduce(rows map[store.ProjectionKey]*store.Projection, p handlers.Projection, e *event.Envelope) error {
	row := rows[store.ProjectionKey{Type: p.Type, AggregateID: e.AggregateID}]
	if row != nil && e.Metadata.Position <= row.Position {
		return nil
	}
	return count(rows, row, p, e, e.Metadata.Position)
}

// count puts an event into the row of its aggregate, nil if there is none yet, which is then at position.
func count(rows map[store.ProjectionKey]*store.Projection, row *store.Projection, p handlers.Projection, e *event.Envelope, position int64) error {
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
		rows[store.ProjectionKey{Type: p.Type, AggregateID: e.AggregateID}] = row
	}
	row.State, row.LastEventID, row.LastEventTimestamp, row.Position = next.Value, next.EventID, next.EventTime, position
	row.EventCount++
	return nil
}
