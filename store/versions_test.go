package store_test

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/cornjacket/platform-services/store"
)

// versions returns the state of each version of a type, and checks that there is no table without one.
func versions(t *testing.T, pool *pgxpool.Pool, projectionType string) map[int]string {
	t.Helper()
	all, err := store.Versions(t.Context(), pool)
	require.NoError(t, err)
	states := make(map[int]string)
	var tables []string
	for _, v := range all {
		if v.Type == projectionType {
			states[v.Number] = v.State
			tables = append(tables, v.Table())
			require.Equal(t, v.State != store.VersionBuilding, v.SwitchedAt != nil, v.Table())
		}
	}
	rows, err := pool.Query(t.Context(), `SELECT tablename FROM pg_tables WHERE schemaname = current_schema() AND tablename LIKE $1`,
		"projections_"+projectionType+"_v%")
	require.NoError(t, err)
	there, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	require.ElementsMatch(t, tables, there)
	return states
}

func TestVersionsAreCreatedActivatedAndDropped(t *testing.T) {
	t.Parallel()
	pool := activated(t, "sensor_state", "user_session")
	k := key("device-1")
	require.NoError(t, update(t.Context(), pool, writer(t, pool), put(k, `{"version":1}`, 1), k))
	var next store.Version
	require.NoError(t, pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) (err error) {
		next, err = store.CreateVersion(t.Context(), tx, "sensor_state")
		return err
	}))
	require.Equal(t, 2, next.Number)
	require.Equal(t, "sensor_state@2", next.Consumer())
	require.Equal(t, map[int]string{1: store.VersionActive, 2: store.VersionBuilding}, versions(t, pool, "sensor_state"))

	beside := store.NewProjections(map[string]string{"sensor_state": next.Table()})
	require.NoError(t, update(t.Context(), pool, beside, put(k, `{"version":2}`, 2), k))
	require.JSONEq(t, `{"version":1}`, string(read(t, pool, k).State), "nobody sees it yet")

	activate := func(v *store.Version) {
		require.NoError(t, pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return store.Activate(t.Context(), tx, v) }))
	}
	activate(&next)
	require.NotNil(t, next.SwitchedAt)
	require.JSONEq(t, `{"version":2}`, string(read(t, pool, k).State))
	require.Equal(t, map[int]string{1: store.VersionPrevious, 2: store.VersionActive}, versions(t, pool, "sensor_state"))
	tables, err := store.ActiveTables(t.Context(), pool)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"sensor_state": "projections", "user_session": "projections"}, tables)

	before := store.Version{Type: "sensor_state", Number: 1}
	activate(&before)
	require.JSONEq(t, `{"version":1}`, string(read(t, pool, k).State), "back")
	positions := store.NewPositions(pool, next.Consumer())
	claim(t, positions, id(1), first)
	require.NoError(t, store.DropVersion(t.Context(), pool, &before), "the active one stays")
	require.NoError(t, store.DropVersion(t.Context(), pool, &next))
	require.Equal(t, map[int]string{1: store.VersionActive}, versions(t, pool, "sensor_state"))
	parts, _, err := store.Partitions(t.Context(), pool, next.Consumer())
	require.NoError(t, err)
	require.Empty(t, parts)
	require.JSONEq(t, `{"version":1}`, string(read(t, pool, k).State))
}

// A type without a version gets one that is active as long as no event was handled; later it has to be built from the log.
func TestEnsureVersions(t *testing.T) {
	t.Parallel()
	pool := database(t)
	var g errgroup.Group
	for range 4 { // instances that start at once
		g.Go(func() error {
			missing, err := store.EnsureVersions(t.Context(), pool, "eventhandler", []string{"sensor_state"})
			require.Empty(t, missing)
			return err
		})
	}
	require.NoError(t, g.Wait())
	require.Equal(t, map[int]string{1: store.VersionActive}, versions(t, pool, "sensor_state"))

	p := store.NewPositions(pool, "eventhandler")
	claim(t, p, id(1), first)
	missing, err := store.EnsureVersions(t.Context(), pool, "eventhandler", []string{"user_session"})
	require.NoError(t, err)
	require.Empty(t, missing, "it has read nothing yet")
	require.NoError(t, p.Move(t.Context(), []store.Move{{first, 1, 1, 1, 0, 0}}))
	for range 2 {
		missing, err = store.EnsureVersions(t.Context(), pool, "eventhandler", []string{"sensor_state", "anomaly", "user_session"})
		require.NoError(t, err)
		require.Equal(t, []string{"anomaly"}, missing)
		require.Empty(t, versions(t, pool, "anomaly"))
	}
	require.NoError(t, pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		_, err := store.CreateVersion(t.Context(), tx, "anomaly")
		return err
	}))
	missing, err = store.EnsureVersions(t.Context(), pool, "eventhandler", []string{"anomaly"})
	require.NoError(t, err)
	require.Equal(t, []string{"anomaly"}, missing, "it is not built yet")
}
