package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/pubsub/outbox"
	"github.com/cornjacket/platform-services/routers"
	"github.com/cornjacket/platform-services/store"
)

// Rebuild builds a projection anew from the event log, or does with its versions what cfg says. It works on the databases
// alone: the services go on meanwhile.
func Rebuild(ctx context.Context, cfg config.Rebuild, out io.Writer, log *slog.Logger) error {
	projection, alone, err := routers.RebuildOf(cfg.Type)
	if err != nil {
		return fmt.Errorf("%s: %w", cfg.Type, err)
	}
	pools := make(map[string]*pgxpool.Pool)
	for _, service := range []string{routers.Eventhandler, routers.Ingestion} {
		variable := routers.ServiceOf(service).Database.Variable
		pool, err := store.Open(ctx, store.PoolConfig{URL: cfg.DatabaseOf(service), Name: "rebuild", Settings: store.ProjectionSettings()})
		if err != nil {
			return fmt.Errorf("%s: %w", variable, err)
		}
		defer pool.Close()
		if err := await(ctx, pool, variable, cfg.StartupTimeout); err != nil {
			return err
		}
		pools[service] = pool
	}
	r := &rebuilding{cfg: cfg, out: out, pool: pools[routers.Eventhandler], work: &routers.Rebuild{
		Pool: pools[routers.Eventhandler], Log: store.NewLog(pools[routers.Ingestion]), Spread: outbox.Partitions{Pool: pools[routers.Ingestion]}.Spread, Projection: projection, Alone: alone, Logger: log,
	}}
	if err := r.run(ctx); err != nil {
		return fmt.Errorf("rebuild %s: %w", cfg.Type, rebuildError(err))
	}
	return nil
}

// rebuildError says what to do about an error.
func rebuildError(err error) error {
	switch {
	case errors.Is(err, routers.ErrNoVersion):
		return fmt.Errorf("%w; --status says which there are", err)
	case errors.Is(err, routers.ErrBehind):
		return fmt.Errorf("%w; nothing was changed, try again when it has caught up (see its lag in /health)", err)
	case errors.Is(err, store.ErrFenced), errors.Is(err, store.ErrConflict):
		return fmt.Errorf("%w: another rebuild of it is running", err)
	}
	return err
}

// rebuilding is one run of the command.
type rebuilding struct {
	cfg  config.Rebuild
	out  io.Writer
	pool *pgxpool.Pool
	work *routers.Rebuild
}

func (r *rebuilding) run(ctx context.Context) error {
	switch {
	case r.cfg.Status:
		return r.status(ctx)
	case r.cfg.Diff:
		return r.diff(ctx)
	case r.cfg.Drop:
		dropped, err := r.work.Drop(ctx)
		if err != nil {
			return err
		}
		return r.print(map[string]any{"dropped": numbers(dropped)}, "%d versions dropped", len(dropped))
	case r.cfg.Aggregate != "":
		events, err := r.work.Aggregate(ctx, r.cfg.Aggregate)
		if err != nil {
			return err
		}
		return r.print(map[string]any{"aggregate_id": r.cfg.Aggregate, "events": events}, "%s of %s is made anew of %d events", r.cfg.Type, r.cfg.Aggregate, events)
	case r.cfg.Switch, r.cfg.Back:
		began, exchange := time.Now(), r.work.Switch
		if r.cfg.Back {
			exchange = r.work.Back
		}
		v, err := exchange(ctx)
		if err != nil {
			return err
		}
		return r.print(map[string]any{"version": v.Number, "state": v.State}, "version %d of %s is in use, after %s; --back takes the one before into use again, --drop deletes it",
			v.Number, v.Type, time.Since(began).Round(time.Millisecond))
	}
	return r.build(ctx)
}

