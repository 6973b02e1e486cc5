package deadletter_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/internal/pgtest"
)

const fast = 10_000 // letters a second

// runAll works on bulk replays until one has ended.
func (b *bench) runAll(t *testing.T, id uuid.UUID) deadletter.Replay {
	t.Helper()
	b.run(t)
	return b.ended(t, id)
}

// run works on bulk replays until the test or stop ends it.
func (b *bench) run(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.RunReplays(ctx, quiet)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	t.Cleanup(stop)
	return stop
}

func (b *bench) ended(t *testing.T, id uuid.UUID) (r deadletter.Replay) {
	t.Helper()
	require.Eventually(t, func() bool {
		var err error
		r, err = b.BulkReplay(t.Context(), id)
		return err == nil && r.FinishedAt != nil
	}, soon, tick)
	return r
}

// turn does one turn, of the bulk replay that is expected.
func (b *bench) turn(t *testing.T, want uuid.UUID) {
	t.Helper()
	got, err := b.Turn(t.Context())
	require.NoError(t, err)
	require.Equal(t, want, got)
}

func (b *bench) start(t *testing.T, f deadletter.Filter, rate float64) deadletter.Replay {
	t.Helper()
	r, err := b.StartReplay(t.Context(), f, rate)
	require.NoError(t, err)
	return r
}

func TestABulkReplayIsAboutTheSetThatWasFrozen(t *testing.T) {
	t.Parallel()
	b := newBench(t, counting)
	var ids []uuid.UUID
	for i := range 6 {
		ids = append(ids, b.put(t, int64(i), func(l *deadletter.Entry) {
			if i == 3 {
				bad(l)
			}
		}).ID)
	}
	_, err := b.Discard(t.Context(), ids[0], "")
	require.NoError(t, err)
	filter := deadletter.Filter{Consumer: "eventhandler", Error: "REF", From: t0, To: t0.Add(time.Hour)}
	started := b.start(t, filter, 700)
	require.Equal(t, deadletter.ReplayQueued, started.Status)
	require.Equal(t, int64(5), started.Total)
	require.InDelta(t, 700, started.Rate, 0)
	filter.Status = deadletter.Pending
	require.True(t, filter.From.Equal(started.Filter.From))
	started.Filter.From, started.Filter.To = filter.From, filter.To
	require.Equal(t, filter, started.Filter)

	late := b.put(t, 100, nil)
	_, err = b.Replay(t.Context(), ids[5], deadletter.Edit{}) // somebody is faster
	require.NoError(t, err)
	ended := b.runAll(t, started.ID)
	require.Equal(t, deadletter.ReplayDone, ended.Status)
	require.Equal(t, []int64{5, 3, 1, 1, 0}, []int64{ended.Total, ended.Replayed, ended.Failed, ended.Skipped, ended.Left()})
	require.Equal(t, "it is bad", ended.LastError)
	require.Equal(t, int64(4), b.effects(t, "device-1"))
	for i, want := range []string{"discarded", "replayed", "replayed", "pending", "replayed", "replayed"} {
		l, err := b.Letter(t.Context(), ids[i])
		require.NoError(t, err)
		require.Equal(t, want, l.Status)
	}
	l, err := b.Letter(t.Context(), late.ID)
	require.NoError(t, err)
	require.Equal(t, deadletter.Pending, l.Status, "it came after the set was frozen")
}

func TestTheFilterOfABulkReplayIsKept(t *testing.T) {
	t.Parallel()
	b := newBench(t, counting)
	f := deadletter.Filter{Consumer: "eventhandler", EventID: id(3), EventType: "a.b", Topic: "sensor-events"}
	started := b.start(t, f, 1)
	f.Status = deadletter.Pending
	require.Equal(t, f, started.Filter)
	require.Equal(t, deadletter.ReplayDone, started.Status, "no letter matches")
	_, err := b.StartReplay(t.Context(), deadletter.Filter{Topic: "a\x00"}, 1)
	require.True(t, fault.IsPermanent(err), "%v", err)
}

// Letters have their turns in the order of their sources, whatever the order in which they failed.
func TestABulkReplayKeepsTheOrder(t *testing.T) {
	t.Parallel()
	var order []int64
	b := newBench(t, func(_ context.Context, _ pgx.Tx, l *deadletter.Letter) (uuid.UUID, string, error) {
		order = append(order, *l.Offset)
		return l.EventID, "", nil
	})
	var want []int64
	for i := range 12 {
		b.put(t, int64(i), func(l *deadletter.Entry) { l.FailedAt = t0.Add(-time.Duration(i) * time.Minute) })
		want = append(want, int64(i))
	}
	r := b.start(t, deadletter.Filter{}, fast)
	for range 12 {
		b.turn(t, r.ID)
	}
	require.Equal(t, want, order)
	b.turn(t, uuid.Nil)
	require.Equal(t, deadletter.ReplayDone, b.ended(t, r.ID).Status, "with the last letter")
}

