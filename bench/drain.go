package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// measureDrain fills the outbox while nobody empties it, then starts the relay and the event handler. The clock runs
// from the first event that moves, which is before the platform says that it is ready; the rate from the start of the
// process is told too.
func measureDrain(ctx context.Context, b *bench) (err error) {
	r, err := b.newRig(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	n, ids := 2*b.opts.events, deviceNames(devices)
	if err := r.fill(ctx, ids, n); err != nil {
		return fmt.Errorf("fill the outbox: %w", err)
	}
	if err := b.checkpoint(ctx); err != nil {
		return err
	}
	w, err := newWatcher(ctx, r.dbURL, ids)
	if err != nil {
		return err
	}
	defer w.close()
	started := time.Now()
	p, err := r.startPlatform("relay,eventhandler")
	if err != nil {
		return err
	}
	meter, err := r.meter("platform", p.child)
	if err != nil {
		return err
	}
	ctx, cancel := p.alive(ctx)
	defer cancel(nil)
	moved, err := w.moves(ctx)
	if err != nil {
		return because(ctx, err)
	}
	end, err := w.await(ctx, n)
	if err != nil {
		return because(ctx, err)
	}
	return r.recordDrain(p, meter, n, started, moved, end)
}

// fill lets ingestion alone take n events.
func (r *rig) fill(ctx context.Context, ids []string, n int) error {
	p, err := r.runPlatform(ctx, "ingestion")
	if err != nil {
		return err
	}
	if _, err := newBatchSender(p.batch(), ids, n).run(ctx); err != nil {
		return err
	}
	return r.stop(p.child)
}

// moves waits until the first events leave the outbox, and returns the last moment at which none had.
func (w *watcher) moves(ctx context.Context) (time.Time, error) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	still := time.Now()
	for {
		asked := time.Now()
		position, err := w.newest(ctx)
		if err != nil || position > 0 {
			return still, err
		}
		still = asked
		select {
		case <-tick.C:
		case <-ctx.Done():
			return still, fmt.Errorf("wait for the first event to leave the outbox: %w", ctx.Err())
		}
	}
}

func (r *rig) recordDrain(p *platform, meter *cpuMeter, n int, started, moved, end time.Time) error {
	used, err := meter.per100k(n)
	if err != nil {
		return err
	}
	res := r.b.results
	for name, seconds := range used {
		res.add("drain.cpu."+name, seconds)
	}
	if len(used) > 0 {
		_, peak, err := memory(p.PID())
		if err != nil {
			return err
		}
		res.add("drain.peak", peak)
	}
	rate := perSecond(n, end.Sub(moved))
	res.add("drain.rate", rate)
	res.add("drain.fromstart", perSecond(n, end.Sub(started)))
	r.b.say("  backlog: %d events in %.2fs, %.0f/s; %.2fs from the start of the process", n, end.Sub(moved).Seconds(), rate,
		end.Sub(started).Seconds())
	return nil
}
