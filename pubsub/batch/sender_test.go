package batch_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/pubsub/batch"
)

// send sends records in a goroutine of its own.
func send(ctx context.Context, s *batch.Sender, all []batch.Record) <-chan batch.Outcome {
	done := make(chan batch.Outcome, 1)
	go func() { done <- s.Send(ctx, all) }()
	return done
}

func TestSenderWaitsForTheAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := batch.NewSender(0)
		require.True(t, s.Oldest().IsZero())
		began := time.Now()
		done := send(t.Context(), s, records(3))
		m := <-s.Out()
		<-time.After(time.Hour)
		require.Empty(t, done)
		require.True(t, began.Equal(s.Oldest()))
		require.NoError(t, m.Context().Err())
		m.Ack() // by a handler that knows no batches
		require.Equal(t, 3, (<-done).Done)
		require.True(t, s.Oldest().IsZero())
		require.Error(t, m.Context().Err(), "it is done")
	})
}

// What is refused comes again, after pauses that grow to a bound and begin anew once something is done.
func TestSenderHandsOutAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := batch.NewSender(0)
		done := send(t.Context(), s, records(4))
		m := <-s.Out()
		again := func() time.Duration {
			refused := time.Now()
			m.Nack()
			m = <-s.Out()
			return time.Since(refused)
		}
		var pauses []time.Duration
		for range 8 {
			pauses = append(pauses, again()/time.Millisecond)
			require.Equal(t, ids(records(4)), ids(batch.From(m).Records()))
		}
		require.Equal(t, []time.Duration{50, 100, 200, 400, 800, 1600, 2000, 2000}, pauses)
		batch.From(m).Done(1)
		require.Equal(t, 50*time.Millisecond, again())
		require.Equal(t, ids(records(4))[1:], ids(batch.From(m).Records()), "what is done does not come again")
		require.Equal(t, 100*time.Millisecond, again())
		m.Ack()
		require.Equal(t, 4, (<-done).Done)
	})
}

// A handler may acknowledge a part: the rest comes at once.
func TestSenderHandsOutTheRest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := batch.NewSender(0)
		done := send(t.Context(), s, records(10))
		began := time.Now()
		m := <-s.Out()
		b := batch.From(m)
		m.SetContext(context.Background()) // as a router may
		b.Done(4)
		b.Narrow(2)
		b.Pause = 30 * time.Millisecond
		m.Ack()
		m = <-s.Out()
		require.Equal(t, ids(records(10))[4:], ids(batch.From(m).Records()))
		require.Zero(t, time.Since(began))
		m.Ack()
		outcome := <-done
		require.Equal(t, 10, outcome.Done)
		require.Equal(t, 30*time.Millisecond, outcome.Gather, "as its first part has asked for")
	})
}

// Records that are another's by now are not handed out again.
func TestSenderAsksBeforeItHandsOutAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := batch.NewSender(0)
		s.Again = func(rest []batch.Record) []batch.Record { return rest[2:] }
		done := send(t.Context(), s, records(4))
		(<-s.Out()).Nack()
		m := <-s.Out()
		require.Equal(t, ids(records(4))[2:], ids(batch.From(m).Records()))
		m.Nack()
		require.Equal(t, 4, (<-done).Done, "nothing is left")
	})
}

// When the source ends what is in flight is waited for, up to a bound.
func TestSenderEnds(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]func(t *testing.T, s *batch.Sender, end func(), done <-chan batch.Outcome){
		"nobody has taken it": func(t *testing.T, _ *batch.Sender, end func(), done <-chan batch.Outcome) {
			end()
			require.Zero(t, (<-done).Done)
		},
		"it is acknowledged in time": func(t *testing.T, s *batch.Sender, end func(), done <-chan batch.Outcome) {
			m := <-s.Out()
			end()
			<-time.After(4 * time.Second)
			require.NoError(t, m.Context().Err(), "it is not cancelled")
			m.Ack()
			require.Equal(t, 3, (<-done).Done)
		},
		"a part is acknowledged": func(t *testing.T, s *batch.Sender, end func(), done <-chan batch.Outcome) {
			m := <-s.Out()
			end()
			batch.From(m).Done(2)
			m.Ack()
			require.Equal(t, 2, (<-done).Done, "the rest is not handed out any more")
		},
		"it is refused": func(t *testing.T, s *batch.Sender, end func(), done <-chan batch.Outcome) {
			m := <-s.Out()
			end()
			m.Nack()
			require.Zero(t, (<-done).Done)
		},
		"during a pause": func(t *testing.T, s *batch.Sender, end func(), done <-chan batch.Outcome) {
			m := <-s.Out()
			batch.From(m).Done(1)
			m.Nack()
			synctest.Wait()
			end()
			require.Equal(t, 1, (<-done).Done)
		},
		"too late": func(t *testing.T, s *batch.Sender, end func(), done <-chan batch.Outcome) {
			m := <-s.Out()
			<-time.After(time.Hour)
			began := time.Now()
			end()
			require.Zero(t, (<-done).Done)
			require.Equal(t, 5*time.Second, time.Since(began))
			require.Error(t, m.Context().Err(), "it is given up")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := batch.NewSender(5 * time.Second)
				ctx, end := context.WithCancel(t.Context())
				defer end()
				done := send(ctx, s, records(3))
				synctest.Wait()
				test(t, s, end, done)
				require.True(t, s.Oldest().IsZero())
			})
		})
	}
}

// While records come in numbers the next batch gathers for a moment; what comes alone does not wait.
func TestSenderGathers(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	for name, c := range map[string]struct {
		n                 int
		took, pause, want time.Duration
	}{
		"few":                       {7, 5 * ms, 30 * ms, 0},
		"many":                      {8, 5 * ms, 0, 15 * ms},
		"many that take longer":     {8, 10 * ms, 0, 20 * ms},
		"as long as it may":         {8, 20 * ms, 0, 15 * ms},
		"longer than that":          {8, 50 * ms, 0, 0},
		"what the handler asks for": {8, 50 * ms, 12 * ms, 12 * ms},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := batch.NewSender(0)
				done := send(t.Context(), s, records(c.n))
				m := <-s.Out()
				<-time.After(c.took)
				batch.From(m).Pause = c.pause
				m.Ack()
				require.Equal(t, c.want, (<-done).Gather)
			})
		})
	}
}

func TestSleep(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		require.True(t, batch.Sleep(t.Context(), time.Minute))
		require.Equal(t, time.Minute, time.Since(began))
		ended, end := context.WithCancel(t.Context())
		end()
		require.False(t, batch.Sleep(ended, time.Minute))
		require.False(t, batch.Sleep(ended, 0))
		require.True(t, batch.Sleep(t.Context(), 0))
		require.Equal(t, time.Minute, time.Since(began))
	})
}
