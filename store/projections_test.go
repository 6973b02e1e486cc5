package store_test

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/internal/pgtest"
	"github.com/cornjacket/platform-services/store"
)

type rows = map[store.ProjectionKey]*store.Projection

// activated returns a database in which each of types, or sensor_state, has a version.
func activated(t *testing.T, types ...string) *pgxpool.Pool {
	t.Helper()
	if types == nil {
		types = []string{"sensor_state"}
	}
	url := pgtest.URL(t)
	pool, err := store.Open(t.Context(), store.PoolConfig{URL: url, Name: "projections", MaxConns: 8, Settings: store.ProjectionSettings()})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	tables(t, pool)
	missing, err := store.EnsureVersions(t.Context(), pool, "eventhandler", types)
	require.NoError(t, err)
	require.Empty(t, missing)
	return pool
}

// writer returns a writer to the active tables of a database.
func writer(t *testing.T, pool *pgxpool.Pool) *store.Projections {
	t.Helper()
	tables, err := store.ActiveTables(t.Context(), pool)
	require.NoError(t, err)
	return store.NewProjections(tables)
}

// update makes one attempt, as a consumer does.
func update(ctx context.Context, pool *pgxpool.Pool, p *store.Projections, fold func(rows) error, keys ...store.ProjectionKey) error {
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return p.Update(ctx, tx, keys, fold) })
	p.Done(err == nil)
	return err
}

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

