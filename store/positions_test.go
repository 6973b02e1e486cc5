package store_test

import (
	"context"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/store"
)

var (
	first  = store.Partition{Topic: "sensor-events", Partition: 0}
	second = store.Partition{Topic: "sensor-events", Partition: 1}
)

// claim takes partitions of a topic with an ID.
func claim(t *testing.T, p *store.Positions, topicID uuid.UUID, parts ...store.Partition) map[store.Partition]store.Place {
	t.Helper()
	places, err := p.Claim(t.Context(), map[string]uuid.UUID{"sensor-events": topicID}, parts)
	require.NoError(t, err)
	require.Len(t, places, len(parts))
	all := make(map[store.Partition]store.Place)
	for _, place := range places {
		all[place.Partition] = place
	}
	return all
}

// counts returns what a consumer's row of a partition says.
func counts(t *testing.T, pool *pgxpool.Pool, consumer string, part store.Partition) (position, next, events, dead int64) {
	t.Helper()
	require.NoError(t, pool.QueryRow(t.Context(), `SELECT position, next_offset, events, dead FROM consumer_positions
		WHERE consumer = $1 AND topic = $2 AND partition = $3`, consumer, part.Topic, part.Partition).Scan(&position, &next, &events, &dead))
	return position, next, events, dead
}

func TestPositionsGoOnWhereTheyWere(t *testing.T) {
	t.Parallel()
	pool := database(t)
	topic := id(1)
	p := store.NewPositions(pool, "c")
	require.False(t, p.Claimed(first))
	require.False(t, p.Fresh())
	_, err := p.Position(first)
	require.ErrorIs(t, err, store.ErrFenced)
	require.Equal(t, map[store.Partition]store.Place{first: {first, 0, -1}, second: {second, 0, -1}}, claim(t, p, topic, first, second))
	require.True(t, p.Claimed(first))
	require.True(t, p.Fresh())
	p.Begun()
	require.False(t, p.Fresh())

	require.NoError(t, p.Move(t.Context(), []store.Move{{first, 7, 3, 2, 1, 0}, {second, 9, 4, 5, 0, 0}}))
	require.NoError(t, p.Move(t.Context(), []store.Move{{first, 8, -1, 1, 1, 0}}), "an offset of -1 leaves what was")
	position, next, events, dead := counts(t, pool, "c", first)
	require.Equal(t, []int64{8, 3, 3, 2}, []int64{position, next, events, dead})
	position, err = p.Position(first)
	require.NoError(t, err)
	require.EqualValues(t, 8, position)

	other := store.NewPositions(pool, "another consumer")
	require.Equal(t, map[store.Partition]store.Place{first: {first, 0, -1}}, claim(t, other, topic, first))
	again := store.NewPositions(pool, "c")
	require.Equal(t, map[store.Partition]store.Place{first: {first, 8, 3}}, claim(t, again, topic, first))
	require.Equal(t, map[store.Partition]store.Place{second: {second, 9, -1}}, claim(t, again, id(2), second), "the topic was made anew")
}

// Whoever has claimed a partition last has it: an earlier one changes nothing, and notices.
func TestPositionsFence(t *testing.T) {
	t.Parallel()
	pool := database(t)
	late, next := store.NewPositions(pool, "c"), store.NewPositions(pool, "c")
	claim(t, late, id(1), first, second)
	require.NoError(t, late.Move(t.Context(), []store.Move{{first, 5, 1, 1, 0, 0}}))
	claim(t, next, id(1), first)
	require.ErrorIs(t, late.Move(t.Context(), []store.Move{{second, 6, 1, 1, 0, 0}, {first, 6, 2, 1, 0, 0}}), store.ErrConflict)
	require.ErrorIs(t, late.Move(t.Context(), []store.Move{{first, 6, 2, 1, 0, 0}}), store.ErrFenced, "it knows by now")
	require.False(t, late.Claimed(first))
	require.NoError(t, next.Move(t.Context(), []store.Move{{first, 7, 2, 1, 0, 0}}))
	require.NoError(t, late.Move(t.Context(), []store.Move{{second, 6, 1, 1, 0, 0}}), "the other one is still its own")
	_, _, events, _ := counts(t, pool, "c", first)
	require.EqualValues(t, 2, events)
	_, _, events, _ = counts(t, pool, "c", second)
	require.EqualValues(t, 1, events, "all or none")

	require.NoError(t, pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return store.Fence(t.Context(), tx, "c") }))
	require.ErrorIs(t, next.Move(t.Context(), []store.Move{{first, 8, 3, 1, 0, 0}}), store.ErrConflict)
	require.ErrorIs(t, next.Move(t.Context(), []store.Move{{first, 8, 3, 1, 0, 0}}), store.ErrFenced)
}