func TestALetterWaitsInOneBulkReplay(t *testing.T) {
	t.Parallel()
	b := newBench(t, counting)
	b.put(t, 1, nil)
	first := b.start(t, deadletter.Filter{}, fast)
	second := b.start(t, deadletter.Filter{}, fast)
	require.Equal(t, int64(1), first.Total)
	require.Zero(t, second.Total)
	require.Equal(t, deadletter.ReplayDone, second.Status)
	list, err := b.BulkReplays(t.Context(), 10)
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.Equal(t, second.ID, list[0].ID, "the newest first")
	_, err = b.BulkReplay(t.Context(), id(3))
	require.ErrorIs(t, err, fault.ErrNotFound)

	other := &bench{Store: deadletter.NewStore(b.pool, "ingestion", map[string]deadletter.Apply{"ingestion": counting})}
	_, err = other.BulkReplay(t.Context(), first.ID)
	require.ErrorIs(t, err, fault.ErrNotFound, "it is another service's")
	_, err = other.CancelReplay(t.Context(), first.ID)
	require.ErrorIs(t, err, fault.ErrNotFound)
	other.turn(t, uuid.Nil)
	require.Equal(t, int64(1), b.runAll(t, first.ID).Replayed)
}

// What is in its turn when its instance is killed has no effect, and any other instance goes on.
func TestAnInterruptedBulkReplayGoesOn(t *testing.T) {
	t.Parallel()
	crash := false
	b := newBench(t, func(ctx context.Context, tx pgx.Tx, l *deadletter.Letter) (uuid.UUID, string, error) {
		e, note, err := counting(ctx, tx, l)
		if crash && err == nil {
			_, err = tx.Exec(ctx, `SELECT pg_terminate_backend(pg_backend_pid())`)
		}
		return e, note, err
	})
	for i := range 4 {
		b.put(t, int64(i), nil)
	}
	r := b.start(t, deadletter.Filter{}, fast)
	b.turn(t, r.ID)
	crash = true
	_, err := b.Turn(t.Context())
	require.ErrorIs(t, err, fault.ErrUnavailable)
	require.Equal(t, int64(1), b.effects(t, "device-1"))
	r, err = b.BulkReplay(t.Context(), r.ID)
	require.NoError(t, err)
	require.Equal(t, deadletter.ReplayRunning, r.Status)
	require.Equal(t, int64(3), r.Left())

	_, err = b.pool.Exec(t.Context(), `UPDATE dlq_replays SET next_at = now() - interval '11 seconds'`)
	require.NoError(t, err)
	r, err = b.BulkReplay(t.Context(), r.ID)
	require.NoError(t, err)
	require.Equal(t, deadletter.ReplayInterrupted, r.Status)

	next := &bench{Store: deadletter.NewStore(b.pool, "eventhandler", map[string]deadletter.Apply{"eventhandler": counting}), pool: b.pool}
	require.Equal(t, int64(4), next.runAll(t, r.ID).Replayed)
	require.Equal(t, int64(4), b.effects(t, "device-1"))
}

// While an instance is in a turn, also for long, no other one has a turn of the same bulk replay, and none waits.
func TestATurnIsOneInstances(t *testing.T) {
	t.Parallel()
	entered, leave := make(chan struct{}), make(chan struct{})
	b := newBench(t, func(ctx context.Context, tx pgx.Tx, l *deadletter.Letter) (uuid.UUID, string, error) {
		if *l.Offset == 0 {
			close(entered)
			<-leave
		}
		return counting(ctx, tx, l)
	})
	b.put(t, 0, nil)
	b.put(t, 1, nil)
	first := b.start(t, deadletter.Filter{From: t0.Add(time.Second)}, fast)
	second := b.start(t, deadletter.Filter{}, fast)
	b.turn(t, first.ID)
	turned := make(chan error, 1)
	go func() {
		_, err := b.Turn(context.Background())
		turned <- err
	}()
	<-entered
	b.turn(t, uuid.Nil)
	close(leave)
	require.NoError(t, <-turned)
	require.Equal(t, deadletter.ReplayDone, b.ended(t, second.ID).Status)
	require.Equal(t, int64(2), b.effects(t, "device-1"))
}

