package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	rotStep    = 250_000 // events between two looks at a fresh platform
	rotFresh   = 100_000 // events that a fresh platform gets
	rotBacklog = 20_000  // events that the sender may be ahead of the relay: the outbox is to be hot, not long
)

// measureRot sends events through the outbox while another session holds a transaction open that began before all of
// them, so that no dead row can be removed. Before the first and after each step a fresh platform, without such a
// transaction, gets events too: what they have in common, the machine's good and bad minutes, is no rot.
func measureRot(ctx context.Context, b *bench) error {
	return b.onPlatform(ctx, func(r *rig, p *platform) error { return r.rot(ctx, p) })
}

func (r *rig) rot(ctx context.Context, p *platform) (err error) {
	ctx, cancel := p.alive(ctx)
	defer cancel(nil)
	release, err := holdTransaction(ctx, r.dbURL)
	if err != nil {
		return err
	}
	before, err := r.b.freshRate(ctx)
	for sent := 0; err == nil && sent+rotStep <= r.b.opts.rotEvents; sent += rotStep {
		var rate, after float64
		if rate, err = r.steady(ctx, p, sent, rotStep); err != nil {
			break
		}
		if after, err = r.b.freshRate(ctx); err == nil {
			r.b.rotten(sent+rotStep, rate, (before+after)/2)
			before = after
		}
	}
	if releaseErr := release(); err == nil {
		err = releaseErr
	}
	return because(ctx, err)
}

// rotten notes one step.
func (b *bench) rotten(events int, rate, fresh float64) {
	b.results.add("rot.rate", rate)
	b.results.add("rot.fresh", fresh)
	b.results.add("rot.ratio", rate/fresh)
	b.results.values["rot.last"] = []float64{rate / fresh}
	b.say("  rot: %9d events, %.0f/s; a fresh platform %.0f/s; ratio %.2f", events, rate, fresh, rate/fresh)
}

// freshRate measures a platform that has just been started on an empty database.
func (b *bench) freshRate(ctx context.Context) (rate float64, err error) {
	err = b.onPlatform(ctx, func(r *rig, p *platform) error {
		rate, err = r.steady(ctx, p, 0, rotFresh)
		return err
	})
	return rate, err
}

// holdTransaction begins a transaction that has an ID and a snapshot. Release fails if it was lost meanwhile.
func holdTransaction(ctx context.Context, url string) (release func() error, err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("connect to hold a transaction: %w", err)
	}
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err == nil {
		_, err = tx.Exec(ctx, "SELECT pg_current_xact_id(), count(*) FROM outbox")
	}
	if err != nil {
		closeConn(conn)
		return nil, fmt.Errorf("hold a transaction: %w", err)
	}
	return func() error {
		defer closeConn(conn)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startLimit)
		defer cancel()
		if _, err := tx.Exec(ctx, "SELECT 1"); err != nil {
			return fmt.Errorf("invalid: the transaction was not held to the end: %w", err)
		}
		if err := tx.Rollback(ctx); err != nil {
			return fmt.Errorf("end the transaction: %w", err)
		}
		return nil
	}, nil
}

// steady sends n events by the batch endpoint, never far ahead of the relay, to a platform whose log has before, and
// returns their rate from the first request to the last projection.
func (r *rig) steady(ctx context.Context, p *platform, before, n int) (rate float64, err error) {
	if err := r.b.checkpoint(ctx); err != nil {
		return 0, err
	}
	ids := deviceNames(devices)
	w, err := newWatcher(ctx, r.dbURL, ids)
	if err != nil {
		return 0, err
	}
	defer w.close()
	ctx, cancel := p.alive(ctx)
	defer cancel(nil)
	var begin time.Time
	sending := startSideload(ctx, func(ctx context.Context) (err error) {
		s := newBatchSender(p.batch(), ids, n)
		ahead, err := newWatcher(ctx, r.dbURL, ids)
		if err != nil {
			return err
		}
		defer ahead.close()
		s.hold = holdBack(ahead, before)
		if begin, err = s.run(ctx); err != nil {
			cancel(err)
		}
		return err
	})
	end, err := w.await(ctx, before+n)
	if err != nil {
		_ = sending.stop() // its error is the cause
		return 0, because(ctx, err)
	}
	if err := sending.wait(); err != nil {
		return 0, err
	}
	return perSecond(n, end.Sub(begin)), nil
}

// holdBack waits while the log is far behind what was sent.
func holdBack(w *watcher, before int) func(ctx context.Context, sent int64) error {
	ask := make(chan struct{}, 1) // the connection serves one at a time
	return func(ctx context.Context, sent int64) error {
		ask <- struct{}{}
		defer func() { <-ask }()
		for {
			position, err := w.newest(ctx)
			if err != nil || int64(before)+sent-position < rotBacklog {
				return err
			}
			if err := until(ctx, time.Now().Add(pollEvery)); err != nil {
				return err
			}
		}
	}
}
