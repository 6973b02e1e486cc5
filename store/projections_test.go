package store_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/pubsub/window"
	"github.com/cornjacket/platform-services/store"
)

type rows = map[store.ProjectionKey]*store.Projection

// put returns a fold that sets a row, whatever it was.
func put(k store.ProjectionKey, state string, position int64) func(rows) error {
	return func(r rows) error {
		row := &store.Projection{
			Type: k.Type, AggregateID: k.AggregateID, State: jsontext.Value(state),
			LastEventID: id(int(position)), LastEventTimestamp: t0, Position: position, EventCount: 1,
		}
		if old := r[k]; old != nil {
			row.EventCount = old.EventCount + 1
		}
		r[k] = row
		return nil
	}
}

func read(t *testing.T, pool *pgxpool.Pool, k store.ProjectionKey) store.Projection {
	t.Helper()
	p, err := store.NewReader(pool, pool).Projection(t.Context(), k.Type, k.AggregateID)
	require.NoError(t, err)
	return p
}

func TestUpdateCreatesThenFoldsWhatIsThere(t *testing.T) {
	t.Parallel()
	pool := database(t)
	p := store.NewProjections(pool)
	k, other := key("device-1"), key("device-2")

	require.NoError(t, p.Update(t.Context(), []store.ProjectionKey{k, other, k}, func(r rows) error {
		require.Empty(t, r, "no row exists yet")
		return put(k, `{"value":1}`, 5)(r)
	}))
	first := read(t, pool, k)
	require.JSONEq(t, `{"value":1}`, string(first.State))
	require.Equal(t, int64(5), first.Position)
	require.Equal(t, id(5), first.LastEventID)
	require.Equal(t, t0, first.LastEventTimestamp)
	require.NotZero(t, first.ID)

	require.NoError(t, p.Update(t.Context(), []store.ProjectionKey{other, k}, func(r rows) error {
		require.Len(t, r, 1, "the other row was not added, so it does not exist")
		row := r[k]
		require.Equal(t, k.Type, row.Type)
		require.Equal(t, k.AggregateID, row.AggregateID)
		require.JSONEq(t, `{"value":1}`, string(row.State))
		require.Equal(t, int64(5), row.Position)
		require.Equal(t, id(5), row.LastEventID)
		require.True(t, t0.Equal(row.LastEventTimestamp))
		return errors.Join(put(k, `{"value":2}`, 6)(r), put(other, `{"value":3}`, 7)(r))
	}))
	second := read(t, pool, k)
	require.JSONEq(t, `{"value":2}`, string(second.State))
	require.Equal(t, first.ID, second.ID, "a projection keeps its identity")
	require.True(t, second.UpdatedAt.After(first.UpdatedAt))
	require.JSONEq(t, `{"value":3}`, string(read(t, pool, other).State))
}

func TestUpdateWritesOnlyRowsWhosePositionHasGrown(t *testing.T) {
	t.Parallel()
	pool := database(t)
	p := store.NewProjections(pool)
	k := key("device-1")
	require.NoError(t, p.Update(t.Context(), []store.ProjectionKey{k}, put(k, `{"value":1}`, 5)))
	for _, position := range []int64{5, 4, 0} {
		require.NoError(t, p.Update(t.Context(), []store.ProjectionKey{k}, put(k, `{"value":99}`, position)))
		require.JSONEq(t, `{"value":1}`, string(read(t, pool, k).State), "position %d", position)
	}
	require.NoError(t, p.Update(t.Context(), nil, func(r rows) error { return nil }), "no keys")
}

func TestUpdateWithAnErrorOfFoldChangesNothing(t *testing.T) {
	t.Parallel()
	pool := database(t)
	p := store.NewProjections(pool)
	k := key("device-1")
	refusal := errors.New("refused")
	err := p.Update(t.Context(), []store.ProjectionKey{k}, func(r rows) error {
		return errors.Join(put(k, `{}`, 1)(r), refusal)
	})
	require.ErrorIs(t, err, refusal)
	_, err = store.NewReader(pool, pool).Projection(t.Context(), k.Type, k.AggregateID)
	require.ErrorIs(t, err, fault.ErrNotFound)
	require.Zero(t, pool.Stat().AcquiredConns(), "the transaction's connection is back")
}

// What PostgreSQL can't hold is permanent, and takes nothing of its batch with it.
func TestUpdateMarksWhatNoRetryMendsAsPermanent(t *testing.T) {
	t.Parallel()
	pool := database(t)
	p := store.NewProjections(pool)
	good, bad := key("device-1"), key("device-2")
	require.NoError(t, p.Update(t.Context(), []store.ProjectionKey{bad}, put(bad, `{}`, 1)))
	for name, state := range map[string]string{"NUL": `{"a":"\u0000"}`, "not JSON": `{`, "lone surrogate": `{"a":"\ud800"}`} {
		err := p.Update(t.Context(), []store.ProjectionKey{good, bad}, func(r rows) error {
			return errors.Join(put(good, `{}`, 2)(r), put(bad, state, 2)(r))
		})
		require.Error(t, err, name)
		require.True(t, fault.IsPermanent(err), "%s: %v", name, err)
	}
	_, err := store.NewReader(pool, pool).Projection(t.Context(), good.Type, good.AggregateID)
	require.ErrorIs(t, err, fault.ErrNotFound)
}