// Several instances that work on several bulk replays at once have each letter's effect once.
func TestBulkReplaysOfSeveralInstances(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	first := pgtest.Pool(t, url)
	tables(t, first)
	var instances []*bench
	for i := range 3 {
		pool := first
		if i > 0 {
			pool = pgtest.Pool(t, url)
		}
		instances = append(instances, &bench{
			Store: deadletter.NewStore(pool, "eventhandler", map[string]deadletter.Apply{"eventhandler": counting}), pool: pool, add: deadletter.Writer{DB: pool},
		})
	}
	for i := range 60 {
		instances[0].put(t, int64(i), nil)
	}
	var replays []uuid.UUID
	for i := range 3 {
		f := deadletter.Filter{From: t0.Add(time.Duration(20*i) * time.Second), To: t0.Add(time.Duration(20*i+20) * time.Second)}
		replays = append(replays, instances[i].start(t, f, fast).ID)
	}
	for _, instance := range instances {
		instance.run(t)
	}
	for _, id := range replays {
		require.Equal(t, int64(20), instances[0].ended(t, id).Replayed)
	}
	require.Equal(t, int64(60), instances[0].effects(t, "device-1"))
}

func TestTheRateIsKept(t *testing.T) {
	t.Parallel()
	b := newBench(t, counting)
	for i := range 3 {
		b.put(t, int64(i), nil)
	}
	r := b.start(t, deadletter.Filter{}, 0.01)
	stop := b.run(t)
	require.Eventually(t, func() bool { return b.effects(t, "device-1") == 1 }, soon, tick)
	stop()
	b.turn(t, uuid.Nil)
	var wait float64
	require.NoError(t, b.pool.QueryRow(t.Context(), `SELECT extract(epoch FROM next_at - created_at) FROM dlq_replays`).Scan(&wait))
	require.Greater(t, wait, 99.0, "a letter in 100 s")
	// One that was late by more than a second does not catch up.
	_, err := b.pool.Exec(t.Context(), `UPDATE dlq_replays SET next_at = now() - interval '1 hour'`)
	require.NoError(t, err)
	b.turn(t, r.ID)
	b.turn(t, uuid.Nil)
}

// A bulk replay that can't go on goes on when it can, and is not counted meanwhile.
func TestABulkReplayOutlastsAnOutage(t *testing.T) {
	t.Parallel()
	var away sync.Map
	away.Store("away", true)
	b := newBench(t, func(ctx context.Context, tx pgx.Tx, l *deadletter.Letter) (uuid.UUID, string, error) {
		if _, ok := away.Load("away"); ok {
			return uuid.Nil, "", errors.New("away")
		}
		return counting(ctx, tx, l)
	})
	b.put(t, 1, nil)
	r := b.start(t, deadletter.Filter{}, fast)
	_, err := b.Turn(t.Context())
	require.ErrorContains(t, err, "away")
	b.run(t)
	away.Delete("away")
	require.Equal(t, int64(1), b.ended(t, r.ID).Replayed)
}

func TestACancelledBulkReplayLeavesLettersPending(t *testing.T) {
	t.Parallel()
	b := newBench(t, counting)
	for i := range 3 {
		b.put(t, int64(i), nil)
	}
	started := b.start(t, deadletter.Filter{}, fast)
	b.turn(t, started.ID)
	r, err := b.CancelReplay(t.Context(), started.ID)
	require.NoError(t, err)
	require.Equal(t, deadletter.ReplayCancelled, r.Status)
	require.Equal(t, int64(2), r.Left())
	b.turn(t, uuid.Nil)
	again, err := b.CancelReplay(t.Context(), started.ID)
	require.NoError(t, err)
	require.Equal(t, r, again)
	require.Equal(t, int64(1), b.effects(t, "device-1"))
	b.run(t)
	r = b.start(t, deadletter.Filter{}, fast)
	require.Equal(t, int64(2), b.ended(t, r.ID).Replayed, "they can be replayed anew, and at once")
	done, err := b.CancelReplay(t.Context(), r.ID)
	require.NoError(t, err)
	require.Equal(t, deadletter.ReplayDone, done.Status)
}

// What has ended long ago goes when the next one begins.
func TestOldBulkReplaysAreForgotten(t *testing.T) {
	t.Parallel()
	b := newBench(t, counting)
	old := b.start(t, deadletter.Filter{}, 1)
	_, err := b.pool.Exec(t.Context(), `UPDATE dlq_replays SET finished_at = now() - interval '31 days'`)
	require.NoError(t, err)
	b.start(t, deadletter.Filter{}, 1)
	_, err = b.BulkReplay(t.Context(), old.ID)
	require.ErrorIs(t, err, fault.ErrNotFound)
}
