package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cornjacket/platform-services/event"
)

// Log reads the event log in its order, for consumers that have to apply it again or for the first time. It may be used
// concurrently.
type Log struct{ pool *pgxpool.Pool }

// NewLog returns the log in the database of pool, which stays the caller's.
func NewLog(pool *pgxpool.Pool) *Log { return &Log{pool: pool} }

// Published returns the position up to which the bus has everything. A database in which there is no log yet has
// published nothing.
func (l *Log) Published(ctx context.Context) (int64, error) {
	var position int64
	err := l.pool.QueryRow(ctx, `SELECT position FROM relay_cursor WHERE name = 'bus'`).Scan(&position)
	if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) && pg.Code == "42P01" { // undefined_table
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read how far the log is published: %w", err)
	}
	return position, nil
}

// logPage leaves out events that the bus will never get, unless they are replayed: then they have another position. The
// bounds are part of the text, since a plan that is kept for any bounds would read the whole log.
const logPage = `SELECT ` + eventColumns + ` FROM event_store e
	WHERE position > %d AND position <= %d AND NOT EXISTS (
		SELECT FROM dlq d WHERE d.consumer = 'relay' AND d.position = e.position AND d.event_id = e.event_id AND d.status <> 'replayed')
	ORDER BY position LIMIT %d`

// Page returns up to limit events behind a position and up to another one, in order.
func (l *Log) Page(ctx context.Context, after, upTo int64, limit int) ([]event.Envelope, error) {
	rows, err := l.pool.Query(ctx, fmt.Sprintf(logPage, after, upTo, limit), pgx.QueryExecModeExec)
	if err != nil {
		return nil, fmt.Errorf("read the log behind position %d: %w", after, err)
	}
	events, err := pgx.CollectRows(rows, scanEvent)
	if err != nil {
		return nil, fmt.Errorf("read the log behind position %d: %w", after, err)
	}
	return events, nil
}

// pageSize is the most events that are held at once, beside those that are being handled.
const pageSize = 5000

// Each calls handle with all events behind a position and up to another one, in order, until it returns false. The next
// page is read while one is being handled.
func (l *Log) Each(ctx context.Context, after, upTo int64, handle func([]event.Envelope) bool) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	pages := make(chan []event.Envelope)
	var failed error
	go func() {
		defer close(pages)
		for after < upTo {
			var page []event.Envelope
			if page, failed = l.Page(ctx, after, upTo, pageSize); failed != nil || len(page) == 0 {
				return
			}
			after = page[len(page)-1].Metadata.Position
			select {
			case pages <- page:
			case <-ctx.Done():
				failed = ctx.Err()
				return
			}
		}
	}()
	for page := range pages {
		if !handle(page) {
			stop()
			for range pages { // until the reader has ended
			}
			return nil
		}
	}
	return failed
}

// OfAggregate returns all events of an aggregate up to a position, in order.
func (l *Log) OfAggregate(ctx context.Context, aggregateID string, upTo int64) ([]event.Envelope, error) {
	rows, err := l.pool.Query(ctx, `SELECT `+eventColumns+` FROM event_store
		WHERE aggregate_id = $1 AND position <= $2 ORDER BY position`, aggregateID, upTo)
	return all(rows, err, scanEvent, "read the events of "+aggregateID)
}
