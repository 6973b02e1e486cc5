package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"golang.org/x/sync/errgroup"

	"github.com/cornjacket/platform-services/migrations"
)

// ceilingBatch is how many events each statement writes.
const ceilingBatch = 500

// The four writes of an event: into the outbox, out of it, into the event log, and the projection. They are those of
// the platform without its bookkeeping, so that they bound what it could reach on this database.
const (
	ceilingInsert = `INSERT INTO outbox (event_id, event_type, aggregate_id, event_time, ingested_at, payload, metadata)
	SELECT id, 'sensor.reading', device, $4, $4, payload::json, $5::json
	FROM unnest($1::uuid[], $2::text[], $3::text[]) AS row (id, device, payload)`

	ceilingMove = `WITH taken AS (
		DELETE FROM outbox WHERE id = ANY (ARRAY(SELECT id FROM outbox ORDER BY id LIMIT $1)) RETURNING *
	), numbered AS (
		SELECT $2::bigint + row_number() OVER (ORDER BY id) AS position, * FROM taken
	), stored AS (
		INSERT INTO event_store (event_id, event_type, aggregate_id, event_time, ingested_at, payload, metadata, position)
		SELECT event_id, event_type, aggregate_id, event_time, ingested_at, payload::jsonb, metadata::jsonb, position
		FROM numbered ORDER BY position
		ON CONFLICT (event_id) DO NOTHING
	)
	SELECT aggregate_id, event_id, event_time, payload::text, position FROM numbered ORDER BY position`

	ceilingUpsert = `INSERT INTO projections (projection_type, aggregate_id, state, last_event_id, last_event_timestamp, position)
	SELECT 'sensor_state', device, state::jsonb, id, time, position
	FROM unnest($1::text[], $2::text[], $3::uuid[], $4::timestamptz[], $5::bigint[]) AS row (device, state, id, time, position)
	ORDER BY device
	ON CONFLICT (projection_type, aggregate_id) DO UPDATE SET state = excluded.state, last_event_id = excluded.last_event_id,
		last_event_timestamp = excluded.last_event_timestamp, position = excluded.position, updated_at = now()`

	ceilingMetadata = `{"source":"http","correlation_id":"0190a5c0-7b1e-7c3a-9d3e-5f6a7b8c9d0e","schema_version":1}`
)

// moved is an event as it comes out of the outbox.
type moved struct {
	device, state string
	id            uuid.UUID
	time          time.Time
	position      int64
}

// measureCeiling does all database work of the events with one connection in turn, then shared by two and by three
// connections as a pipeline. The best of them is the ceiling.
func measureCeiling(ctx context.Context, b *bench) error {
	var best float64
	for conns := 1; conns <= 3; conns++ {
		rate, err := b.ceiling(ctx, conns)
		if err != nil {
			return err
		}
		b.results.add(fmt.Sprintf("ceiling.%d", conns), rate)
		b.say("  database alone, %d connection(s): %.0f/s", conns, rate)
		best = max(best, rate)
	}
	b.results.add("ceiling.rate", best)
	return nil
}

func (b *bench) ceiling(ctx context.Context, conns int) (rate float64, err error) {
	b.rigs++
	name := fmt.Sprintf("ceiling_%d", b.rigs)
	url, err := b.createDatabase(ctx, name)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, b.dropDatabase(context.WithoutCancel(ctx), name)) }()
	if err := migrate(ctx, url); err != nil {
		return 0, err
	}
	w := &ceilingWork{n: b.opts.events, ids: deviceNames(devices)}
	for range conns {
		conn, err := pgx.Connect(ctx, url)
		if err != nil {
			return 0, fmt.Errorf("connect: %w", err)
		}
		defer closeConn(conn)
		w.conns = append(w.conns, conn)
	}
	if err := b.checkpoint(ctx); err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := w.run(ctx); err != nil {
		return 0, err
	}
	return perSecond(w.n, time.Since(begin)), w.verify(ctx)
}

// migrate makes the tables and indexes that the platform has.
func migrate(ctx context.Context, url string) error {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return fmt.Errorf("read database URL: %w", err)
	}
	db := stdlib.OpenDB(*cfg)
	for _, service := range []string{"ingestion", "eventhandler"} {
		if _, err := migrations.Up(ctx, db, service); err != nil {
			return errors.Join(err, db.Close())
		}
	}
	return db.Close()
}

