package outbox_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/outbox"
)

// pour sends enough events through the outbox for the relay to move its floor.
func pour(t *testing.T, p publisher, out <-chan *message.Message) {
	t.Helper()
	const batches, size = 21, 500
	for b := range batches {
		events := make([]event.Envelope, size)
		for i := range events {
			events[i] = newEvent(fmt.Sprint("many-", i%50), b*size+i)
		}
		require.NoError(t, p.Ingest(t.Context(), events))
		nextAcked(t, out, size)
	}
}

const insertStray = `INSERT INTO outbox (id, event_id, event_type, aggregate_id, event_time, ingested_at, payload, metadata)
	OVERRIDING SYSTEM VALUE VALUES ($1, gen_random_uuid(), 'system.note', 'stray', now(), now(), '{}', '{}')`

// A row that somebody inserts by hand, under an ID that the relay has passed, waits for the next sweep and no longer.
func TestRowsBelowTheFloorAreSwept(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{})
	_, out := s.subscribe(outbox.SubscriberConfig{Sweep: 300 * time.Millisecond, Poll: 50 * time.Millisecond})
	pour(t, p, out)
	s.exec(insertStray, 1)
	require.Equal(t, "stray", nextAcked(t, out, 1)[0].AggregateID)
}

// An insert that has drawn its ID and commits late keeps the floor down, and is taken as soon as it is there.
func TestLateCommitsAreNotBelowTheFloor(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{})
	_, out := s.subscribe(outbox.SubscriberConfig{Sweep: time.Hour, Poll: 50 * time.Millisecond})
	require.NoError(t, p.Store(t.Context(), newEvent("first", 0))) // the sweep at the start is over
	nextAcked(t, out, 1)

	tx, err := s.pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `SELECT pg_advisory_xact_lock_shared(x'67617465'::int, 'outbox'::regclass::oid::int)`)
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `INSERT INTO outbox (event_id, event_type, aggregate_id, event_time, ingested_at, payload, metadata)
		VALUES (gen_random_uuid(), 'system.note', 'late', now(), now(), '{}', '{}')`)
	require.NoError(t, err)
	pour(t, p, out)
	require.NoError(t, tx.Commit(t.Context()))
	require.Equal(t, "late", nextAcked(t, out, 1)[0].AggregateID)
	pour(t, p, out) // and the floor moves again
	require.Zero(t, s.count("outbox"))
}

// An old transaction of another session keeps deleted rows in the index. The relay must not walk over all of them again
// with each batch.
func TestDeadRowsAreWalkedOverOnce(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("walks over many dead rows")
	}
	s := newStore(t, "")
	old, err := s.pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	require.NoError(t, err)
	defer func() { _ = old.Rollback(context.Background()) }()
	_, err = old.Exec(t.Context(), `SELECT count(*) FROM outbox`)
	require.NoError(t, err)

	p := s.publisher(outbox.PublisherConfig{})
	sub, out := s.subscribe(outbox.SubscriberConfig{})
	before := scan[int](s, `SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'outbox'`)
	for range 3 {
		pour(t, p, out)
	}
	var read, deleted int
	require.Eventually(t, func() bool { // the server counts with a delay
		err := s.pool.QueryRow(t.Context(), `SELECT i.idx_tup_read, t.n_tup_del FROM pg_stat_user_indexes i
			JOIN pg_stat_user_tables t USING (relid) WHERE i.indexrelname = 'outbox_pkey'`).Scan(&read, &deleted)
		return err == nil && deleted == 3*21*500
	}, soon, 50*time.Millisecond)
	require.Less(t, read, 12*deleted, "index entries read for %d rows", deleted)
	require.Eventually(t, func() bool {
		return scan[int](s, `SELECT floor FROM relay_cursor`) > deleted-2*3000
	}, soon, tick, "others find the floor with the cursor")

	const looks, scans = 20, `SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'outbox_pkey'`
	scanned := scan[int](s, scans)
	require.NoError(t, p.Store(t.Context(), newEvent("in flight", 0)))
	held := next(t, out)
	for range looks {
		l, err := sub.Lag(t.Context())
		require.NoError(t, err)
		require.EqualValues(t, 1, l.Outbox+l.Log)
	}
	held.msg.Ack()
	require.Eventually(t, func() bool { return scan[int](s, scans) >= scanned+2*looks }, soon, 50*time.Millisecond)
	walked := scan[int](s, `SELECT idx_tup_read - $1 FROM pg_stat_user_indexes WHERE indexrelname = 'outbox_pkey'`, read)
	require.Less(t, walked, looks*2*2*3000, "two looks at the outbox for each lag")
	require.Zero(t, scan[int](s, `SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'outbox'`)-before)
}
