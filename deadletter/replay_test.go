package deadletter_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/internal/pgtest"
)

// counting is a consumer whose effect is one more for the letter's key; what is written "bad" it refuses, afterwards.
func counting(ctx context.Context, tx pgx.Tx, l *deadletter.Letter) (uuid.UUID, string, error) {
	e := l.EventID
	if e == uuid.Nil {
		e = id(999)
	}
	_, err := tx.Exec(ctx, `INSERT INTO effects (key, n) VALUES ($1, 1) ON CONFLICT (key) DO UPDATE SET n = effects.n + 1`, l.Key)
	if err == nil && string(l.Bytes()) == "bad" {
		err = fault.Permanent(errors.New("it is bad"))
	}
	return e, "", err
}

// bench is one service with its dead letters.
type bench struct {
	*deadletter.Store
	pool *pgxpool.Pool
	add  deadletter.Writer
}

func newBench(t *testing.T, apply deadletter.Apply) *bench {
	t.Helper()
	pool := database(t)
	return &bench{
		Store: deadletter.NewStore(pool, "eventhandler", map[string]deadletter.Apply{"eventhandler": apply}),
		pool:  pool, add: deadletter.Writer{DB: pool},
	}
}

// put adds a letter at an offset and returns it as it is kept.
func (b *bench) put(t *testing.T, offset int64, change func(l *deadletter.Entry)) deadletter.Letter {
	t.Helper()
	l := letter("eventhandler", 0, offset)
	l.FailedAt = t0.Add(time.Duration(offset) * time.Second)
	if change != nil {
		change(&l)
	}
	require.NoError(t, b.add.Add(t.Context(), l))
	list, err := b.List(t.Context(), deadletter.Filter{Topic: l.Topic, Limit: 1000})
	require.NoError(t, err)
	for _, found := range list {
		if *found.Offset == offset {
			whole, err := b.Letter(t.Context(), found.ID)
			require.NoError(t, err)
			return whole
		}
	}
	require.FailNow(t, "the letter is not listed")
	return deadletter.Letter{}
}

func (b *bench) effects(t *testing.T, aggregate string) (n int64) {
	t.Helper()
	err := b.pool.QueryRow(t.Context(), `SELECT coalesce(sum(n), 0)::bigint FROM effects WHERE key = $1`, aggregate).Scan(&n)
	require.NoError(t, err)
	return n
}

func bad(l *deadletter.Entry) { l.Payload = []byte("bad") }

func TestReplayAppliesAndMarks(t *testing.T) {
	t.Parallel()
	b := newBench(t, counting)
	l := b.put(t, 1, nil)
	got, err := b.Replay(t.Context(), l.ID, deadletter.Edit{})
	require.NoError(t, err)
	require.Equal(t, deadletter.Replayed, got.Status)
	require.NotNil(t, got.ReplayedAt)
	require.Equal(t, int64(1), b.effects(t, "device-1"))
	stored, err := b.Letter(t.Context(), l.ID)
	require.NoError(t, err)
	require.Equal(t, got, stored)

	_, err = b.Replay(t.Context(), l.ID, deadletter.Edit{})
	var not *deadletter.NotPendingError
	require.ErrorAs(t, err, &not)
	require.Equal(t, deadletter.Replayed, not.Status)
	_, err = b.Discard(t.Context(), l.ID, "")
	require.ErrorAs(t, err, &not)
	_, err = b.Replay(t.Context(), uuid.New(), deadletter.Edit{})
	require.ErrorIs(t, err, fault.ErrNotFound)
	require.Equal(t, int64(1), b.effects(t, "device-1"))
}