// A transaction whose outcome is not known was committed or not; which is found out before the next.
func TestPositionsSettle(t *testing.T) {
	t.Parallel()
	for name, committed := range map[string]bool{"committed": true, "rolled back": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := database(t)
			p := store.NewPositions(pool, "c")
			claim(t, p, id(1), first)
			tx, err := pool.Begin(t.Context())
			require.NoError(t, err)
			require.NoError(t, p.Advance(t.Context(), tx, []store.Move{{first, 5, 1, 1, 0, 0}}))
			want := int64(0)
			if committed {
				want = 5
				require.NoError(t, tx.Commit(t.Context()))
			} else {
				require.NoError(t, tx.Rollback(t.Context()))
			}
			p.Done(false)
			require.NoError(t, p.Settle(t.Context()))
			position, err := p.Position(first)
			require.NoError(t, err)
			require.Equal(t, want, position)
			require.NoError(t, p.Move(t.Context(), []store.Move{{first, 6, 2, 1, 0, 0}}))
		})
	}
}

// A transaction that was given up may still be at work, and be committed after we have looked.
func TestPositionsNoticeATransactionThatIsCommittedLate(t *testing.T) {
	t.Parallel()
	pool := database(t)
	p := store.NewPositions(pool, "c")
	claim(t, p, id(1), first)
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	require.NoError(t, p.Advance(t.Context(), tx, []store.Move{{first, 5, 1, 1, 0, 0}}))
	p.Done(false)
	require.NoError(t, p.Settle(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- p.Move(context.Background(), []store.Move{{first, 5, 1, 1, 0, 0}}) }()
	waits(t, pool)
	require.NoError(t, tx.Commit(t.Context()))
	require.ErrorIs(t, <-ended, store.ErrConflict)
	require.NoError(t, p.Settle(t.Context()))
	position, err := p.Position(first)
	require.NoError(t, err)
	require.EqualValues(t, 5, position)
	_, _, events, _ := counts(t, pool, "c", first)
	require.EqualValues(t, 1, events)
}

// waits returns when a session of the database waits for another one.
func waits(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	require.Eventually(t, func() bool {
		var n int
		err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%consumer_positions%'`).Scan(&n)
		return err == nil && n > 0
	}, soon, every)
}

// A replay has a row of its own: it does not wait for whoever reads the topic.
func TestReplayedCountsBesideThePartitions(t *testing.T) {
	t.Parallel()
	pool := database(t)
	p := store.NewPositions(pool, "c")
	claim(t, p, id(1), first)
	require.NoError(t, p.Move(t.Context(), []store.Move{{first, 5, 1, 3, 3, 0}}))
	held, err := pool.Begin(t.Context())
	require.NoError(t, err)
	require.NoError(t, p.Advance(t.Context(), held, []store.Move{{first, 6, 2, 1, 0, 0}}))
	for range 2 {
		require.NoError(t, pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			return store.Replayed(t.Context(), tx, "c", first.Topic)
		}))
	}
	require.NoError(t, held.Commit(t.Context()))
	p.Done(true)
	var events, dead int64
	require.NoError(t, pool.QueryRow(t.Context(), `SELECT sum(events), sum(dead) FROM consumer_positions WHERE consumer = 'c'`).Scan(&events, &dead))
	require.Equal(t, []int64{4, 1}, []int64{events, dead})
	parts, at, err := store.Partitions(t.Context(), pool, "c")
	require.NoError(t, err)
	require.Equal(t, map[string]int{first.Topic: 1}, parts, "the row of replays is no partition")
	require.Equal(t, map[store.Partition]int64{first: 6}, at)
	require.NoError(t, p.Move(t.Context(), []store.Move{{first, 7, 3, 1, 0, 0}}))
}