type ceilingWork struct {
	conns    []*pgx.Conn
	ids      []string
	n        int
	position int64
}

// run does the steps of every batch in turn, on one connection, or each on the next one of several. A step of one
// batch then goes on beside those of others.
func (w *ceilingWork) run(ctx context.Context) error {
	if len(w.conns) == 1 {
		for done := 0; done < w.n; done += ceilingBatch {
			if err := w.insert(ctx, w.conns[0], min(ceilingBatch, w.n-done)); err != nil {
				return err
			}
			batch, err := w.move(ctx, w.conns[0])
			if err == nil {
				err = w.project(ctx, w.conns[0], batch)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	return w.pipeline(ctx)
}

func (w *ceilingWork) pipeline(ctx context.Context) error {
	const ahead = 4 // batches that a step may be before the next
	inserted, batches := make(chan struct{}, ahead), make(chan []moved, ahead)
	mover, projector := w.conns[1], w.conns[len(w.conns)-1]
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(inserted)
		for done := 0; done < w.n; done += ceilingBatch {
			if err := w.insert(ctx, w.conns[0], min(ceilingBatch, w.n-done)); err != nil {
				return err
			}
			select {
			case inserted <- struct{}{}:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	project := func(batch []moved) error { return w.project(ctx, projector, batch) }
	if mover != projector {
		project = func(batch []moved) error {
			select {
			case batches <- batch:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		g.Go(func() error {
			for batch := range batches {
				if err := w.project(ctx, projector, batch); err != nil {
					return err
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(batches)
		for range inserted {
			batch, err := w.move(ctx, mover)
			if err == nil {
				err = project(batch)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	return g.Wait()
}

func (w *ceilingWork) insert(ctx context.Context, conn *pgx.Conn, n int) error {
	ids, names, payloads := make([]uuid.UUID, n), make([]string, n), make([]string, n)
	for i := range n {
		id, err := uuid.NewV7()
		if err != nil {
			return fmt.Errorf("make event ID: %w", err)
		}
		ids[i], names[i], payloads[i] = id, w.ids[i%len(w.ids)], payload()
	}
	if _, err := conn.Exec(ctx, ceilingInsert, ids, names, payloads, time.Now(), ceilingMetadata); err != nil {
		return fmt.Errorf("insert into the outbox: %w", err)
	}
	return nil
}

func (w *ceilingWork) move(ctx context.Context, conn *pgx.Conn) ([]moved, error) {
	rows, err := conn.Query(ctx, ceilingMove, ceilingBatch, w.position)
	if err != nil {
		return nil, fmt.Errorf("move to the event log: %w", err)
	}
	batch, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (m moved, err error) {
		err = row.Scan(&m.device, &m.id, &m.time, &m.state, &m.position)
		return m, err
	})
	if err != nil {
		return nil, fmt.Errorf("move to the event log: %w", err)
	}
	w.position += int64(len(batch))
	return batch, nil
}

// project writes the newest state of each device in a batch.
func (w *ceilingWork) project(ctx context.Context, conn *pgx.Conn, batch []moved) error {
	newest := make(map[string]*moved, len(w.ids))
	for i := range batch {
		newest[batch[i].device] = &batch[i]
	}
	var (
		names, states []string
		ids           []uuid.UUID
		times         []time.Time
		positions     []int64
	)
	for _, m := range newest {
		names, states, ids = append(names, m.device), append(states, m.state), append(ids, m.id)
		times, positions = append(times, m.time), append(positions, m.position)
	}
	if _, err := conn.Exec(ctx, ceilingUpsert, names, states, ids, times, positions); err != nil {
		return fmt.Errorf("write projections: %w", err)
	}
	return nil
}

// verify makes sure that all was written.
func (w *ceilingWork) verify(ctx context.Context) error {
	var stored, waiting int
	var newest int64
	err := w.conns[0].QueryRow(ctx, `SELECT (SELECT count(*) FROM event_store), (SELECT count(*) FROM outbox),
		(SELECT max(position) FROM projections)`).Scan(&stored, &waiting, &newest)
	if err != nil {
		return fmt.Errorf("count events: %w", err)
	}
	if stored != w.n || waiting != 0 || newest != int64(w.n) {
		return fmt.Errorf("invalid: %d of %d events are stored, %d wait, the projections are at %d", stored, w.n, waiting, newest)
	}
	return nil
}
