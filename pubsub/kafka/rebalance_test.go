package kafka_test

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/pubsub/batch"
)

// Members come and go while messages flow, and one dies: each message is handled, and each member sees the messages of
// a key in order.
func TestSubscriberRebalances(t *testing.T) {
	onEach(t, apache, func(t *testing.T, newBroker newBrokerFunc) {
		b := newBroker(t, 6, "t")
		p := b.publisher()
		const keys, each = 20, 250
		c := &collector{seen: map[string]map[int]bool{}, left: keys * each}
		cfg := b.config("g")
		cfg.MaxBatch = 20
		cfg.SessionTimeout = time.Second

		first, out1 := b.subscribe(cfg, "t")
		c.consume(t, out1)
		require.Eventually(t, func() bool { return first.Assigned() == 6 }, soon, tick)
		var publishing sync.WaitGroup
		for k := range keys {
			publishing.Go(func() {
				pace := time.NewTicker(500 * time.Microsecond) // so that there are messages while members come and go
				defer pace.Stop()
				for i := range each {
					<-pace.C
					if err := p.Publish(b.named("t"), keyed(fmt.Sprint("k", k), i)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		second, out2 := b.subscribe(cfg, "t")
		c.consume(t, out2)
		require.Eventually(t, func() bool { return first.Assigned() == 3 && second.Assigned() == 3 }, soon, tick)
		third, out3 := b.subscribe(cfg, "t")
		c.consume(t, out3)
		require.Eventually(t, func() bool { return first.Assigned() == 2 && second.Assigned() == 2 && third.Assigned() == 2 }, soon, tick)
		require.NoError(t, first.Close())
		require.Eventually(t, func() bool { return second.Assigned() == 3 && third.Assigned() == 3 }, soon, tick)
		require.NoError(t, second.Close())
		require.Eventually(t, func() bool { return third.Assigned() == 6 }, soon, tick)
		publishing.Wait()
		require.Eventually(t, func() bool { return c.missing() == 0 }, soon, tick)
		require.Zero(t, c.repeated(), "rebalances settle what is in flight first")
	})
}

// collector handles the messages of several members.
type collector struct {
	mu    sync.Mutex
	seen  map[string]map[int]bool
	left  int
	twice int
}

func (c *collector) missing() int  { c.mu.Lock(); defer c.mu.Unlock(); return c.left }
func (c *collector) repeated() int { c.mu.Lock(); defer c.mu.Unlock(); return c.twice }

// consume handles what one member hands out.
func (c *collector) consume(t *testing.T, out <-chan *message.Message) {
	last := map[string]int{} // of this member
	go func() {
		for m := range out {
			for _, r := range batch.From(m).Records() {
				n, err := strconv.Atoi(string(r.Value))
				if err != nil {
					t.Error(err)
				}
				c.take(t, last, r.Key, n)
			}
			m.Ack()
		}
	}()
}

func (c *collector) take(t *testing.T, last map[string]int, key string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if before, ok := last[key]; ok && n <= before && !c.seen[key][n] {
		t.Errorf("%s: %d came after %d", key, n, before)
	}
	last[key] = n
	if c.seen[key] == nil {
		c.seen[key] = map[int]bool{}
	}
	if c.seen[key][n] {
		c.twice++
		return
	}
	c.seen[key][n] = true
	c.left--
}

func TestSubscriberWaitsForBroker(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 2, "t")
	b.stop()
	sub, out := b.subscribe(b.config("g"), "t")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	require.Error(t, sub.Ping(ctx))
	require.False(t, sub.Joined())
	b.start()
	publish(t, b.publisher(), b.named("t"), "k", 0, 10)
	expect(t, out, 0, 10)
}

func TestSubscriberSurvivesRestarts(t *testing.T) {
	onEach(t, ownApache, func(t *testing.T, newBroker newBrokerFunc) {
		b := newBroker(t, 4, "t")
		p := b.publisher()
		const keys, each = 8, 300
		c := &collector{seen: map[string]map[int]bool{}, left: keys * each}
		_, out := b.subscribe(b.config("g"), "t")
		c.consume(t, out)
		var publishing sync.WaitGroup
		for k := range keys {
			publishing.Go(func() {
				for i := range each {
					if err := p.Publish(b.named("t"), keyed(fmt.Sprint("k", k), i)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		for i, end := range []func(){b.stop, b.kill} {
			left := keys * each * (3 - i) / 4
			require.Eventually(t, func() bool { return c.missing() <= left }, soon, tick)
			end()
			b.start()
		}
		publishing.Wait()
		require.Eventually(t, func() bool { return c.missing() == 0 }, soon, tick)
	})
}

// The broker is away: closing ends all the same, in time.
func TestSubscriberClosesWithoutBroker(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1, "t")
	p := b.publisher()
	sub, out := b.subscribe(b.config("g"), "t")
	publish(t, p, b.named("t"), "k", 0, 1)
	m := next(t, out)
	b.stop()
	m.Ack()
	began := time.Now()
	require.NoError(t, sub.Close())
	require.Less(t, time.Since(began), 10*time.Second)
	b.start()
	_, out = b.subscribe(b.config("g"), "t")
	require.Equal(t, m.UUID, func() string { m := next(t, out); m.Ack(); return m.UUID }())
}

// A static member that stops does not leave, so a rebalance that is under way then waits for it, until its session has
// ended. A member that stops meanwhile does not wait for that.
func TestSubscriberStopsDuringARebalance(t *testing.T) {
	t.Parallel()
	for range 3 { // the rebalance has two phases, and the second is the one to meet
		b := newBroker(t, 6, "t")
		cfg := b.config("g")
		cfg.SessionTimeout, cfg.CloseTimeout = time.Minute, time.Minute // which a rebalance waits for
		cfg.InstanceID = "one"
		first, out1 := b.subscribe(cfg, "t")
		go handle(out1)
		require.Eventually(t, func() bool { return first.Assigned() == 6 }, soon, tick)
		cfg.InstanceID = "two"
		second, out2 := b.subscribe(cfg, "t")
		go handle(out2)
		require.Eventually(t, func() bool { return first.Assigned() < 6 }, soon, time.Millisecond)
		require.NoError(t, second.Close())
		closed := make(chan error, 1)
		go func() { closed <- first.Close() }()
		select {
		case err := <-closed:
			require.NoError(t, err)
		case <-time.After(soon):
			require.Fail(t, "it waits for the member that is gone")
			<-closed
		}
	}
}

func handle(out <-chan *message.Message) {
	for m := range out {
		m.Ack()
	}
}
