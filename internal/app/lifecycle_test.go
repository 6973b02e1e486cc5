package app

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/internal/pgtest"
	"github.com/cornjacket/platform-services/routers"
)

// steps records what components do.
type steps struct {
	mu   sync.Mutex
	seen []string
}

func (s *steps) note(step string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = append(s.seen, step)
}

// recorded is a component that records its start and its stop.
type recorded struct {
	*steps
	name   string
	failed error // of the start
	stop   func(ctx context.Context) error
}

func (r recorded) Start(context.Context) error {
	r.note("start " + r.name)
	return r.failed
}

func (r recorded) Stop(ctx context.Context) error {
	r.note("stop " + r.name)
	if r.stop == nil {
		return nil
	}
	return r.stop(ctx)
}

func TestStagesStopInTheOppositeOrder(t *testing.T) {
	t.Parallel()
	var all stages
	did, bad := &steps{}, errors.New("refused")
	require.NoError(t, all.start(t.Context(), "one", recorded{steps: did, name: "a"}))
	require.NoError(t, all.start(t.Context(), "two", recorded{steps: did, name: "b", stop: func(context.Context) error { return bad }}))
	require.NoError(t, all.start(t.Context(), "nothing"))
	require.ErrorIs(t, all.start(t.Context(), "three",
		recorded{steps: did, name: "c"}, recorded{steps: did, name: "d", failed: bad}, recorded{steps: did, name: "e"}), bad)
	require.EqualError(t, all.Stop(t.Context()), "stop two: refused", "the others are stopped all the same")
	slices.Sort(did.seen[4:6]) // those of a stage stop at the same time
	require.Equal(t, []string{"start a", "start b", "start c", "start d", "stop c", "stop d", "stop b", "stop a"}, did.seen)
	require.NoError(t, all.Stop(t.Context()), "once")
	require.Len(t, did.seen, 8)
}

func TestWhatDoesNotStopInTimeIsLeftBehind(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var all stages
		did, hung := &steps{}, make(chan struct{})
		require.NoError(t, all.start(t.Context(), "one", recorded{steps: did, name: "a"}))
		require.NoError(t, all.start(t.Context(), "two",
			recorded{steps: did, name: "b", stop: func(context.Context) error { <-hung; return nil }},
			&loop{run: func(context.Context) { <-hung }}))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := all.Stop(ctx)
		require.ErrorIs(t, err, errLate)
		require.ErrorContains(t, err, "stop two: not done in time")
		synctest.Wait()
		require.Contains(t, did.seen, "stop a", "what is behind it is stopped")
		close(hung)
	})
}

func TestEveryServiceOfTheTableIsBuilt(t *testing.T) {
	t.Parallel()
	var built []string
	for _, b := range builders {
		built = append(built, b.service)
	}
	require.ElementsMatch(t, routers.ServiceNames(), built)
}

// A stop at any moment is clean; TestMain sees what is left running.
func TestStopAtAnyMoment(t *testing.T) {
	t.Parallel()
	brokers, url := bus(t).Addr(), pgtest.URL(t)
	for range 20 {
		after := rand.N(400 * time.Millisecond)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(after, cancel)
		require.NoError(t, Run(ctx, settings(t, url, brokers), quiet), "stopped after %s", after)
	}
}