func TestARefusedReplayChangesNothingButTheLetter(t *testing.T) {
	t.Parallel()
	b := newBench(t, counting)
	l := b.put(t, 1, bad)
	for n := 1; n <= 2; n++ {
		_, err := b.Replay(t.Context(), l.ID, deadletter.Edit{})
		var refused *deadletter.RefusedError
		require.ErrorAs(t, err, &refused)
		require.EqualError(t, err, "it is bad")
		stored, err := b.Letter(t.Context(), l.ID)
		require.NoError(t, err)
		require.Equal(t, deadletter.Pending, stored.Status)
		require.Equal(t, 3+n, stored.RetryCount)
		require.Equal(t, "it is bad", stored.Error)
		require.NotNil(t, stored.RetriedAt)
		require.Equal(t, stored, refused.Letter)
		require.Zero(t, b.effects(t, "device-1"), "what the consumer had done is undone")
	}
	got, err := b.Replay(t.Context(), l.ID, deadletter.Edit{Payload: []byte("good"), Topic: "events"})
	require.NoError(t, err)
	stored, err := b.Letter(t.Context(), l.ID)
	require.NoError(t, err)
	require.Equal(t, got, stored)
	require.Equal(t, "bad", string(stored.Payload), "what came is kept")
	require.Equal(t, "good", string(stored.EditedBytes))
	require.Equal(t, "events", stored.EditedTopic)
	require.Equal(t, int64(1), b.effects(t, "device-1"))
}

// What the database refuses of an effect is a refusal, without the statement in its text.
func TestWhatCannotBeStoredIsRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(ctx context.Context, tx pgx.Tx, _ *deadletter.Letter) (uuid.UUID, string, error) {
		_, err := tx.Exec(ctx, `INSERT INTO effects (key) VALUES (NULL)`)
		return uuid.Nil, "", err
	})
	l := b.put(t, 1, nil)
	_, err := b.Replay(t.Context(), l.ID, deadletter.Edit{})
	var refused *deadletter.RefusedError
	require.ErrorAs(t, err, &refused)
	require.ErrorContains(t, err, "cannot be stored by the database")
	require.NotContains(t, err.Error(), "INSERT")
}

func TestDiscard(t *testing.T) {
	t.Parallel()
	b := newBench(t, counting)
	l := b.put(t, 1, nil)
	got, err := b.Discard(t.Context(), l.ID, "a test\x00")
	require.NoError(t, err)
	require.Equal(t, deadletter.Discarded, got.Status)
	stored, err := b.Letter(t.Context(), l.ID)
	require.NoError(t, err)
	require.Equal(t, got, stored)
	require.Equal(t, "a test\uFFFD", stored.Reason)
	_, err = b.Replay(t.Context(), l.ID, deadletter.Edit{})
	var not *deadletter.NotPendingError
	require.ErrorAs(t, err, &not)
	require.Equal(t, deadletter.Discarded, not.Status)
	require.Zero(t, b.effects(t, "device-1"))
}

// Two instances are asked for the same letters at the same time, many times over.
func TestConcurrentReplaysHaveOneEffect(t *testing.T) {
	t.Parallel()
	const letters, clicks = 10, 4
	url := pgtest.URL(t)
	var instances []*bench
	for range 2 {
		pool := pgtest.Pool(t, url)
		if len(instances) == 0 {
			tables(t, pool)
		}
		instances = append(instances, &bench{
			Store: deadletter.NewStore(pool, "eventhandler", map[string]deadletter.Apply{"eventhandler": counting}), pool: pool, add: deadletter.Writer{DB: pool},
		})
	}
	var ids []uuid.UUID
	for i := range letters {
		ids = append(ids, instances[0].put(t, int64(i+1), nil).ID) // all of one aggregate
	}
	var mu sync.Mutex
	var asked sync.WaitGroup
	done, late := 0, 0
	for _, id := range ids {
		for c := range clicks {
			asked.Go(func() {
				_, err := instances[c%2].Replay(context.Background(), id, deadletter.Edit{})
				var not *deadletter.NotPendingError
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					done++
				case errors.As(err, &not):
					late++
				default:
					t.Errorf("replay: %v", err)
				}
			})
		}
	}
	asked.Wait()
	require.Equal(t, letters, done)
	require.Equal(t, letters*(clicks-1), late)
	require.Equal(t, int64(letters), instances[0].effects(t, "device-1"))
}

// The connection is cut after the effect and before the mark: neither is there.
func TestACrashBetweenEffectAndMark(t *testing.T) {
	t.Parallel()
	crash := true
	b := newBench(t, func(ctx context.Context, tx pgx.Tx, l *deadletter.Letter) (uuid.UUID, string, error) {
		e, note, err := counting(ctx, tx, l)
		if crash && err == nil {
			_, err = tx.Exec(ctx, `SELECT pg_terminate_backend(pg_backend_pid())`)
		}
		return e, note, err
	})
	l := b.put(t, 1, nil)
	_, err := b.Replay(t.Context(), l.ID, deadletter.Edit{})
	require.ErrorIs(t, err, fault.ErrUnavailable)
	require.Zero(t, b.effects(t, "device-1"))
	stored, err := b.Letter(t.Context(), l.ID)
	require.NoError(t, err)
	require.Equal(t, l, stored, "as it was")
	crash = false
	_, err = b.Replay(t.Context(), l.ID, deadletter.Edit{})
	require.NoError(t, err)
	require.Equal(t, int64(1), b.effects(t, "device-1"))
}

