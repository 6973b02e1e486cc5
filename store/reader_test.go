package store_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/internal/pgtest"
	"github.com/cornjacket/platform-services/store"
)

// fill stores n events with positions 1 to n and returns them, the newest position first.
func fill(t *testing.T, pool *pgxpool.Pool, n int) []event.Envelope {
	t.Helper()
	types := []string{"sensor.reading", "user.login", "system.alert"}
	var all []event.Envelope
	for i := 1; i <= n; i++ {
		e := event.Envelope{
			ID: id(i), Type: types[i%3], AggregateID: fmt.Sprintf("device-%d", i%5),
			Time:       t0.Add(time.Duration(i*7%n) * time.Minute), // not in the order of positions
			IngestedAt: t0.Add(time.Duration(i) * time.Second),
			Payload:    jsontext.Value(fmt.Sprintf(`{"value": %d}`, i)),
			Metadata:   event.Metadata{Source: "http", CorrelationID: fmt.Sprint("c-", i), SchemaVersion: 1, Position: int64(i)},
		}
		_, err := pool.Exec(t.Context(), `INSERT INTO event_store
			(event_id, event_type, aggregate_id, event_time, ingested_at, payload, metadata, position)
			VALUES ($1, $2, $3, $4, $5, $6::text::jsonb, $7::text::jsonb, $8)`,
			e.ID, e.Type, e.AggregateID, e.Time, e.IngestedAt, string(e.Payload),
			fmt.Sprintf(`{"source":"http","correlation_id":"c-%d","schema_version":1}`, i), i)
		require.NoError(t, err)
		all = append(all, e)
	}
	slices.Reverse(all)
	return all
}

// before reports whether an event comes after the page that a filter goes on from.
func before(f store.EventFilter, e event.Envelope) bool {
	if order := e.Time.Compare(f.BeforeTime); f.Before > 0 && f.ByTime() && order != 0 {
		return order < 0
	}
	return f.Before == 0 || e.Metadata.Position < f.Before
}

func matches(f store.EventFilter, e event.Envelope) bool {
	return (f.AggregateID == "" || f.AggregateID == e.AggregateID) && (f.EventType == "" || f.EventType == e.Type) &&
		(f.From.IsZero() || !e.Time.Before(f.From)) && (f.To.IsZero() || e.Time.Before(f.To)) &&
		before(f, e)
}

func TestEventsSelectsByEveryFilterAndTheirCombinations(t *testing.T) {
	t.Parallel()
	pool := database(t)
	stored := fill(t, pool, 30)
	r := store.NewReader(pool, pool)
	seen := make(map[int]bool)
	for mask := range 32 {
		f := store.EventFilter{Limit: 100}
		if mask&1 != 0 {
			f.AggregateID = "device-2"
		}
		if mask&2 != 0 {
			f.EventType = "user.login"
		}
		if mask&4 != 0 {
			f.From = t0.Add(5 * time.Minute) // exactly the time of an event
		}
		if mask&8 != 0 {
			f.To = t0.Add(25 * time.Minute)
		}
		if mask&16 != 0 {
			f.Before, f.BeforeTime = 28, timeOf(stored, 28)
		}
		var want []event.Envelope
		for _, e := range stored {
			if matches(f, e) {
				want = append(want, e)
			}
		}
		if f.ByTime() {
			slices.SortStableFunc(want, func(a, b event.Envelope) int { return b.Time.Compare(a.Time) })
		}
		got, err := r.Events(t.Context(), f)
		require.NoError(t, err)
		require.Len(t, got, len(want), "%+v", f)
		for i := range got {
			require.Equal(t, want[i], got[i], "%+v", f)
		}
		seen[len(got)] = true
	}
	require.Greater(t, len(seen), 5, "the filters must tell events apart for this test to mean anything")
}

func timeOf(events []event.Envelope, position int64) time.Time {
	return events[slices.IndexFunc(events, func(e event.Envelope) bool { return e.Metadata.Position == position })].Time
}

// What a page costs does not depend on how long the log is, nor on how far back the span begins or ends.
func TestEventsOfATimeAreFoundWithoutAWalkOverTheLog(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	tables(t, pgtest.Pool(t, url))
	pool, err := store.Open(t.Context(), store.PoolConfig{URL: url, Name: "one", MaxConns: 1})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	const n = 20_000 // an event a minute; some have a time of long ago
	_, err = pool.Exec(t.Context(), `INSERT INTO event_store (event_id, event_type, aggregate_id, event_time, ingested_at, payload, metadata, position)
		SELECT gen_random_uuid(), 'a.b', 'a', $1::timestamptz + CASE WHEN i % 100 = 0 THEN '0 min' ELSE i * interval '1 min' END, now(), '{}', '{"source":"http"}', i
		FROM generate_series(1, $2) AS i`, t0, n)
	require.NoError(t, err)
	_, err = pool.Exec(t.Context(), `ANALYZE event_store`)
	require.NoError(t, err)
	read := func() (rows int) {
		_, err := pool.Exec(t.Context(), `SELECT pg_stat_force_next_flush()`)
		require.NoError(t, err)
		require.NoError(t, pool.QueryRow(t.Context(), `SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'event_store'`).Scan(&rows))
		return rows
	}
	r := store.NewReader(pool, pool)
	at := func(i int) time.Time { return t0.Add(time.Duration(i) * time.Minute) }
	for range 7 { // beyond which a plan would be kept
		for _, f := range []store.EventFilter{
			{From: at(-1)}, {To: at(n + 1)}, {To: at(n / 2)}, {From: at(n / 2)}, {From: at(3), To: at(n - 3)}, {From: at(30), To: at(60)}, {From: at(-9), To: at(5)},
			{To: at(n + 1), Before: 7000, BeforeTime: at(7000)},
		} {
			f.Limit = 20
			before := read()
			events, err := r.Events(t.Context(), f)
			require.NoError(t, err)
			require.Len(t, events, 20)
			require.LessOrEqual(t, read()-before, 300, "rows read for %+v", f)
		}
	}
}