func TestUpdateIsNotPermanentWhenTheTableIsMissing(t *testing.T) {
	t.Parallel()
	pool := database(t)
	_, err := pool.Exec(t.Context(), `ALTER TABLE projections RENAME TO gone`)
	require.NoError(t, err)
	k := key("device-1")
	err = store.NewProjections(pool).Update(t.Context(), []store.ProjectionKey{k}, put(k, `{}`, 1))
	require.Error(t, err)
	require.False(t, fault.IsPermanent(err), "%v", err)
}

// What another instance writes, creates, deletes or moves between our reading and our writing is noticed: fold is given
// the rows as they are then.
func TestUpdateFoldsAgainWhatWasWrittenMeanwhile(t *testing.T) {
	t.Parallel()
	k, other := key("device-1"), key("device-2")
	for name, tc := range map[string]struct {
		exists    bool // before, and known to the writer
		meanwhile func(t *testing.T, pool *pgxpool.Pool)
		want      string
		count     int64
	}{
		"created": {false, func(t *testing.T, pool *pgxpool.Pool) {
			require.NoError(t, store.NewProjections(pool).Update(t.Context(), []store.ProjectionKey{k}, increment(k, 5)))
		}, "2", 2},
		"changed": {true, func(t *testing.T, pool *pgxpool.Pool) {
			require.NoError(t, store.NewProjections(pool).Update(t.Context(), []store.ProjectionKey{k}, increment(k, 5)))
		}, "3", 3},
		"deleted": {true, func(t *testing.T, pool *pgxpool.Pool) {
			_, err := pool.Exec(t.Context(), `DELETE FROM projections WHERE aggregate_id = $1`, k.AggregateID)
			require.NoError(t, err)
		}, "1", 1},
		"replaced": {true, func(t *testing.T, pool *pgxpool.Pool) { // at the same place, by a row that looks the same
			_, err := pool.Exec(t.Context(), `DELETE FROM projections`)
			require.NoError(t, err)
			_, err = pool.Exec(t.Context(), `VACUUM projections`)
			require.NoError(t, err)
			require.NoError(t, store.NewProjections(pool).Update(t.Context(), []store.ProjectionKey{k}, put(k, "100", 1)))
		}, "101", 2},
		"moved": {true, func(t *testing.T, pool *pgxpool.Pool) {
			_, err := pool.Exec(t.Context(), `UPDATE projections SET updated_at = now()`)
			require.NoError(t, err)
		}, "2", 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := database(t)
			p := store.NewProjections(pool)
			if tc.exists {
				require.NoError(t, p.Update(t.Context(), []store.ProjectionKey{k}, increment(k, 1)))
			}
			folds := 0
			require.NoError(t, p.Update(t.Context(), []store.ProjectionKey{other, k}, func(r rows) error {
				if folds++; folds == 1 {
					tc.meanwhile(t, pool)
				}
				return errors.Join(increment(k, 9)(r), put(other, `{}`, 8)(r))
			}))
			require.Equal(t, 2, folds)
			row := read(t, pool, k)
			require.Equal(t, tc.want, string(row.State))
			require.Equal(t, tc.count, row.EventCount)
			require.Equal(t, int64(9), row.Position)
			require.JSONEq(t, `{}`, string(read(t, pool, other).State))
		})
	}
}

// A row that is deleted for a rebuild gets all its events again, with positions that the writer has seen before.
func TestUpdateDoesNotSkipByWhatItRemembers(t *testing.T) {
	t.Parallel()
	pool := database(t)
	p := store.NewProjections(pool)
	k := key("device-1")
	for i := range 3 {
		require.NoError(t, p.Update(t.Context(), []store.ProjectionKey{k}, increment(k, int64(i+1))))
	}
	_, err := pool.Exec(t.Context(), `DELETE FROM projections`)
	require.NoError(t, err)
	for i := range 2 {
		require.NoError(t, p.Update(t.Context(), []store.ProjectionKey{k}, increment(k, int64(i+1))))
		require.Equal(t, strconv.Itoa(i+1), string(read(t, pool, k).State))
	}
	require.NoError(t, p.Update(t.Context(), []store.ProjectionKey{k}, increment(k, 2)))
	require.Equal(t, "2", string(read(t, pool, k).State), "this one came again")
}

// An attempt whose outcome is unknown may have been written.
func TestUpdateAfterALostConnection(t *testing.T) {
	t.Parallel()
	pool := database(t)
	p := store.NewProjections(pool)
	k := key("device-1")
	require.NoError(t, p.Update(t.Context(), []store.ProjectionKey{k}, increment(k, 1)))
	_, err := pool.Exec(t.Context(), `CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$;
		CREATE TRIGGER cut BEFORE UPDATE ON projections FOR EACH ROW EXECUTE FUNCTION cut()`)
	require.NoError(t, err)
	err = p.Update(t.Context(), []store.ProjectionKey{k}, increment(k, 2))
	require.Error(t, err)
	require.False(t, fault.IsPermanent(err))
	_, err = pool.Exec(t.Context(), `DROP TRIGGER cut ON projections`)
	require.NoError(t, err)
	require.NoError(t, p.Update(t.Context(), []store.ProjectionKey{k}, increment(k, 2)))
	require.Equal(t, "2", string(read(t, pool, k).State))
}

