package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// watcher tells from the platform's tables how far it has come, over a connection of its own.
type watcher struct {
	url     string
	conn    *pgx.Conn
	devices []string
}

func newWatcher(ctx context.Context, url string, ids []string) (*watcher, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("connect to watch progress: %w", err)
	}
	// The tables are empty when the statements are planned: a plan that reads them whole looks good then.
	if _, err := conn.Exec(ctx, "SET enable_seqscan = off"); err != nil {
		closeConn(conn)
		return nil, fmt.Errorf("prepare to watch progress: %w", err)
	}
	return &watcher{url: url, conn: conn, devices: ids}, nil
}

func (w *watcher) close() { closeConn(w.conn) }

// newest returns the newest position in the event log, 0 while there is none.
func (w *watcher) newest(ctx context.Context) (position int64, err error) {
	err = w.conn.QueryRow(ctx, "SELECT coalesce(max(position), 0) FROM event_store").Scan(&position)
	if err != nil {
		return 0, fmt.Errorf("read the newest position: %w", err)
	}
	return position, nil
}

// behind returns how many devices have events in the log that their projection does not know yet.
func (w *watcher) behind(ctx context.Context) (n int, err error) {
	err = w.conn.QueryRow(ctx, `
		SELECT count(*) FROM unnest($1::text[]) AS d (id)
		LEFT JOIN projections p ON p.projection_type = 'sensor_state' AND p.aggregate_id = d.id
		WHERE p.position IS DISTINCT FROM (SELECT max(e.position) FROM event_store e WHERE e.aggregate_id = d.id)`,
		w.devices).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("compare projections with the event log: %w", err)
	}
	return n, nil
}

// applied reports whether want events are in the log and all of them in the projections. Cheap questions come first: it
// is asked many times a second, on the machine that is being measured.
func (w *watcher) applied(ctx context.Context, want int) (bool, error) {
	position, err := w.newest(ctx)
	if err != nil || position < int64(want) {
		return false, err
	}
	behind, err := w.behind(ctx)
	return err == nil && behind == 0, err
}

// await waits until exactly want events are stored and applied, and returns when that was seen first. That more
// arrived, or that some did not get through, makes a measurement invalid.
func (w *watcher) await(ctx context.Context, want int) (time.Time, error) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		ok, err := w.applied(ctx, want)
		seen := time.Now()
		if ok && err == nil { // positions may have gaps, so the last one does not prove the count
			ok, err = w.complete(ctx, want)
		}
		switch {
		case err != nil && ctx.Err() != nil:
			return time.Time{}, w.explain(ctx, want)
		case ok || err != nil:
			return seen, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return time.Time{}, w.explain(ctx, want)
		}
	}
}

func (w *watcher) complete(ctx context.Context, want int) (bool, error) {
	stored, waiting, dead, err := w.count(ctx)
	switch {
	case err != nil:
		return false, err
	case stored > want || dead > 0 || stored == want && waiting > 0:
		return false, fmt.Errorf("invalid: %d events were sent, %d are stored, %d more wait in the outbox and %d are dead letters",
			want, stored, waiting, dead)
	}
	return stored == want, nil
}

func (w *watcher) count(ctx context.Context) (stored, waiting, dead int, err error) {
	err = w.conn.QueryRow(ctx, `SELECT (SELECT count(*) FROM event_store), (SELECT count(*) FROM outbox),
		(SELECT count(*) FROM dlq)`).Scan(&stored, &waiting, &dead)
	if err != nil {
		return 0, 0, 0, fmt.Errorf("count events: %w", err)
	}
	return stored, waiting, dead, nil
}

// explain says what is missing at the deadline, which may have cost the watcher its connection.
func (w *watcher) explain(ctx context.Context, want int) error {
	late := fmt.Errorf("wait for %d events to be applied: %w", want, ctx.Err())
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startLimit)
	defer cancel()
	again, err := newWatcher(ctx, w.url, w.devices)
	if err != nil {
		return errors.Join(late, err)
	}
	defer again.close()
	stored, waiting, dead, err := again.count(ctx)
	if err != nil {
		return errors.Join(late, err)
	}
	behind, err := again.behind(ctx)
	if err != nil {
		return errors.Join(late, err)
	}
	return fmt.Errorf("%w; %d are stored, %d wait in the outbox, %d are dead letters, projections of %d devices are behind",
		late, stored, waiting, dead, behind)
}