func TestEventsPagesByPosition(t *testing.T) {
	t.Parallel()
	pool := database(t)
	stored := fill(t, pool, 17)
	r := store.NewReader(pool, pool)
	for _, limit := range []int{1, 4, 17, 18} {
		var got []event.Envelope
		f := store.EventFilter{Limit: limit}
		for {
			page, err := r.Events(t.Context(), f)
			require.NoError(t, err)
			require.LessOrEqual(t, len(page), limit)
			if len(page) == 0 {
				break
			}
			got = append(got, page...)
			f.Before = page[len(page)-1].Metadata.Position
			if f.Before == 1 { // zero would mean from the newest
				break
			}
		}
		require.Equal(t, stored, got, "limit %d", limit)
	}
}

func TestProjectionsPagesByAggregate(t *testing.T) {
	t.Parallel()
	pool := activated(t, "sensor_state", "user_session")
	w := writer(t, pool)
	var want []string
	ids := []string{"a", "B", "device-10", "device-9", "ä", "日本", "z", "_"}
	for i, aggregate := range ids {
		for _, k := range []store.ProjectionKey{key(aggregate), {Type: "user_session", AggregateID: aggregate}} {
			require.NoError(t, update(t.Context(), pool, w, put(k, `{}`, int64(i+1)), k))
		}
		want = append(want, aggregate)
	}
	slices.Sort(want) // by bytes, whatever the locale of the server
	r := store.NewReader(pool, pool)
	for _, limit := range []int{1, 3, 8, 9} {
		var got []string
		after := ""
		for {
			page, err := r.Projections(t.Context(), "sensor_state", after, limit)
			require.NoError(t, err)
			require.LessOrEqual(t, len(page), limit)
			if len(page) == 0 {
				break
			}
			for _, p := range page {
				require.Equal(t, "sensor_state", p.Type)
				got = append(got, p.AggregateID)
			}
			after = page[len(page)-1].AggregateID
		}
		require.Equal(t, want, got, "limit %d", limit)
	}
}

func TestReaderFindsOneOrNone(t *testing.T) {
	t.Parallel()
	pool := activated(t)
	stored := fill(t, pool, 3)
	k := key("device-1")
	require.NoError(t, update(t.Context(), pool, writer(t, pool), put(k, `{"value":1}`, 9), k))
	r := store.NewReader(pool, pool)

	e, err := r.Event(t.Context(), stored[1].ID)
	require.NoError(t, err)
	require.Equal(t, stored[1], e)
	_, err = r.Event(t.Context(), id(999))
	require.ErrorIs(t, err, fault.ErrNotFound)
	require.NotErrorIs(t, err, fault.ErrUnavailable)

	p, err := r.Projection(t.Context(), k.Type, k.AggregateID)
	require.NoError(t, err)
	require.Equal(t, time.UTC, p.UpdatedAt.Location())
	for _, wrong := range []store.ProjectionKey{key("device-2"), {Type: "user_session", AggregateID: "device-1"}} {
		_, err = r.Projection(t.Context(), wrong.Type, wrong.AggregateID)
		require.ErrorIs(t, err, fault.ErrNotFound, wrong)
	}
	list, err := r.Projections(t.Context(), "no_such_type", "", 10)
	require.NoError(t, err)
	require.Empty(t, list)
}

// What the database can't hold is in no row: that is an answer, and not a fault of the server.
func TestReaderFindsNothingForWhatCannotBeStored(t *testing.T) {
	t.Parallel()
	pool := database(t)
	fill(t, pool, 3)
	r := store.NewReader(pool, pool)
	for _, text := range []string{"a\x00b", "\xff\xfe", "\xed\xa0\x80"} {
		_, err := r.Projection(t.Context(), "sensor_state", text)
		require.ErrorIs(t, err, fault.ErrNotFound, "%q", text)
		_, err = r.Projection(t.Context(), text, "device-1")
		require.ErrorIs(t, err, fault.ErrNotFound, "%q", text)
		list, err := r.Projections(t.Context(), "sensor_state", text, 10)
		require.NoError(t, err, "%q", text)
		require.Empty(t, list)
		for _, f := range []store.EventFilter{{AggregateID: text, Limit: 5}, {EventType: text, Limit: 5}} {
			events, err := r.Events(t.Context(), f)
			require.NoError(t, err, "%q", text)
			require.Empty(t, events)
		}
	}
	_, err := r.Events(t.Context(), store.EventFilter{Limit: -1})
	require.Error(t, err, "a bug of the caller stays an error")
}

