package store_test

import (
	"context"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/pgtest"
	"github.com/cornjacket/platform-services/store"
)

func positionsOf(events []event.Envelope) (all []int64) {
	for _, e := range events {
		all = append(all, e.Metadata.Position)
	}
	return all
}

func TestLogReadsInOrderWhatTheBusHasOrWillHave(t *testing.T) {
	t.Parallel()
	pool := database(t)
	stored := fill(t, pool, 12)
	slices.Reverse(stored)
	l := store.NewLog(pool)
	letter := func(consumer, status string, event int, position int64) {
		_, err := pool.Exec(t.Context(), `INSERT INTO dlq (consumer, event_id, event_payload, error_message, source_topic, bus_topic, position, status)
			VALUES ($1, $2, '', '', 'outbox', '', $3, $4)`, consumer, id(event), position, status)
		require.NoError(t, err)
	}
	letter("relay", "pending", 3, 3)
	letter("relay", "discarded", 5, 5)
	letter("relay", "replayed", 6, 6) // published again by its replay
	letter("relay", "pending", 7, 99) // by its ID it is another position
	letter("eventhandler", "pending", 8, 8)

	page, err := l.Page(t.Context(), 1, 11, 100)
	require.NoError(t, err)
	require.Equal(t, []int64{2, 4, 6, 7, 8, 9, 10, 11}, positionsOf(page))
	require.Equal(t, stored[1], page[0])
	page, err = l.Page(t.Context(), 2, 11, 3)
	require.NoError(t, err)
	require.Equal(t, []int64{4, 6, 7}, positionsOf(page))
	page, err = l.OfAggregate(t.Context(), stored[2].AggregateID, 12)
	require.NoError(t, err)
	require.NotEmpty(t, page)
	for _, e := range page {
		require.Equal(t, stored[2].AggregateID, e.AggregateID)
	}

	published, err := l.Published(t.Context())
	require.NoError(t, err)
	require.Zero(t, published)
	_, err = pool.Exec(t.Context(), `UPDATE relay_cursor SET position = 11`)
	require.NoError(t, err)
	published, err = l.Published(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 11, published)
	published, err = store.NewLog(pgtest.Pool(t, "")).Published(t.Context())
	require.NoError(t, err, "a database without a log")
	require.Zero(t, published)
}

// Each reads page by page, the next while one is being handled, and ends at once when it is told to or its context ends.
func TestLogEach(t *testing.T) {
	t.Parallel()
	const n = 12_000
	pool := database(t)
	_, err := pool.Exec(t.Context(), `INSERT INTO event_store (event_id, event_type, aggregate_id, event_time, ingested_at, payload, metadata, position)
		SELECT gen_random_uuid(), 'a.b', 'x', now(), now(), '{}', '{"source":"http"}', n FROM generate_series(1, $1) AS n`, n)
	require.NoError(t, err)
	l := store.NewLog(pool)
	var seen []int64
	pages := 0
	require.NoError(t, l.Each(t.Context(), 10, n-10, func(page []event.Envelope) bool {
		pages++
		seen = append(seen, positionsOf(page)...)
		return true
	}))
	require.Greater(t, pages, 2)
	require.Len(t, seen, n-20)
	require.True(t, slices.IsSorted(seen))
	require.EqualValues(t, 11, seen[0])

	require.NoError(t, l.Each(t.Context(), n, n+10, func([]event.Envelope) bool { panic("there are none") }))
	pages = 0
	require.NoError(t, l.Each(t.Context(), 0, n, func([]event.Envelope) bool { pages++; return false }))
	require.Equal(t, 1, pages)
	ctx, cancel := context.WithCancel(t.Context())
	require.ErrorIs(t, l.Each(ctx, 0, n, func([]event.Envelope) bool { cancel(); return true }), context.Canceled)
	require.Eventually(t, func() bool { return pool.Stat().AcquiredConns() == 0 }, soon, every)
}