func increment(k store.ProjectionKey, position int64) func(rows) error {
	return func(r rows) error { return count(r, k, position) }
}

// count is a reducer whose result shows every event that was lost or applied twice.
func count(r rows, k store.ProjectionKey, position int64) error {
	n := 0
	if row := r[k]; row != nil {
		if position <= row.Position {
			return nil
		}
		var err error
		if n, err = strconv.Atoi(string(row.State)); err != nil {
			return err
		}
	}
	return put(k, strconv.Itoa(n+1), position)(r)
}

type step struct {
	key      store.ProjectionKey
	position int64
}

// Several instances apply the same stream at the same time, as after a rebalance that one of them has not noticed.
func TestConcurrentWritersOfTheSameEventsCountEachOnce(t *testing.T) {
	t.Parallel()
	const writers, keys, events = 6, 7, 280
	pool := database(t)
	stream := make([]step, events)
	for i := range stream {
		stream[i] = step{key(fmt.Sprintf("device-%d", i%keys)), int64(i + 1)}
	}
	var running sync.WaitGroup
	for w := range writers {
		running.Go(func() { apply(t, pool, stream, uint64(w)) })
	}
	running.Wait()
	for i := range keys {
		p := read(t, pool, key(fmt.Sprintf("device-%d", i)))
		require.Equal(t, strconv.Itoa(events/keys), string(p.State))
		require.Equal(t, int64(events-keys+i+1), p.Position)
	}
}

// apply writes a stream in order, in batches of random size, as the event handler's batcher does.
func apply(t *testing.T, pool *pgxpool.Pool, stream []step, seed uint64) {
	p := store.NewProjections(pool)
	b := window.NewBatcher(window.BatcherConfig[[]step]{
		MaxBatch:   1,
		MinBackoff: time.Millisecond,
		MaxBackoff: 10 * time.Millisecond,
		Flush: func(ctx context.Context, batches [][]step) error {
			var keys []store.ProjectionKey
			for _, s := range batches[0] {
				keys = append(keys, s.key)
			}
			return p.Update(ctx, keys, func(r rows) error {
				for _, s := range batches[0] {
					if err := count(r, s.key, s.position); err != nil {
						return fault.Permanent(err)
					}
				}
				return nil
			})
		},
	})
	random := rand.New(rand.NewPCG(seed, 1))
	for len(stream) > 0 {
		n := min(1+random.IntN(12), len(stream))
		if err := b.Do(context.Background(), stream[:n]); err != nil {
			t.Errorf("write: %v", err)
		}
		stream = stream[n:]
	}
	if err := b.Close(context.Background()); err != nil {
		t.Errorf("close: %v", err)
	}
}

// Instances that apply different events to the same rows: every increment counts, whoever creates the row.
func TestConcurrentWritersOfDifferentEventsLoseNothing(t *testing.T) {
	t.Parallel()
	const writers, each = 6, 30
	pool := database(t)
	p := store.NewProjections(pool)
	keys := []store.ProjectionKey{key("a"), key("b"), key("c")}
	var running sync.WaitGroup
	for range writers {
		running.Go(func() {
			b := window.NewBatcher(window.BatcherConfig[int]{
				MaxBatch: 1, MinBackoff: time.Millisecond,
				Flush: func(ctx context.Context, _ []int) error {
					return p.Update(ctx, []store.ProjectionKey{keys[2], keys[0], keys[1]}, func(r rows) error {
						for _, k := range keys {
							var last int64
							if row := r[k]; row != nil {
								last = row.Position
							}
							if err := count(r, k, last+1); err != nil {
								return fault.Permanent(err)
							}
						}
						return nil
					})
				},
			})
			for i := range each {
				if err := b.Do(context.Background(), i); err != nil {
					t.Errorf("write: %v", err)
				}
			}
			if err := b.Close(context.Background()); err != nil {
				t.Errorf("close: %v", err)
			}
		})
	}
	running.Wait()
	for _, k := range keys {
		require.Equal(t, strconv.Itoa(writers*each), string(read(t, pool, k).State))
	}
}

func TestUpdateEndsWithItsContext(t *testing.T) {
	t.Parallel()
	pool := database(t)
	k := key("device-1")
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, tx.Rollback(context.Background())) }()
	_, err = tx.Exec(t.Context(), `LOCK TABLE projections IN ACCESS EXCLUSIVE MODE`)
	require.NoError(t, err)
	err = store.NewProjections(pool).Update(within(t, 100*time.Millisecond), []store.ProjectionKey{k}, put(k, `{}`, 1))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.False(t, fault.IsPermanent(err))
}
