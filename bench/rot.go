package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	rotStep    = 250_000 // events after which the rate is told
	rotBacklog = 20_000  // events that the sender may be ahead of the relay: the outbox is to be hot, not long
)

// measureRot sends events through the outbox while another session holds a transaction open that began before all of
// them, so that no dead row can be removed, and tells whether that makes it slower.
func measureRot(ctx context.Context, b *bench) error {
	return b.onPlatform(ctx, func(r *rig, p *platform) error { return r.rot(ctx, p) })
}

func (r *rig) rot(ctx context.Context, p *platform) error {
	ctx, cancel := p.alive(ctx)
	defer cancel(nil)
	release, err := holdTransaction(ctx, r.dbURL)
	if err != nil {
		return err
	}
	w, err := newWatcher(ctx, r.dbURL, deviceNames(devices))
	if err != nil {
		return err
	}
	defer w.close()
	sending, err := r.startRot(ctx, p, cancel)
	if err != nil {
		return err
	}
	err = r.b.watchRot(ctx, w)
	if stopErr := sending.stop(); err == nil {
		err = stopErr
	}
	if releaseErr := release(); err == nil {
		err = releaseErr
	}
	return because(ctx, err)
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

// startRot sends all events by the batch endpoint, never far ahead of the relay.
func (r *rig) startRot(ctx context.Context, p *platform, failed context.CancelCauseFunc) (*sideload, error) {
	ids := deviceNames(devices)
	w, err := newWatcher(ctx, r.dbURL, ids)
	if err != nil {
		return nil, err
	}
	s := newBatchSender(p.batch(), ids, r.b.opts.rotEvents)
	ask := make(chan struct{}, 1) // the connection serves one at a time
	s.hold = func(ctx context.Context, sent int64) error {
		ask <- struct{}{}
		defer func() { <-ask }()
		for {
			position, err := w.newest(ctx)
			if err != nil || sent-position < rotBacklog {
				return err
			}
			if err := until(ctx, time.Now().Add(pollEvery)); err != nil {
				return err
			}
		}
	}
	return startSideload(ctx, func(ctx context.Context) error {
		defer w.close()
		_, err := s.run(ctx)
		if err != nil {
			failed(err)
		}
		return err
	}), nil
}

// watchRot tells the rate of every step until all events are in the log, then waits until they are applied.
func (b *bench) watchRot(ctx context.Context, w *watcher) error {
	var rates []float64
	last, begin := int64(0), time.Now()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for next := int64(rotStep); next <= int64(b.opts.rotEvents); {
		position, err := w.newest(ctx)
		if err != nil {
			return err
		}
		if position >= next {
			now := time.Now()
			rates = append(rates, perSecond(int(position-last), now.Sub(begin)))
			b.say("  rot: %9d events, %.0f/s", position, rates[len(rates)-1])
			last, begin, next = position, now, next+rotStep
			continue
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for events: %w, %d are in the log", ctx.Err(), position)
		}
	}
	if _, err := w.await(ctx, b.opts.rotEvents); err != nil {
		return err
	}
	b.results.add("rot.first", rates[0])
	b.results.add("rot.last", rates[len(rates)-1])
	b.say("  rot: first %.0f/s, last %.0f/s, ratio %.2f", rates[0], rates[len(rates)-1], rates[len(rates)-1]/rates[0])
	return nil
}
