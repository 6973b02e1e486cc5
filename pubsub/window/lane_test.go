package window_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/pubsub/window"
)

// marks collects what a lane has acknowledged to its source.
type marks struct {
	mu  sync.Mutex
	all []int
}

func (m *marks) advance(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all = append(m.all, n)
}

func (m *marks) get() []int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.all)
}

func send(t *testing.T, l *window.Lane[int], n int, key string) {
	t.Helper()
	msg := message.NewMessage(strconv.Itoa(n), []byte(strconv.Itoa(n)))
	require.True(t, l.Send(context.Background(), context.Background(), msg, n, window.Source{Topic: "t", Partition: 3, Offset: int64(n), Key: key}))
}

func ended(t *testing.T, l *window.Lane[int]) {
	t.Helper()
	select {
	case <-l.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the lane has not ended")
	}
	require.Zero(t, l.Oldest())
}

func TestLaneAdvancesOnlyThePrefix(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var m marks
		out := make(chan *message.Message, 4)
		l := window.NewLane(t.Context(), out, window.LaneConfig[int]{Size: 4, Advance: m.advance})
		require.Zero(t, l.Oldest())
		var msgs []*message.Message
		for i := range 4 {
			send(t, l, i, "k")
			msgs = append(msgs, <-out)
			src, ok := window.SourceFrom(msgs[i].Context())
			require.True(t, ok)
			require.Equal(t, window.Source{Topic: "t", Partition: 3, Offset: int64(i), Key: "k"}, src)
			require.NotNil(t, window.TurnFrom(msgs[i].Context()))
		}
		synctest.Wait()
		began := time.Now()
		require.Equal(t, began, l.Oldest())
		msgs[2].Ack()
		msgs[1].Ack()
		synctest.Wait()
		require.Empty(t, m.get(), "the first is not acknowledged")
		msgs[0].Ack()
		synctest.Wait()
		require.Equal(t, []int{0, 1, 2}, m.get())
		require.Error(t, msgs[2].Context().Err(), "its context ends with it")
		require.NoError(t, msgs[3].Context().Err())
		l.Close()
		synctest.Wait()
		select {
		case <-l.Done():
			t.Fatal("ended with a message in flight")
		default:
		}
		msgs[3].Ack()
		ended(t, l)
		require.Equal(t, []int{0, 1, 2, 3}, m.get())
	})
}

func TestLaneBoundsTheWindow(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, 2, 7} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var m marks
				out := make(chan *message.Message, 100)
				l := window.NewLane(t.Context(), out, window.LaneConfig[int]{Size: size, Advance: m.advance})
				go func() {
					for i := range 20 {
						send(t, l, i, "k")
					}
					l.Close()
				}()
				for i := range 20 {
					synctest.Wait()
					require.Len(t, out, min(max(size, 1), 20-i), "unacknowledged, the first is %d", i)
					(<-out).Ack()
				}
				ended(t, l)
				require.Len(t, m.get(), 20)
			})
		})
	}
}

func TestLaneHandsOutAgainWhatWasRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var m marks
		out := make(chan *message.Message, 10)
		l := window.NewLane(t.Context(), out, window.LaneConfig[int]{Size: 3, Advance: m.advance, NackDelay: time.Second})
		send(t, l, 0, "k")
		send(t, l, 1, "k")
		first, second := <-out, <-out
		turn := window.TurnFrom(first.Context())
		first.SetContext(context.Background()) // as middleware may
		second.Ack()
		for range 3 {
			refused := time.Now()
			first.Nack()
			first = <-out
			require.Equal(t, time.Second, time.Since(refused))
			require.Equal(t, "0", first.UUID)
			require.Equal(t, "0", string(first.Payload))
			require.Same(t, turn, window.TurnFrom(first.Context()), "its place is kept")
		}
		require.Empty(t, m.get())
		first.Ack()
		l.Close()
		ended(t, l)
		require.Equal(t, []int{0, 1}, m.get())
	})
}

func TestLaneAbandonsWhenItsContextEnds(t *testing.T) {
	t.Parallel()
	for name, leave := range map[string]func(*message.Message){
		"unanswered": func(*message.Message) {},
		"refused":    func(m *message.Message) { m.Nack() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { abandon(t, leave) })
		})
	}
}