func TestReaderReadsEachTableFromItsOwnDatabase(t *testing.T) {
	t.Parallel()
	projections, events := activated(t), database(t)
	stored := fill(t, events, 1)
	k := key("device-1")
	require.NoError(t, update(t.Context(), projections, writer(t, projections), put(k, `{}`, 1), k))
	r := store.NewReader(projections, events)
	_, err := r.Event(t.Context(), stored[0].ID)
	require.NoError(t, err)
	_, err = r.Projection(t.Context(), k.Type, k.AggregateID)
	require.NoError(t, err)
}

// calls are all questions that a reader answers.
func calls(r *store.Reader) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Projection":  func(ctx context.Context) error { _, err := r.Projection(ctx, "sensor_state", "x"); return err },
		"Projections": func(ctx context.Context) error { _, err := r.Projections(ctx, "sensor_state", "", 5); return err },
		"Event":       func(ctx context.Context) error { _, err := r.Event(ctx, id(1)); return err },
		"Events":      func(ctx context.Context) error { _, err := r.Events(ctx, store.EventFilter{Limit: 5}); return err },
	}
}

func TestReaderOfAFrozenAndOfAStoppedServerIsUnavailable(t *testing.T) {
	t.Parallel()
	pg := pgtest.Server(t)
	pool, err := store.Open(t.Context(), store.PoolConfig{URL: pg.URL(), Name: "query", MaxConns: 8})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	tables(t, pool)
	r := store.NewReader(pool, pool)
	for name, call := range calls(r) {
		err := call(t.Context())
		require.True(t, err == nil || err == fault.ErrNotFound, "%s: %v", name, err) //nolint:errorlint // it must not say more
	}

	pgtest.Freeze(t, pg)
	for name, call := range calls(r) {
		started := time.Now()
		err := call(within(t, 200*time.Millisecond))
		require.ErrorIs(t, err, fault.ErrUnavailable, name)
		require.ErrorIs(t, err, context.DeadlineExceeded, name)
		require.Less(t, time.Since(started), 5*time.Second, name)
	}
	found, err := store.Tables(within(t, 200*time.Millisecond), pool, "projections")
	require.False(t, found)
	require.ErrorIs(t, err, fault.ErrUnavailable)
	pgtest.Thaw(t, pg)
	require.Eventually(t, func() bool { // it recovers by itself
		found, err := store.Tables(t.Context(), pool, "projections")
		return found && err == nil
	}, 20*time.Second, 20*time.Millisecond)

	require.NoError(t, pg.Stop(within(t, 20*time.Second)))
	for name, call := range calls(r) {
		require.ErrorIs(t, call(within(t, 10*time.Second)), fault.ErrUnavailable, name)
	}
}

func TestReaderCutOffByTheStatementTimeoutIsUnavailable(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	pool, err := store.Open(t.Context(), store.PoolConfig{URL: url, Name: "query", StatementTimeout: 100 * time.Millisecond})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	other := pgtest.Pool(t, url)
	tables(t, other)
	tx, err := other.Begin(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, tx.Rollback(context.Background())) }()
	_, err = tx.Exec(t.Context(), `LOCK TABLE projections, event_store IN ACCESS EXCLUSIVE MODE`)
	require.NoError(t, err)
	for name, call := range calls(store.NewReader(pool, pool)) {
		require.ErrorIs(t, call(within(t, 20*time.Second)), fault.ErrUnavailable, name)
	}
}

func TestOpen(t *testing.T) {
	t.Parallel()
	_, err := store.Open(t.Context(), store.PoolConfig{URL: "postgres://me:secret@localhost:notaport/x", Name: "query"})
	require.Error(t, err)
	require.NotContains(t, err.Error(), "secret")

	pool, err := store.Open(t.Context(), store.PoolConfig{URL: pgtest.URL(t), Name: "query"})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	require.Equal(t, int32(4), pool.Config().MaxConns)
	var name, zone string
	require.NoError(t, pool.QueryRow(t.Context(), `SELECT current_setting('application_name'), current_setting('timezone')`).Scan(&name, &zone))
	require.Equal(t, "cornjacket-query", name)
	require.Equal(t, "UTC", zone)

	found, err := store.Tables(t.Context(), pool, "projections")
	require.NoError(t, err)
	require.False(t, found)
	tables(t, pool)
	found, err = store.Tables(t.Context(), pool, "projections", "event_store", "dlq")
	require.NoError(t, err)
	require.True(t, found)
	found, err = store.Tables(t.Context(), pool, "projections", "no_such_table")
	require.NoError(t, err)
	require.False(t, found)
}
