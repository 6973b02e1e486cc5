package routers

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// replays is a queue of bulk replays in memory.
type replays struct {
	mu       sync.Mutex
	waiting  []deadletter.Replay
	left     map[uuid.UUID]int
	away     int // steps that fail before one succeeds
	lost     bool
	steps    int
	released []uuid.UUID
}

func (q *replays) ClaimReplay(context.Context, uuid.UUID) (deadletter.Replay, bool, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == 0 {
		return deadletter.Replay{}, false, nil
	}
	next := q.waiting[0]
	q.waiting = q.waiting[1:]
	return next, true, nil
}

func (q *replays) RunReplay(_ context.Context, id, _ uuid.UUID) (bool, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.lost {
		return false, ErrReplayLost
	}
	if q.away > 0 {
		q.away--
		return false, errors.New("database is away")
	}
	if q.left[id] == 0 {
		return true, nil
	}
	q.left[id]--
	q.steps++
	return false, nil
}

func (q *replays) HoldReplay(_ context.Context, id, _ uuid.UUID, keep bool) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !keep {
		q.released = append(q.released, id)
	}
	return nil
}

func (q *replays) add(r deadletter.Replay, letters int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, r)
	q.left[r.ID] = letters
}

func (q *replays) done(steps int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.steps == steps
}

func runReplayer(t *testing.T, q *replays) (r *Replayer, stop func()) {
	t.Helper()
	r = (&Replayer{Queue: q, Log: quiet}).Init()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.Run(ctx)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		<-ended
	})
	t.Cleanup(stop)
	return r, stop
}

func TestReplayerRunsWhatIsThereAndWhatComes(t *testing.T) {
	t.Parallel()
	q := &replays{left: map[uuid.UUID]int{}, away: 1}
	q.add(deadletter.Replay{ID: uuid.New(), Rate: 10_000}, 3)
	q.add(deadletter.Replay{ID: uuid.New(), Rate: 10_000}, 4)
	r, _ := runReplayer(t, q)
	require.Eventually(t, func() bool { return q.done(7) }, soon, tick)
	q.add(deadletter.Replay{ID: uuid.New(), Rate: 10_000}, 5)
	r.Wake()
	require.Eventually(t, func() bool { return q.done(12) }, soon, tick)
}

func TestReplayerLetsGoWhenItIsStopped(t *testing.T) {
	t.Parallel()
	q := &replays{left: map[uuid.UUID]int{}}
	id := uuid.New()
	q.add(deadletter.Replay{ID: id, Rate: 0.01}, 3)
	_, stop := runReplayer(t, q)
	require.Eventually(t, func() bool { return q.done(1) }, soon, tick)
	stop()
	require.True(t, q.done(1), "the rate is kept")
	require.Equal(t, []uuid.UUID{id}, q.released)
}

func TestReplayerLeavesWhatIsLost(t *testing.T) {
	t.Parallel()
	q := &replays{left: map[uuid.UUID]int{}, lost: true}
	q.add(deadletter.Replay{ID: uuid.New(), Rate: 1}, 3)
	r, stop := runReplayer(t, q)
	require.Eventually(t, func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return len(q.waiting) == 0
	}, soon, tick)
	r.Wake()
	stop()
	require.True(t, q.done(0))
	require.Empty(t, q.released)
}