func abandon(t *testing.T, leave func(*message.Message)) {
	var m marks
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := make(chan *message.Message, 3)
	l := window.NewLane(ctx, out, window.LaneConfig[int]{Size: 3, Advance: m.advance, NackDelay: time.Hour})
	flushed := make(chan []int, 3)
	b := window.NewBatcher(window.BatcherConfig[int]{MaxBatch: 3, Flush: func(_ context.Context, items []int) error {
		flushed <- items
		return nil
	}})
	defer closeBatcher(t, b)
	for i := range 3 {
		send(t, l, i, "k")
	}
	first, second, third := <-out, <-out, <-out
	waiting := make(chan error, 1)
	go func() { waiting <- b.Do(second.Context(), 1) }()
	leave(first)
	synctest.Wait() // second waits for first, which nobody will hand out again
	cancel()
	ended(t, l)
	require.ErrorIs(t, <-waiting, window.ErrAbandoned, "its turn will never come")
	require.ErrorIs(t, b.Do(third.Context(), 2), window.ErrAbandoned, "nor this one's")
	require.Empty(t, flushed, "nothing overtakes what was not done")
	require.NoError(t, b.Do(first.Context(), 0), "the first had its turn")
	require.Equal(t, []int{0}, <-flushed)
	require.Empty(t, m.get())
	for range 5 { // with a context of its own, and more often than the window is large
		require.False(t, l.Send(t.Context(), t.Context(), message.NewMessage("3", nil), 3, window.Source{Key: "x"}))
	}
}

func TestLaneEndsUnderASendThatNobodyReceives(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		l := window.NewLane(ctx, make(chan *message.Message), window.LaneConfig[int]{Size: 1, Advance: func(int) {}})
		sent := make(chan bool)
		go func() {
			sent <- l.Send(t.Context(), t.Context(), message.NewMessage("0", nil), 0, window.Source{Key: "k"})
		}()
		synctest.Wait()
		cancel()
		require.False(t, <-sent)
		ended(t, l)
	})
}

// A message that is given up while it waits for its turn has an owner who waits for an answer.
func TestPassAnswersWhoWaitsForTheTurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := window.NewBatcher(window.BatcherConfig[int]{MaxBatch: 1, Flush: func(context.Context, []int) error { return nil }})
		defer closeBatcher(t, b)
		turns := window.NewTurns()
		first, second := turns.Take("k"), turns.Take("k")
		waiting := make(chan error, 1)
		go func() { waiting <- b.Do(window.WithTurn(t.Context(), second), 2) }()
		synctest.Wait()
		second.Pass()
		require.ErrorIs(t, <-waiting, window.ErrAbandoned)
		require.NoError(t, b.Do(window.WithTurn(t.Context(), first), 1))
	})
}

func TestLaneSendGivesUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var m marks
		out := make(chan *message.Message)
		l := window.NewLane(t.Context(), out, window.LaneConfig[int]{Size: 1, Advance: m.advance, NackDelay: time.Second})
		ctx, cancel := context.WithCancel(t.Context())
		sent := make(chan bool)
		go func() { sent <- l.Send(ctx, t.Context(), message.NewMessage("0", nil), 0, window.Source{Key: "k"}) }()
		synctest.Wait()
		cancel()
		require.False(t, <-sent, "nobody received it")
		// Its place in the window was taken, so the lane keeps it and hands it out itself.
		require.False(t, l.Send(ctx, t.Context(), message.NewMessage("1", nil), 1, window.Source{Key: "k"}), "the window is full")
		again := <-out
		require.Equal(t, "0", again.UUID)
		again.Ack()
		l.Close()
		ended(t, l)
		require.Equal(t, []int{0}, m.get())
	})
}

// A router's worth of goroutines on one lane, some messages refused a few times, some dropped, on their way through a
// batcher: each is done once, those with the same key in order, and the source sees every mark in order.
func TestLaneAndBatcherKeepOrder(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			const total = 1500
			keys := 1 + int(seed)
			var m marks
			var o order
			out := make(chan *message.Message)
			l := window.NewLane(t.Context(), out, window.LaneConfig[int]{Size: 50, Advance: m.advance, NackDelay: time.Microsecond})
			b := window.NewBatcher(window.BatcherConfig[int]{MaxBatch: 20, MinBackoff: time.Microsecond, Flush: func(_ context.Context, items []int) error {
				if rand.IntN(10) == 0 {
					return errors.New("away")
				}
				for _, i := range items {
					o.add(strconv.Itoa(i%keys), i)
				}
				return nil
			}})
			go func() {
				for i := range total {
					send(t, l, i, strconv.Itoa(i%keys))
				}
				l.Close()
				<-l.Done()
				close(out)
			}()
			var wg sync.WaitGroup
			for msg := range out {
				wg.Go(func() {
					i, err := strconv.Atoi(string(msg.Payload))
					if err != nil {
						t.Error(err)
					}
					switch {
					case i%13 == 5: // dead-lettered
					case i%7 == 3 && rand.IntN(3) > 0:
						msg.Nack()
						return
					default:
						if err := b.Do(msg.Context(), i); err != nil {
							t.Errorf("message %d: %v", i, err)
						}
					}
					msg.Ack()
				})
			}
			wg.Wait()
			closeBatcher(t, b)
			want := make(map[string][]int)
			var all []int
			for i := range total {
				all = append(all, i)
				if i%13 != 5 {
					want[strconv.Itoa(i%keys)] = append(want[strconv.Itoa(i%keys)], i)
				}
			}
			require.Equal(t, all, m.get())
			for key, w := range want {
				require.Equal(t, w, o.of(key), "key %s", key)
			}
		})
	}
}
