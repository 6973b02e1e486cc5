package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// load is one way to send events to a platform.
type load struct {
	key  string // of the results
	what string
	ids  []string
	send func(ctx context.Context, p *platform, r *rig, n int) (begin time.Time, err error)
}

func mqttLoad(key string, fleet int) load {
	return load{key: key, what: "MQTT", ids: deviceNames(fleet),
		send: func(ctx context.Context, _ *platform, r *rig, n int) (time.Time, error) {
			return sendMQTT(ctx, r.mqttURL, fleet, n, 0)
		}}
}

func httpLoad() load {
	ids := deviceNames(devices)
	return load{key: "http", what: "HTTP", ids: ids,
		send: func(ctx context.Context, p *platform, _ *rig, n int) (time.Time, error) {
			return sendHTTP(ctx, p.ingestion(), ids, n, 0)
		}}
}

func batchLoad(key string, fleet int) load {
	ids := deviceNames(fleet)
	return load{key: key, what: "batch endpoint", ids: ids,
		send: func(ctx context.Context, p *platform, _ *rig, n int) (time.Time, error) {
			return newBatchSender(p.batch(), ids, n).run(ctx)
		}}
}

func measureMQTT(ctx context.Context, b *bench) error {
	if err := b.throughput(ctx, mqttLoad("mqtt", devices)); err != nil {
		return err
	}
	return b.throughput(ctx, mqttLoad("mqtt.hot", 1))
}

func measureHTTP(ctx context.Context, b *bench) error { return b.throughput(ctx, httpLoad()) }

func measureBatch(ctx context.Context, b *bench) error {
	if err := b.throughput(ctx, batchLoad("batch", devices)); err != nil {
		return err
	}
	return b.throughput(ctx, batchLoad("batch.hot", 1))
}

// throughput sends events as fast as they are taken, to a platform that has just been started, and measures until the
// last one is in its projection.
func (b *bench) throughput(ctx context.Context, l load) error {
	return b.onPlatform(ctx, func(r *rig, p *platform) error { return r.drive(ctx, p, l) })
}

// onPlatform gives f a rig of its own and a platform with all services on it, and takes both away again.
func (b *bench) onPlatform(ctx context.Context, f func(r *rig, p *platform) error) (err error) {
	r, err := b.newRig(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	p, err := r.runPlatform(ctx, b.opts.services)
	if err != nil {
		return err
	}
	return f(r, p)
}

func (r *rig) drive(ctx context.Context, p *platform, l load) error {
	n := r.b.opts.events
	if err := r.b.checkpoint(ctx); err != nil {
		return err
	}
	w, err := newWatcher(ctx, r.dbURL, l.ids)
	if err != nil {
		return err
	}
	defer w.close()
	meter, err := r.meter("platform", p.child)
	if err != nil {
		return err
	}
	var begin, accepted time.Time
	ctx, cancel := p.alive(ctx)
	defer cancel(nil)
	sending := startSideload(ctx, func(ctx context.Context) error {
		var err error
		if begin, err = l.send(ctx, p, r, n); err != nil {
			cancel(err)
		}
		accepted = time.Now()
		return err
	})
	end, err := w.await(ctx, n)
	if err != nil {
		_ = sending.stop() // its error is the cause
		return because(ctx, err)
	}
	if err := sending.wait(); err != nil {
		return err
	}
	return r.record(p, l, meter, begin, accepted, end)
}

func (r *rig) record(p *platform, l load, meter *cpuMeter, begin, accepted, end time.Time) error {
	n := r.b.opts.events
	used, err := meter.per100k(n)
	if err != nil {
		return err
	}
	res := r.b.results
	for name, seconds := range used {
		res.add(l.key+".cpu."+name, seconds)
	}
	if len(used) > 0 {
		_, peak, err := memory(p.PID())
		if err != nil {
			return err
		}
		res.add(l.key+".peak", peak)
	}
	rate := perSecond(n, end.Sub(begin))
	res.add(l.key+".rate", rate)
	res.add(l.key+".accepted", perSecond(n, accepted.Sub(begin)))
	r.b.say("  %s, %d device(s): %d events in %.2fs, %.0f/s", l.what, len(l.ids), n, end.Sub(begin).Seconds(), rate)
	return nil
}

func perSecond(n int, d time.Duration) float64 { return float64(n) / d.Seconds() }

// maximum returns the newest measured rate of a load, and measures it if it has not been.
func (b *bench) maximum(ctx context.Context, l load) (float64, error) {
	if all := b.results.values[l.key+".rate"]; len(all) > 0 {
		return all[len(all)-1], nil
	}
	if err := b.throughput(ctx, l); err != nil {
		return 0, fmt.Errorf("find the most that %s takes: %w", l.what, err)
	}
	all := b.results.values[l.key+".rate"]
	return all[len(all)-1], nil
}
