package routers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/pubsub/batch"
	"github.com/cornjacket/platform-services/store"
)

// Switch makes the version that was built the active one.
func (r *Rebuild) Switch(ctx context.Context) (*store.Version, error) {
	v, err := r.version(ctx, r.Pool, store.VersionBuilding)
	if err != nil {
		return nil, err
	}
	return v, r.activate(ctx, v)
}

// Back makes the version that was active before the active one again, brought up to date.
func (r *Rebuild) Back(ctx context.Context) (*store.Version, error) {
	v, err := r.version(ctx, r.Pool, store.VersionPrevious)
	if err != nil {
		return nil, err
	}
	return v, r.activate(ctx, v)
}

// Drop deletes all versions that are not active, and returns them.
func (r *Rebuild) Drop(ctx context.Context) ([]store.Version, error) {
	versions, err := store.Versions(ctx, r.Pool)
	if err != nil {
		return nil, err
	}
	var dropped []store.Version
	for _, v := range versions {
		if v.Type != r.Projection.Type || v.State == store.VersionActive {
			continue
		}
		if err := store.DropVersion(ctx, r.Pool, &v); err != nil {
			return dropped, err
		}
		dropped = append(dropped, v)
	}
	return dropped, nil
}

const (
	switchTries = 20
	// patience bounds how long a switch waits for a lock, since what comes after it waits behind it.
	patience = "1s"
)

// activate brings a version up to date and exchanges it for the active one, in one short transaction: queries see the one
// or the other whole.
func (r *Rebuild) activate(ctx context.Context, v *store.Version) error {
	err := r.CatchUp(ctx, v)
	for try := 1; err == nil; try++ {
		err = r.exchange(ctx, v)
		var pg *pgconn.PgError
		locked := errors.As(err, &pg) && pg.Code == "55P03" // lock_not_available: a query reads for long
		switch {
		case err == nil, try == switchTries:
			return err
		case errors.Is(err, store.ErrConflict):
			err = r.CatchUp(ctx, v)
		case locked, errors.Is(err, ErrBehind):
			err = nil
		}
		if !batch.Sleep(ctx, 500*time.Millisecond) {
			return ctx.Err()
		}
	}
	return err
}

func (r *Rebuild) exchange(ctx context.Context, v *store.Version) error {
	b, err := r.begin(ctx, v)
	if err != nil {
		return err
	}
	committed := false
	defer func() {
		b.positions.Done(committed)
		b.engine.Done(committed, 0)
	}()
	err = pgx.BeginFunc(ctx, r.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '`+patience+`'`); err != nil {
			return fmt.Errorf("switch %s: %w", r.Projection.Type, err)
		}
		_, live, err := store.LockPartitions(ctx, tx, Eventhandler)
		if err != nil {
			return err
		}
		if err := r.last(ctx, tx, b, live); err != nil {
			return err
		}
		return r.take(ctx, tx, v)
	})
	committed = err == nil
	return err
}

// last applies within tx what the event handler has handled and the version does not hold yet, and nothing beyond.
func (r *Rebuild) last(ctx context.Context, tx pgx.Tx, b *build, live map[store.Partition]int64) error {
	end := int64(0)
	for _, part := range b.parts {
		own, err := b.positions.Position(part)
		if err != nil {
			return err
		}
		if own > live[part] {
			return fmt.Errorf("partition %d of %s: %w", part.Partition, part.Topic, ErrBehind)
		}
		end = max(end, live[part])
	}
	var records []batch.Record
	err := r.Log.Each(ctx, b.read, end, func(page []event.Envelope) bool {
		for _, rec := range b.records(page) {
			if rec.Event.Metadata.Position <= live[store.Partition{Topic: rec.Topic, Partition: rec.Partition}] {
				records = append(records, rec)
			}
		}
		return true
	})
	if err != nil || len(records) == 0 {
		return err
	}
	p, err := b.engine.plan(records, nil)
	if err != nil {
		return err
	}
	if err := recovered(func() error { return b.engine.write(ctx, tx, p) }); err != nil {
		if fault.IsPermanent(err) { // it is set aside when the version is caught up with, outside this transaction
			return fmt.Errorf("%w: %w", store.ErrConflict, err)
		}
		return err
	}
	return nil
}

// take exchanges the versions within tx.
func (r *Rebuild) take(ctx context.Context, tx pgx.Tx, v *store.Version) error {
	topic, family := r.Projection.Topic(), r.Projection.Family
	if v.State == store.VersionPrevious {
		n, err := store.ReplayedSince(ctx, tx, Eventhandler, v)
		if err != nil {
			return err
		}
		if n > 0 {
			return fmt.Errorf("%d dead letters were replayed that version %d of %s lacks: build a new version", n, v.Number, v.Type)
		}
	}
	active, err := r.version(ctx, tx, store.VersionActive)
	switch {
	case err == nil:
		if err := store.Retire(ctx, tx, Eventhandler, topic, family, active); err != nil {
			return err
		}
	case !errors.Is(err, ErrNoVersion):
		return err
	}
	if err := store.Activate(ctx, tx, v); err != nil {
		return err
	}
	if r.Alone {
		if _, err := store.Resolve(ctx, tx, Eventhandler, topic, family, "", v); err != nil {
			return err
		}
	}
	return store.Fence(ctx, tx, Eventhandler)
}
