package outbox_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/devstack"
	"github.com/cornjacket/platform-services/internal/pgtest"
	"github.com/cornjacket/platform-services/pubsub/outbox"
)

// TestOutages takes the database away while events come in and go out: no caller fails, nothing is lost, order and
// positions hold.
func TestOutages(t *testing.T) {
	t.Parallel()
	for name, outage := range map[string]func(t *testing.T, pg *devstack.Postgres, failing func()){
		"restart": func(t *testing.T, pg *devstack.Postgres, failing func()) {
			require.NoError(t, pg.Stop(context.Background()))
			failing()
			pgtest.Restart(t, pg)
		},
		"frozen": func(t *testing.T, pg *devstack.Postgres, failing func()) {
			pgtest.Freeze(t, pg)
			failing()
			pgtest.Thaw(t, pg)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			throughOutage(t, outage)
		})
	}
}

func throughOutage(t *testing.T, outage func(*testing.T, *devstack.Postgres, func())) {
	const workers, each, timeout = 8, 150, 500 * time.Millisecond
	pg := pgtest.Server(t)
	s := newStore(t, pg.URL())
	failed := make(chan struct{}, 1)
	p := s.publisher(outbox.PublisherConfig{Timeout: timeout, OnFlush: func(_ int, err error) {
		if err != nil {
			select {
			case failed <- struct{}{}:
			default:
			}
		}
	}})
	sub, out := s.subscribe(outbox.SubscriberConfig{Timeout: timeout, Poll: 50 * time.Millisecond, MaxBatch: 20, Window: 100})
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				if err := p.Store(context.Background(), newEvent(fmt.Sprint(w), i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	position, expect := map[string]int64{}, map[string]int{}
	var last int64
	receive := func(n int) {
		for len(position) < n {
			r := nextAcked(t, out, 1)[0]
			if before, ok := position[r.msg.UUID]; ok {
				require.Equal(t, before, r.Metadata.Position)
				continue
			}
			require.Greater(t, r.Metadata.Position, last)
			last, position[r.msg.UUID] = r.Metadata.Position, r.Metadata.Position
			require.Equal(t, fmt.Sprint(expect[r.AggregateID]), value(r.Envelope), "aggregate %s", r.AggregateID)
			expect[r.AggregateID]++
		}
	}
	receive(100)
	outage(t, pg, func() {
		wg.Go(func() { // the others may all be done
			if err := p.Store(context.Background(), newEvent("late", 0)); err != nil {
				t.Error(err)
			}
		})
		<-failed
		rest := make(chan struct{})
		var refusing sync.WaitGroup
		refusing.Go(func() { // what is in flight must not be in the way
			for {
				select {
				case m := <-out:
					m.Nack()
				case <-rest:
					return
				}
			}
		})
		require.Eventually(t, func() bool { return sub.State().Err != nil }, soon, tick)
		require.False(t, sub.State().Leading)
		close(rest)
		refusing.Wait()
	})
	receive(workers*each + 1)
	wg.Wait()
	require.NoError(t, sub.State().Err)
	require.Equal(t, workers*each+1, s.count("event_store"))
	require.Eventually(t, func() bool { return s.count("outbox") == 0 }, soon, tick)
	require.Zero(t, s.count("dlq"))
}

// A server that hangs for a while in the middle of everything has done, in the end, what it was asked before: the lock
// of the hung session must keep a new leader away until then.
func TestFrozenForLong(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes 15 s")
	}
	pg := pgtest.Server(t)
	s := newStore(t, pg.URL())
	p := s.publisher(outbox.PublisherConfig{Timeout: 4 * time.Second})
	sub, out := s.subscribe(outbox.SubscriberConfig{Timeout: 4 * time.Second, MaxBatch: 10})
	require.NoError(t, p.Store(t.Context(), newEvent("a", 0)))
	nextAcked(t, out, 1)
	pgtest.Freeze(t, pg)
	const callers = 50
	answers := make(chan error, callers)
	for i := range callers {
		go func() { answers <- p.Store(context.Background(), newEvent(fmt.Sprint(i), i)) }()
	}
	select {
	case err := <-answers:
		require.FailNow(t, "nobody may be answered", "%v", err)
	case <-time.After(15 * time.Second): // the length of the outage is what is tested
	}
	require.Error(t, sub.State().Err)
	pgtest.Thaw(t, pg)
	seen := map[string]int64{}
	for len(seen) < callers {
		r := nextAcked(t, out, 1)[0]
		if before, ok := seen[r.msg.UUID]; ok {
			require.Equal(t, before, r.Metadata.Position)
		}
		if r.Metadata.Position > 1 {
			seen[r.msg.UUID] = r.Metadata.Position
		}
	}
	for range callers {
		require.NoError(t, <-answers)
	}
	require.Equal(t, callers+1, s.count("event_store"))
}

func TestSubscriberEndsWhileTheDatabaseHangs(t *testing.T) {
	t.Parallel()
	pg := pgtest.Server(t)
	s := newStore(t, pg.URL())
	p := s.publisher(outbox.PublisherConfig{})
	sub, out := s.start(outbox.SubscriberConfig{})
	require.NoError(t, p.Ingest(t.Context(), []event.Envelope{newEvent("a", 0)}))
	r := next(t, out)
	pgtest.Freeze(t, pg)
	r.msg.Ack()
	began := time.Now()
	drain(t, sub, out)
	require.Less(t, time.Since(began), 10*time.Second)
	pgtest.Thaw(t, pg)
	again, out := s.start(outbox.SubscriberConfig{})
	requireSame(t, r.Envelope, nextAcked(t, out, 1)[0].Envelope)
	drain(t, again, out)
}

func TestSubscriberWaitsForTheDatabase(t *testing.T) {
	t.Parallel()
	pg := pgtest.Server(t)
	s := newStore(t, pg.URL())
	require.NoError(t, pg.Stop(context.Background()))
	sub, out := s.subscribe(outbox.SubscriberConfig{})
	require.Eventually(t, func() bool { return sub.State().Err != nil }, soon, tick)
	pgtest.Restart(t, pg)
	p := s.publisher(outbox.PublisherConfig{})
	require.NoError(t, p.Store(t.Context(), newEvent("a", 0)))
	nextAcked(t, out, 1)
	require.NoError(t, sub.State().Err)
}
