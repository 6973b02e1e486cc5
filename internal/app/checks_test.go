package app

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/internal/health"
	"github.com/cornjacket/platform-services/pubsub/batch"
	"github.com/cornjacket/platform-services/routers"
)

// hand is a clock that a test moves.
type hand struct {
	mu sync.Mutex
	at time.Time
}

func newHand() *hand { return &hand{at: time.Date(2026, 2, 7, 10, 0, 0, 0, time.UTC)} }

func (h *hand) now() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.at
}

func (h *hand) pass(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.at = h.at.Add(d)
}

func probe(t *testing.T, c health.Check) error {
	t.Helper()
	_, err := c.Probe(t.Context())
	return err
}

// A full disk and a lock that others hold answer pings; that nothing is written is to be seen all the same.
func TestWritesThatFailOrHangTurnHealthRed(t *testing.T) {
	t.Parallel()
	clock, waiting := newHand(), atomic.Bool{}
	f := &flushLog{what: "outbox", log: quiet, now: clock.now}
	check := f.check(waiting.Load)
	require.Equal(t, "outbox", check.Name)
	require.NoError(t, probe(t, check), "nothing was ever written")
	clock.pass(time.Hour)
	require.NoError(t, probe(t, check), "nothing is waiting")

	waiting.Store(true)
	require.NoError(t, probe(t, check), "it has just come")
	clock.pass(4 * time.Second)
	require.ErrorContains(t, probe(t, check), "writing has not succeeded for 4s")
	f.note(10, nil)
	require.NoError(t, probe(t, check))
	clock.pass(time.Second)
	require.NoError(t, probe(t, check), "the next batch is on its way")

	f.note(10, &net.OpError{Op: "write", Net: "tcp", Err: errors.New("connection reset")})
	require.EqualError(t, probe(t, check), "writing fails: connection reset")
	f.note(10, errors.New("no space left on device"))
	require.ErrorContains(t, probe(t, check), "no space left on device")
	f.note(1, fault.Permanent(errors.New("refused")))
	require.NoError(t, probe(t, check), "the message is what was wrong")
}

type letterBox struct{ err error }

func (b *letterBox) Add(context.Context, ...deadletter.Entry) error { return b.err }

func TestDeadLettersThatCannotBeStoredTurnHealthRed(t *testing.T) {
	t.Parallel()
	clock, box := newHand(), &letterBox{}
	w := &watchedLetters{DeadLetterStore: box, now: clock.now}
	require.NoError(t, probe(t, w.check()))
	box.err = errors.New("no space left on device")
	require.ErrorIs(t, w.Add(t.Context(), deadletter.Entry{}), box.err)
	require.ErrorContains(t, probe(t, w.check()), "dead letters can't be stored: no space left on device")
	clock.pass(time.Minute)
	require.NoError(t, probe(t, w.check()), "another instance has it by now, or it would have been tried again")
	require.Error(t, w.Add(t.Context(), deadletter.Entry{}))
	require.Error(t, probe(t, w.check()))
	box.err = nil
	require.NoError(t, w.Add(t.Context(), deadletter.Entry{}))
	require.NoError(t, probe(t, w.check()))
}

// one is a subscriber that hands out one message, and ends when it is told to.
type one struct {
	out  chan *message.Message
	once sync.Once
}

func (o *one) Subscribe(context.Context, string) (<-chan *message.Message, error) { return o.out, nil }

func (o *one) Close() error {
	o.once.Do(func() { close(o.out) })
	return nil
}

// stuck is a bus that never comes back, until it is let go.
type stuck struct{ goOn chan struct{} }

func (s stuck) PublishAll(context.Context, []batch.Record) ([]batch.Refusal, error) {
	<-s.goOn
	return nil, nil
}

// A handler that is stuck past its deadline, and a router that has died, turn health red.
func TestRouterCheckSeesWhatIsStuckAndWhatHasDied(t *testing.T) {
	t.Parallel()
	const deadline = 30 * time.Second
	clock, source, bus := newHand(), &one{out: make(chan *message.Message)}, stuck{make(chan struct{})}
	r, err := routers.NewRelay(routers.RelayConfig{
		Stack:      routers.Stack{Timeout: time.Hour, CloseTimeout: soon, Log: quiet},
		Subscriber: source, Bus: bus, Letters: &letterBox{}, Now: clock.now,
	})
	require.NoError(t, err)
	var handed atomic.Pointer[time.Time]
	oldest := func() time.Time {
		if at := handed.Load(); at != nil {
			return *at
		}
		return time.Time{}
	}
	check := routerCheck(r, oldest, deadline, clock.now)
	require.ErrorContains(t, probe(t, check), "is not running", "not yet")

	ended := make(chan error, 1)
	go func() { ended <- r.Run(context.WithoutCancel(t.Context())) }()
	require.Eventually(t, func() bool { return probe(t, check) == nil }, soon, every)
	msg := message.NewMessage("1", nil)
	source.out <- msg
	at := clock.now()
	handed.Store(&at)
	clock.pass(deadline)
	require.NoError(t, probe(t, check), "it may still be done in time")
	clock.pass(time.Second)
	require.EqualError(t, probe(t, check), "is stuck: a message is in flight for 31s")
	close(bus.goOn)
	<-msg.Acked()
	handed.Store(nil)
	require.NoError(t, probe(t, check))

	require.NoError(t, source.Close())
	require.ErrorContains(t, <-ended, "all its handlers have stopped")
	require.ErrorContains(t, probe(t, check), "is not running")
	require.NoError(t, r.Close(t.Context()))
}

// fetches is a subscriber that gets on as a test says.
type fetches struct {
	since      time.Time
	err        error
	partitions int
	dropped    int64
}

func (f *fetches) Trouble() (time.Time, error) { return f.since, f.err }
func (f *fetches) Missed() (int, int64)        { return f.partitions, f.dropped }

// What can't be fetched, and what the bus has dropped unread, turns health red until it is made good.
func TestFetchesThatFailTurnHealthRed(t *testing.T) {
	t.Parallel()
	clock, sub := newHand(), &fetches{}
	check := fetchCheck(sub, clock.now)
	require.Equal(t, "fetch", check.Name)
	require.NoError(t, probe(t, check))
	sub.since, sub.err = clock.now(), errors.New("TOPIC_AUTHORIZATION_FAILED")
	clock.pass(time.Second)
	require.NoError(t, probe(t, check), "it may pass")
	clock.pass(3 * time.Second)
	require.EqualError(t, probe(t, check), "nothing can be fetched: TOPIC_AUTHORIZATION_FAILED")
	sub.err = nil
	require.NoError(t, probe(t, check))

	sub.partitions, sub.dropped = 2, 300
	details, err := check.Probe(t.Context())
	require.ErrorContains(t, err, "the bus has dropped 300 records before they were applied")
	require.Equal(t, health.Details{"partitions": 2, "dropped_records": int64(300)}, details)
	sub.dropped = 0
	require.EqualError(t, probe(t, check), "catching up with the event log")
	sub.partitions = 0
	require.NoError(t, probe(t, check))
}