// build builds a version and says how far it is each second.
func (r *rebuilding) build(ctx context.Context) error {
	began, told := time.Now(), time.Now()
	var first int64
	var last routers.Progress
	r.work.Progress = func(p routers.Progress) {
		if last.End == 0 {
			first = p.Position
		}
		last = p
		if time.Since(told) < time.Second {
			return
		}
		told = time.Now()
		speed := float64(p.Position-first) / time.Since(began).Seconds()
		left := time.Duration(float64(p.End-p.Position) / max(speed, 1) * float64(time.Second))
		_ = r.print(map[string]any{"position": p.Position, "end": p.End, "events": p.Events, "seconds_left": left.Round(time.Second).Seconds()},
			"%s: position %d of %d (%d %%), %.0f events/s, %s left", r.cfg.Type, p.Position, p.End, 100*p.Position/max(1, p.End),
			float64(p.Events)/time.Since(began).Seconds(), left.Round(time.Second)) // the next line fails too, if this one does
	}
	v, err := r.work.Build(ctx)
	if err != nil {
		return err
	}
	refused, err := store.Refusals(ctx, r.pool, v)
	if err != nil {
		return err
	}
	took := time.Since(began)
	return r.print(map[string]any{
		"version": v.Number, "state": v.State, "position": last.Position, "events": last.Events, "refused": refused, "seconds": took.Round(time.Millisecond).Seconds(),
	}, "version %d of %s is built: %d events in %s (%.0f/s), %d refused. Next: --diff compares it, --switch takes it into use, --drop deletes it",
		v.Number, v.Type, last.Events, took.Round(time.Millisecond), float64(last.Events)/took.Seconds(), refused)
}

func (r *rebuilding) status(ctx context.Context) error {
	versions, err := store.Versions(ctx, r.pool)
	if err != nil {
		return err
	}
	_, live, err := store.Partitions(ctx, r.pool, routers.Eventhandler)
	if err != nil {
		return err
	}
	topic, found := r.work.Projection.Topic(), false
	for _, v := range versions {
		if v.Type != r.cfg.Type {
			continue
		}
		found = true
		at := live
		if v.State != store.VersionActive {
			if _, at, err = store.Partitions(ctx, r.pool, v.Consumer()); err != nil {
				return err
			}
		}
		refused, err := store.Refusals(ctx, r.pool, &v)
		if err != nil {
			return err
		}
		position := newest(at, topic)
		err = r.print(map[string]any{"version": v.Number, "state": v.State, "position": position, "end": newest(live, topic), "refused": refused, "table": v.Table()},
			"version %d of %s: %s, position %d of %d, %d refused, table %s", v.Number, v.Type, v.State, position, newest(live, topic), refused, v.Table())
		if err != nil {
			return err
		}
	}
	if !found {
		return r.print(map[string]any{"versions": 0}, "%s has no version yet: the event handler makes the first one", r.cfg.Type)
	}
	return nil
}

func newest(at map[store.Partition]int64, topic string) (position int64) {
	for part, p := range at {
		if part.Topic == topic {
			position = max(position, p)
		}
	}
	return position
}

func (r *rebuilding) diff(ctx context.Context) error {
	const most = 20
	d, err := r.work.Diff(ctx, most)
	if err != nil {
		return err
	}
	err = r.print(map[string]any{
		"active": d.Active.Number, "built": d.Built.Number, "active_rows": d.Rows, "built_rows": d.OtherRows, "differ": d.Differ, "refused": d.Refused, "rows": d.First,
	}, "version %d (in use) has %d rows, version %d has %d; %d differ; %d events refused", d.Active.Number, d.Rows, d.Built.Number, d.OtherRows, d.Differ, d.Refused)
	if err != nil || r.cfg.JSON {
		return err
	}
	for _, row := range d.First {
		if err := r.print(nil, "%s\n  - %s (%d events, position %d)\n  + %s (%d events, position %d)",
			row.AggregateID, orNone(row.Active), row.ActiveCount, row.ActiveAt, orNone(row.Other), row.OtherCount, row.OtherAt); err != nil {
			return err
		}
	}
	return nil
}

func orNone(state string) string {
	if state == "" {
		return "no row"
	}
	return state
}

func numbers(versions []store.Version) []int {
	list := make([]int, len(versions))
	for i, v := range versions {
		list[i] = v.Number
	}
	return list
}

// print prints a line for people, or a document.
func (r *rebuilding) print(document map[string]any, line string, args ...any) error {
	var err error
	if r.cfg.JSON {
		document["projection_type"] = r.cfg.Type
		err = json.NewEncoder(r.out).Encode(document)
	} else {
		_, err = fmt.Fprintf(r.out, line+"\n", args...)
	}
	if err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}