// increment returns a fold whose result shows every event that was lost or applied twice.
func increment(k store.ProjectionKey, position int64) func(rows) error {
	return func(r rows) error {
		n := 0
		if row := r[k]; row != nil {
			var err error
			if n, err = strconv.Atoi(string(row.State)); err != nil {
				return err
			}
		}
		return put(k, strconv.Itoa(n+1), position)(r)
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
	pool := activated(t)
	p := writer(t, pool)
	k, other := key("device-1"), key("device-2")

	require.NoError(t, update(t.Context(), pool, p, func(r rows) error {
		require.Empty(t, r, "no row exists yet")
		return put(k, `{"value":1}`, 5)(r)
	}, k, other, k))
	first := read(t, pool, k)
	require.JSONEq(t, `{"value":1}`, string(first.State))
	require.Equal(t, int64(5), first.Position)
	require.Equal(t, id(5), first.LastEventID)
	require.Equal(t, t0, first.LastEventTimestamp)
	require.NotZero(t, first.ID)

	for name, p := range map[string]*store.Projections{"the one that wrote it": p, "another one": writer(t, pool)} {
		require.NoError(t, update(t.Context(), pool, p, func(r rows) error {
			require.Len(t, r, 1, "the other row was not added, so it does not exist")
			row := r[k]
			require.Equal(t, k.Type, row.Type)
			require.Equal(t, k.AggregateID, row.AggregateID)
			require.JSONEq(t, `{"value":1}`, string(row.State))
			require.Equal(t, int64(5), row.Position)
			require.Equal(t, id(5), row.LastEventID)
			require.True(t, t0.Equal(row.LastEventTimestamp))
			row.State = jsontext.Value(`{"value":9}`) // but no event is counted
			return nil
		}, other, k), name)
		require.Equal(t, first, read(t, pool, k), name)
	}

	require.NoError(t, update(t.Context(), pool, p, func(r rows) error {
		return errors.Join(put(k, `{"value":2}`, 6)(r), put(other, `{"value":3}`, 7)(r))
	}, other, k))
	second := read(t, pool, k)
	require.JSONEq(t, `{"value":2}`, string(second.State))
	require.Equal(t, first.ID, second.ID, "a projection keeps its identity")
	require.True(t, second.UpdatedAt.After(first.UpdatedAt))
	require.EqualValues(t, 2, second.EventCount)
	require.JSONEq(t, `{"value":3}`, string(read(t, pool, other).State))
	require.NoError(t, update(t.Context(), pool, p, func(rows) error { return nil }), "no keys")
}

func TestUpdateWithAnErrorOfFoldChangesNothing(t *testing.T) {
	t.Parallel()
	pool := activated(t)
	k := key("device-1")
	refusal := errors.New("refused")
	err := update(t.Context(), pool, writer(t, pool), func(r rows) error { return errors.Join(put(k, `{}`, 1)(r), refusal) }, k)
	require.ErrorIs(t, err, refusal)
	_, err = store.NewReader(pool, pool).Projection(t.Context(), k.Type, k.AggregateID)
	require.ErrorIs(t, err, fault.ErrNotFound)
	require.Zero(t, pool.Stat().AcquiredConns(), "the transaction's connection is back")
}

// What PostgreSQL can't hold is permanent, and takes nothing of its batch with it.
func TestUpdateMarksWhatNoRetryMendsAsPermanent(t *testing.T) {
	t.Parallel()
	pool := activated(t)
	p := writer(t, pool)
	good, bad := key("device-1"), key("device-2")
	require.NoError(t, update(t.Context(), pool, p, put(bad, `{}`, 1), bad))
	for name, state := range map[string]string{"NUL": `{"a":"\u0000"}`, "not JSON": `{`, "lone surrogate": `{"a":"\ud800"}`} {
		err := update(t.Context(), pool, p, func(r rows) error {
			return errors.Join(put(good, `{}`, 2)(r), put(bad, state, 2)(r))
		}, good, bad)
		require.Error(t, err, name)
		require.True(t, fault.IsPermanent(err), "%s: %v", name, err)
	}
	_, err := store.NewReader(pool, pool).Projection(t.Context(), good.Type, good.AggregateID)
	require.ErrorIs(t, err, fault.ErrNotFound)
}

func TestUpdateIsNotPermanentWhenTheTableIsMissing(t *testing.T) {
	t.Parallel()
	pool := activated(t)
	p := writer(t, pool)
	_, err := pool.Exec(t.Context(), `ALTER TABLE projections RENAME TO gone`)
	require.NoError(t, err)
	k := key("device-1")
	err = update(t.Context(), pool, p, put(k, `{}`, 1), k)
	require.Error(t, err)
	require.False(t, fault.IsPermanent(err), "%v", err)
}

// What another instance writes, creates, deletes or moves after we have read is noticed: nothing is committed, and the
// next attempt is given the rows as they are.
func TestUpdateNoticesWhatWasWrittenMeanwhile(t *testing.T) {
	t.Parallel()
	k, other := key("device-1"), key("device-2")
	for name, tc := range map[string]struct {
		exists    bool // before, and known to the writer
		meanwhile func(t *testing.T, pool *pgxpool.Pool)
		want      string
		count     int64
	}{
		"created": {false, func(t *testing.T, pool *pgxpool.Pool) {
			require.NoError(t, update(t.Context(), pool, writer(t, pool), increment(k, 5), k))
		}, "2", 2},
		"changed": {true, func(t *testing.T, pool *pgxpool.Pool) {
			require.NoError(t, update(t.Context(), pool, writer(t, pool), increment(k, 5), k))
		}, "3", 3},
		"deleted": {true, func(t *testing.T, pool *pgxpool.Pool) {
			_, err := pool.Exec(t.Context(), `DELETE FROM projections WHERE aggregate_id = $1`, k.AggregateID)
			require.NoError(t, err)
		}, "1", 1},
		"replaced": {true, func(t *testing.T, pool *pgxpool.Pool) { // at the same place, by a row that looks the same
			_, err := pool.Exec(t.Context(), `DELETE FROM projections`)
			require.NoError(t, err)
			_, err = pool.Exec(t.Context(), `VACUUM projections_sensor_state_v1`)
			require.NoError(t, err)
			require.NoError(t, update(t.Context(), pool, writer(t, pool), put(k, "100", 1), k))
		}, "101", 2},
		"moved": {true, func(t *testing.T, pool *pgxpool.Pool) {
			_, err := pool.Exec(t.Context(), `UPDATE projections SET updated_at = now()`)
			require.NoError(t, err)
		}, "2", 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := activated(t)
			p := writer(t, pool)
			if tc.exists {
				require.NoError(t, update(t.Context(), pool, p, increment(k, 1), k))
			}
			folds := 0
			fold := func(r rows) error {
				if folds++; folds == 1 {
					tc.meanwhile(t, pool)
				}
				return errors.Join(increment(k, 9)(r), put(other, `{}`, 8)(r))
			}
			err := update(t.Context(), pool, p, fold, other, k)
			require.ErrorIs(t, err, store.ErrConflict)
			_, err = store.NewReader(pool, pool).Projection(t.Context(), other.Type, other.AggregateID)
			require.ErrorIs(t, err, fault.ErrNotFound, "all or none")
			require.NoError(t, update(t.Context(), pool, p, fold, other, k))
			row := read(t, pool, k)
			require.Equal(t, tc.want, string(row.State))
			require.Equal(t, tc.count, row.EventCount)
			require.Equal(t, int64(9), row.Position)
			require.JSONEq(t, `{}`, string(read(t, pool, other).State))
		})
	}
}