func TestReplayedBefore(t *testing.T) {
	t.Parallel()
	b := newBench(t, counting)
	first := b.put(t, 1, nil)
	second := b.put(t, 2, func(l *deadletter.Entry) { l.EventID = first.EventID })
	find := func() (other uuid.UUID) {
		require.NoError(t, pgx.BeginFunc(t.Context(), b.pool, func(tx pgx.Tx) (err error) {
			other, err = deadletter.ReplayedBefore(t.Context(), tx, "eventhandler", first.EventID, second.ID)
			return err
		}))
		return other
	}
	require.Equal(t, uuid.Nil, find())
	_, err := b.Replay(t.Context(), first.ID, deadletter.Edit{})
	require.NoError(t, err)
	require.Equal(t, first.ID, find())
}

func TestLettersAreListedInPages(t *testing.T) {
	t.Parallel()
	b := newBench(t, counting)
	other := letter("ingestion", 0, 1)
	require.NoError(t, b.add.Add(t.Context(), other))
	for i := range 9 {
		b.put(t, int64(i), func(l *deadletter.Entry) {
			l.FailedAt = t0.Add(time.Duration(i/3) * time.Second) // three at a time
			l.Error = []string{"Too HOT to hold", "100% _wrong"}[i%2]
			l.EventType = []string{"sensor.reading", "sensor.heartbeat"}[i%2]
		})
	}
	var seen []int64
	f := deadletter.Filter{Limit: 2}
	for {
		page, err := b.List(t.Context(), f)
		require.NoError(t, err)
		if len(page) == 0 {
			break
		}
		for _, l := range page {
			seen = append(seen, *l.Offset)
		}
		last := page[len(page)-1]
		f.BeforeTime, f.BeforeID = last.FailedAt, last.ID
	}
	require.Len(t, seen, 9, "each once, and none of another service")
	for i, offset := range seen {
		require.Equal(t, int64(2-i/3), offset/3, "the newest first")
	}
	for _, c := range []struct {
		filter deadletter.Filter
		want   int64
	}{
		{deadletter.Filter{}, 9},
		{deadletter.Filter{Consumer: "eventhandler"}, 9},
		{deadletter.Filter{Consumer: "ingestion"}, 0},
		{deadletter.Filter{Error: "hot"}, 5},
		{deadletter.Filter{Error: "% _"}, 4},
		{deadletter.Filter{Error: "_____"}, 0},
		{deadletter.Filter{EventType: "sensor.heartbeat"}, 4},
		{deadletter.Filter{EventID: id(4)}, 1},
		{deadletter.Filter{Topic: "user-actions"}, 0},
		{deadletter.Filter{Status: deadletter.Replayed}, 0},
		{deadletter.Filter{From: t0.Add(time.Second), To: t0.Add(2 * time.Second)}, 3},
		{deadletter.Filter{Error: "a\x00b"}, 0},
	} {
		n, err := b.Count(t.Context(), c.filter)
		require.NoError(t, err)
		require.Equal(t, c.want, n, "%+v", c.filter)
		c.filter.Limit = 100
		list, err := b.List(t.Context(), c.filter)
		require.NoError(t, err)
		require.Len(t, list, int(c.want), "%+v", c.filter)
	}
	pending, err := b.Pending(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[string]int64{"eventhandler": 9}, pending)
}

func TestAListHasOnlyTheBeginningOfAPayload(t *testing.T) {
	t.Parallel()
	b := newBench(t, counting)
	large := make([]byte, 5000)
	whole := b.put(t, 1, func(l *deadletter.Entry) { l.Payload = large })
	require.Len(t, whole.Payload, 5000)
	list, err := b.List(t.Context(), deadletter.Filter{Limit: 10})
	require.NoError(t, err)
	require.Len(t, list[0].Payload, 1024)
	require.Equal(t, 5000, list[0].Size)
}
