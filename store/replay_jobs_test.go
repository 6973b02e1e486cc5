package store_test

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/store"
)

// runAll claims a bulk replay and runs it to its end.
func (b *bench) runAll(t *testing.T, id uuid.UUID) deadletter.Replay {
	t.Helper()
	runner := uuid.New()
	r, err := b.ClaimReplay(t.Context(), runner)
	require.NoError(t, err)
	require.Equal(t, id, r.ID)
	require.Equal(t, deadletter.ReplayRunning, r.Status)
	for done := false; !done; {
		done, err = b.RunReplay(t.Context(), id, runner)
		require.NoError(t, err)
	}
	r, err = b.BulkReplay(t.Context(), id)
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
	started, err := b.StartReplay(t.Context(), id(1), filter, 7)
	require.NoError(t, err)
	require.Equal(t, deadletter.ReplayQueued, started.Status)
	require.Equal(t, int64(5), started.Total)
	require.InDelta(t, 7, started.Rate, 0)
	filter.Status = deadletter.Pending
	require.True(t, filter.From.Equal(started.Filter.From))
	started.Filter.From, started.Filter.To = filter.From, filter.To
	require.Equal(t, filter, started.Filter)

	late := b.put(t, 100, nil)
	_, err = b.Replay(t.Context(), ids[5], deadletter.Edit{}) // somebody is faster
	require.NoError(t, err)
	ended := b.runAll(t, id(1))
	require.Equal(t, deadletter.ReplayDone, ended.Status)
	require.Equal(t, []int64{5, 3, 1, 1, 0}, []int64{ended.Total, ended.Replayed, ended.Failed, ended.Skipped, ended.Left()})
	require.Equal(t, "it is bad", ended.LastError)
	require.NotNil(t, ended.FinishedAt)
	require.Equal(t, int64(4), b.effects(t, "device-1"))
	for i, want := range []string{"discarded", "replayed", "replayed", "pending", "replayed", "replayed"} {
		l, err := b.Letter(t.Context(), ids[i])
		require.NoError(t, err)
		require.Equal(t, want, l.Status)
	}
	l, err := b.Letter(t.Context(), late.ID)
	require.NoError(t, err)
	require.Equal(t, deadletter.Pending, l.Status, "it came after the set was frozen")
	_, err = b.ClaimReplay(t.Context(), uuid.New())
	require.ErrorIs(t, err, fault.ErrNotFound, "there is nothing left to run")
}

func TestALetterWaitsInOneBulkReplay(t *testing.T) {
	t.Parallel()
	b := newBench(t, counting)
	b.put(t, 1, nil)
	first, err := b.StartReplay(t.Context(), id(1), deadletter.Filter{}, 1)
	require.NoError(t, err)
	second, err := b.StartReplay(t.Context(), id(2), deadletter.Filter{}, 1)
	require.NoError(t, err)
	require.Equal(t, int64(1), first.Total)
	require.Zero(t, second.Total)
	require.Equal(t, deadletter.ReplayDone, second.Status)
	list, err := b.BulkReplays(t.Context(), 10)
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.Equal(t, id(2), list[0].ID, "the newest first")
	_, err = b.BulkReplay(t.Context(), id(3))
	require.ErrorIs(t, err, fault.ErrNotFound)

	other := store.NewLetters(b.pool, "ingestion", map[string]store.Apply{"ingestion": counting})
	_, err = other.BulkReplay(t.Context(), id(1))
	require.ErrorIs(t, err, fault.ErrNotFound, "it is another service's")
	_, err = other.CancelReplay(t.Context(), id(1))
	require.ErrorIs(t, err, fault.ErrNotFound)
	_, err = other.ClaimReplay(t.Context(), uuid.New())
	require.ErrorIs(t, err, fault.ErrNotFound)
	require.Equal(t, int64(1), b.runAll(t, id(1)).Replayed)
}

func TestAnInterruptedBulkReplayGoesOn(t *testing.T) {
	t.Parallel()
	b := newBench(t, counting)
	for i := range 4 {
		b.put(t, int64(i), nil)
	}
	_, err := b.StartReplay(t.Context(), id(1), deadletter.Filter{}, 1)
	require.NoError(t, err)
	dead, next := uuid.New(), uuid.New()
	_, err = b.ClaimReplay(t.Context(), dead)
	require.NoError(t, err)
	_, err = b.RunReplay(t.Context(), id(1), dead)
	require.NoError(t, err)
	_, err = b.ClaimReplay(t.Context(), next)
	require.ErrorIs(t, err, fault.ErrNotFound, "it is somebody's")

	// The lease of who has crashed runs out.
	_, err = b.pool.Exec(t.Context(), `UPDATE dlq_replays SET lease_until = now() - interval '1 second'`)
	require.NoError(t, err)
	r, err := b.BulkReplay(t.Context(), id(1))
	require.NoError(t, err)
	require.Equal(t, deadletter.ReplayInterrupted, r.Status)
	require.Equal(t, int64(3), r.Left())
	r, err = b.ClaimReplay(t.Context(), next)
	require.NoError(t, err)
	require.Equal(t, deadletter.ReplayRunning, r.Status)

	// Who was only slow finds out, and has no effect.
	_, err = b.RunReplay(t.Context(), id(1), dead)
	require.ErrorIs(t, err, store.ErrLost)
	require.ErrorIs(t, b.HoldReplay(t.Context(), id(1), dead, true), store.ErrLost)
	require.Equal(t, int64(1), b.effects(t, "device-1"))

	require.NoError(t, b.HoldReplay(t.Context(), id(1), next, true))
	require.NoError(t, b.HoldReplay(t.Context(), id(1), next, false))
	r = b.runAll(t, id(1)) // which another one can claim at once
	require.Equal(t, int64(4), r.Replayed)
	require.Equal(t, int64(4), b.effects(t, "device-1"))
}

func TestACancelledBulkReplayLeavesLettersPending(t *testing.T) {
	t.Parallel()
	b := newBench(t, counting)
	for i := range 3 {
		b.put(t, int64(i), nil)
	}
	_, err := b.StartReplay(t.Context(), id(1), deadletter.Filter{}, 1)
	require.NoError(t, err)
	runner := uuid.New()
	_, err = b.ClaimReplay(t.Context(), runner)
	require.NoError(t, err)
	_, err = b.RunReplay(t.Context(), id(1), runner)
	require.NoError(t, err)
	r, err := b.CancelReplay(t.Context(), id(1))
	require.NoError(t, err)
	require.Equal(t, deadletter.ReplayCancelled, r.Status)
	require.Equal(t, int64(2), r.Left())
	_, err = b.RunReplay(t.Context(), id(1), runner)
	require.ErrorIs(t, err, store.ErrLost)
	again, err := b.CancelReplay(t.Context(), id(1))
	require.NoError(t, err)
	require.Equal(t, r, again)
	require.Equal(t, int64(1), b.effects(t, "device-1"))
	_, err = b.StartReplay(t.Context(), id(2), deadletter.Filter{}, 1)
	require.NoError(t, err)
	require.Equal(t, int64(2), b.runAll(t, id(2)).Replayed, "they can be replayed anew")
}
