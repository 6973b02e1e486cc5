package routers

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/handlers"
	"github.com/cornjacket/platform-services/store"
)

// Diff says how a version that was built differs from the active one.
type Diff struct {
	Active, Built store.Version
	store.Comparison
	Refused int64 // events that the new version was built without
}

// Diff brings the version that is being built up to date and compares it with the active one, up to limit rows of those
// that differ. Events flow meanwhile: rows that one of the two has not brought up to where the other is are left out.
func (r *Rebuild) Diff(ctx context.Context, limit int) (*Diff, error) {
	v, err := r.version(ctx, r.Pool, store.VersionBuilding)
	if err != nil {
		return nil, err
	}
	active, err := r.version(ctx, r.Pool, store.VersionActive)
	if err != nil {
		return nil, err
	}
	if err := r.CatchUp(ctx, v); err != nil {
		return nil, err
	}
	b, err := r.begin(ctx, v)
	if err != nil {
		return nil, err
	}
	d := &Diff{Active: *active, Built: *v}
	err = pgx.BeginTxFunc(ctx, r.Pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		_, live, err := store.Partitions(ctx, tx, Eventhandler)
		if err != nil {
			return err
		}
		probe := event.Envelope{Type: r.Projection.Family + "."}
		c, err := store.Compare(ctx, tx, active, v, limit, func(aggregateID string, position, built int64) bool {
			probe.AggregateID = aggregateID
			at := record(&probe, b.counts)
			return position <= b.read && built <= live[store.Partition{Topic: at.Topic, Partition: at.Partition}]
		})
		if err == nil {
			d.Comparison = *c
		}
		return err
	})
	if err == nil {
		d.Refused, err = store.Refusals(ctx, r.Pool, v)
	}
	return d, err
}

// Aggregate makes the row of one aggregate anew from its events, in their order, and marks its dead letters that are
// applied by that. It returns how many events the row is made of.
func (r *Rebuild) Aggregate(ctx context.Context, aggregateID string) (events int64, err error) {
	active, err := r.version(ctx, r.Pool, store.VersionActive)
	if err != nil {
		return 0, err
	}
	err = pgx.BeginFunc(ctx, r.Pool, func(tx pgx.Tx) error {
		counts, live, err := store.LockPartitions(ctx, tx, Eventhandler)
		if err != nil {
			return err
		}
		if counts, err = r.Spread.over(ctx, counts); err != nil {
			return err
		}
		probe := record(&event.Envelope{Type: r.Projection.Family + ".", AggregateID: aggregateID}, counts)
		list, err := r.Log.OfAggregate(ctx, aggregateID, live[store.Partition{Topic: probe.Topic, Partition: probe.Partition}])
		if err != nil {
			return err
		}
		row, refused := r.fold(list)
		if err := store.ReplaceProjection(ctx, tx, active, store.ProjectionKey{Type: r.Projection.Type, AggregateID: aggregateID}, row); err != nil {
			return err
		}
		for _, e := range refused {
			if err := store.AddRefusal(ctx, tx, active, e.event.ID, e.event.Metadata.Position, e.err.Error()); err != nil {
				return err
			}
		}
		if row != nil {
			events = row.EventCount
		}
		if r.Alone {
			_, err = store.Resolve(ctx, tx, Eventhandler, probe.Topic, r.Projection.Family, aggregateID, active)
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("rebuild %s of %s: %w", r.Projection.Type, aggregateID, err)
	}
	return events, nil
}

// refusedEvent is an event that a reducer has refused.
type refusedEvent struct {
	event *event.Envelope
	err   error
}

// fold returns the row that events come to, nil if they come to none.
func (r *Rebuild) fold(events []event.Envelope) (row *store.Projection, refused []refusedEvent) {
	rows := make(map[store.ProjectionKey]*store.Projection)
	for i := range events {
		e := &events[i]
		if !r.Projection.Applies(e.Type) {
			continue
		}
		err := recovered(func() error { return Reduce(rows, r.Projection, e) })
		if err != nil {
			refused = append(refused, refusedEvent{e, err})
		}
		row = rows[store.ProjectionKey{Type: r.Projection.Type, AggregateID: e.AggregateID}]
	}
	return row, refused
}

// RebuildOf returns the projection of a type, and whether it shares its family with no other one.
func RebuildOf(projectionType string) (p handlers.Projection, alone bool, err error) {
	found := false
	families := make(map[string]int)
	for _, known := range handlers.Projections() {
		families[known.Family]++
		if known.Type == projectionType {
			p, found = known, true
		}
	}
	if !found {
		return p, false, errors.New("is not a projection")
	}
	return p, families[p.Family] == 1, nil
}
