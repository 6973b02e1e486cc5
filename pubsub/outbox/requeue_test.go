package outbox_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/outbox"
)

// requeue puts an event back in a transaction of its own.
func (s *store) requeue(e event.Envelope, position int64) {
	s.t.Helper()
	require.NoError(s.t, pgx.BeginFunc(s.t.Context(), s.pool, func(tx pgx.Tx) error {
		return outbox.Requeue(context.Background(), tx, &e, position)
	}))
}

// awaitCounted waits until the ledger has counted the log up to a position, and checks that it has each event once.
func (s *store) awaitCounted(position int64) {
	s.t.Helper()
	var counted, events int64
	require.Eventually(s.t, func() bool {
		err := s.pool.QueryRow(s.t.Context(), `SELECT counted, (SELECT sum(events) FROM relay_counts) FROM relay_cursor`).Scan(&counted, &events)
		return err == nil && counted == position
	}, soon, tick)
	require.EqualValues(s.t, s.count("event_store"), events)
}

// An event that was sequenced and never published gets a new position, so that who has seen newer ones takes it.
func TestRequeueGivesANewPosition(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{})
	_, out := s.subscribe(outbox.SubscriberConfig{Poll: time.Hour}) // it is woken
	first, second := newEvent("a", 1), newEvent("a", 2)
	require.NoError(t, p.Ingest(t.Context(), []event.Envelope{first, second}))
	got := nextAcked(t, out, 2)
	s.awaitCounted(2)
	s.requeue(got[0].Envelope, 1)
	again := nextAcked(t, out, 1)[0]
	require.Equal(t, first.ID, again.ID)
	require.EqualValues(t, 3, again.Metadata.Position)
	require.Equal(t, 2, s.count("event_store"))
	require.Equal(t, value(first), value(again.Envelope))
	s.awaitCounted(3)

	// The same once more, when it is not at that position any more, has no effect.
	s.requeue(got[0].Envelope, 1)
	fresh := newEvent("a", 4)
	s.requeue(fresh, 0)
	require.Equal(t, fresh.ID, nextAcked(t, out, 1)[0].ID)
	require.Equal(t, 3, s.count("event_store"))
}

// An event that is taken back while the cursor passes it is counted once, whichever comes first.
func TestTakingBackAndCountingWaitForEachOther(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{})
	sub, out := s.batches(outbox.SubscriberConfig{})
	defer func() { require.NoError(t, sub.Close()) }()
	require.NoError(t, p.Ingest(t.Context(), []event.Envelope{newEvent("a", 1), newEvent("a", 2)}))
	m, records := nextBatch(t, out)
	require.Len(t, records, 2)
	first, err := event.Unmarshal(records[0].Value)
	require.NoError(t, err)
	tx, err := s.pool.Begin(t.Context())
	require.NoError(t, err)
	require.NoError(t, outbox.Requeue(t.Context(), tx, &first, 1))
	m.Ack()
	require.Eventually(t, func() bool { // the cursor waits for us
		return scan[bool](s, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')`)
	}, soon, tick)
	require.NoError(t, tx.Commit(t.Context()))
	require.Equal(t, "1", payloads(nextAcked(t, single(out), 1)))
	s.awaitCounted(3)
}

func TestRequeueIsPartOfItsTransaction(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{})
	_, out := s.subscribe(outbox.SubscriberConfig{})
	require.NoError(t, p.Ingest(t.Context(), []event.Envelope{newEvent("a", 1)}))
	got := nextAcked(t, out, 1)[0]
	tx, err := s.pool.Begin(t.Context())
	require.NoError(t, err)
	require.NoError(t, outbox.Requeue(t.Context(), tx, &got.Envelope, 1))
	require.NoError(t, tx.Rollback(t.Context()))
	require.Equal(t, 1, s.count("event_store"))
	require.Zero(t, s.count("outbox"))
}