// An attempt whose outcome is unknown may have been written or not: what is remembered of its rows is forgotten.
func TestUpdateAfterALostConnection(t *testing.T) {
	t.Parallel()
	pool := activated(t)
	p := writer(t, pool)
	k := key("device-1")
	require.NoError(t, update(t.Context(), pool, p, increment(k, 1), k))
	_, err := pool.Exec(t.Context(), `CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$;
		CREATE TRIGGER cut BEFORE UPDATE ON projections FOR EACH ROW EXECUTE FUNCTION cut()`)
	require.NoError(t, err)
	err = update(t.Context(), pool, p, increment(k, 2), k)
	require.Error(t, err)
	require.False(t, fault.IsPermanent(err))
	_, err = pool.Exec(t.Context(), `DROP TRIGGER cut ON projections`)
	require.NoError(t, err)
	require.NoError(t, update(t.Context(), pool, p, increment(k, 2), k))

	tx, err := pool.Begin(t.Context()) // committed, and nobody knows
	require.NoError(t, err)
	require.NoError(t, p.Update(t.Context(), tx, []store.ProjectionKey{k}, increment(k, 3)))
	require.NoError(t, tx.Commit(t.Context()))
	p.Done(false)
	require.NoError(t, update(t.Context(), pool, p, increment(k, 4), k), "the row is read anew")
	require.Equal(t, "4", string(read(t, pool, k).State))
}

// Instances that apply different events to the same rows: every increment counts, whoever creates the row.
func TestConcurrentWritersOfDifferentEventsLoseNothing(t *testing.T) {
	t.Parallel()
	const writers, each = 4, 30
	pool := activated(t)
	keys := []store.ProjectionKey{key("a"), key("b"), key("c")}
	var running sync.WaitGroup
	for range writers {
		p := writer(t, pool)
		running.Go(func() {
			for done := 0; done < each; {
				err := update(context.Background(), pool, p, func(r rows) error {
					return errors.Join(increment(keys[0], 1)(r), increment(keys[1], 1)(r), increment(keys[2], 1)(r))
				}, keys[2], keys[0], keys[1])
				switch {
				case err == nil:
					done++
				case !errors.Is(err, store.ErrConflict):
					t.Errorf("write: %v", err)
					return
				}
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
	pool := activated(t)
	p := writer(t, pool)
	k := key("device-1")
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, tx.Rollback(context.Background())) }()
	_, err = tx.Exec(t.Context(), `LOCK TABLE projections_sensor_state_v1 IN ACCESS EXCLUSIVE MODE`)
	require.NoError(t, err)
	err = update(within(t, 100*time.Millisecond), pool, p, put(k, `{}`, 1), k)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.False(t, fault.IsPermanent(err))
}
