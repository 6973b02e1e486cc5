package routers_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/pubsub/batch"
	"github.com/cornjacket/platform-services/routers"
)

func stack() routers.Stack {
	return routers.Stack{RetryMax: retryMax, RetryInterval: time.Millisecond, Timeout: 10 * time.Second, CloseTimeout: 5 * time.Second, Log: quiet}
}

type handle = func(ctx context.Context, b *batch.Batch) error

// around returns a source and a router with the stack around a handler.
func around(t *testing.T, s routers.Stack, p routers.Policy, letters *box, h handle) (*feed, *routers.Router) {
	t.Helper()
	f := newFeed()
	r, err := routers.NewTestRouter(s, p, f, letters, came, h)
	require.NoError(t, err)
	return f, r
}

// through runs records through a router until all are done.
func through(t *testing.T, f *feed, r *routers.Router, records ...batch.Record) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- r.Run(context.Background()) }()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	require.Equal(t, len(records), f.sender.Send(ctx, records).Done)
	require.NoError(t, r.Close(t.Context()))
	require.NoError(t, <-ended, "that it is closed is no error of its run")
	require.False(t, r.Running())
}

// numbered returns n records of a partition of the bus, whose values are their offsets.
func numbered(n int) (all []batch.Record) {
	for i := range n {
		all = append(all, batch.Record{Topic: "sensor-events", Partition: 3, Offset: int64(i), Key: "device-7", ID: fmt.Sprint("r-", i), Value: fmt.Append(nil, i)})
	}
	return all
}

func reasons(letters []deadletter.Entry) (all []string) {
	for _, l := range letters {
		all = append(all, string(l.Payload)+": "+l.Error)
	}
	return all
}

func TestAPermanentErrorIsADeadLetterAtOnce(t *testing.T) {
	t.Parallel()
	letters, calls, id := &box{}, 0, uuid.New()
	f, r := around(t, stack(), routers.Policy{}, letters, func(context.Context, *batch.Batch) error {
		calls++
		return fmt.Errorf("apply: %w", fault.Permanent(errors.New("value is not a number")))
	})
	raw := []byte("{\x00\xff not an event")
	through(t, f, r, batch.Record{
		Topic: "sensor-events", Partition: 3, Offset: 42, Key: "device-7", ID: "r-1", Value: raw,
		Headers: []batch.Header{{Key: event.MetaCorrelationID, Value: "c-1"}, {Key: event.MetaEventID, Value: id.String()}, {Key: event.MetaEventType, Value: "sensor.reading"}},
	})
	require.Equal(t, 1, calls, "no retry mends it")
	partition, offset := int32(3), int64(42)
	require.Equal(t, []deadletter.Entry{{
		Consumer: "test", EventID: id, EventType: "sensor.reading", Payload: raw, Error: "apply: value is not a number", FailedAt: came,
		Topic: "sensor-events", Partition: &partition, Offset: &offset, Key: "device-7", CorrelationID: "c-1", BusTopic: "sensor-events.dlq",
	}}, letters.letters)
}

// Each record that panics has all retries to itself, whatever those before it took.
func TestEachPanicHasItsRetries(t *testing.T) {
	t.Parallel()
	letters, alone, done := &box{}, make([]int, 4), 0
	f, r := around(t, stack(), routers.Policy{}, letters, func(_ context.Context, b *batch.Batch) error {
		if list := b.Records(); len(list) == 1 {
			i := int(list[0].Offset)
			if alone[i]++; alone[i] > retryMax && i != 3 {
				done++
				return nil
			}
		}
		explode()
		return nil
	})
	through(t, f, r, numbered(4)...)
	require.Equal(t, []int{1 + retryMax, 1 + retryMax, 1 + retryMax, 1 + retryMax}, alone)
	require.Equal(t, 3, done, "a panic that passes is no dead letter")
	require.Len(t, letters.letters, 1)
	require.Equal(t, retryMax, letters.letters[0].RetryCount)
	require.Contains(t, letters.letters[0].Error, "the roof is on fire")
	require.Contains(t, letters.letters[0].Error, "routers_test.explode", "the stack")
}

// What each policy does with a batch of which one record fails as if something were away: for how often it was tried
// alone until it was given up or went through, how often it came from its source, and what has become of it.
func TestPolicies(t *testing.T) {
	t.Parallel()
	away := errors.New("connection refused")
	for name, tc := range map[string]struct {
		policy  routers.Policy
		fails   int // how many attempts at the record, alone or not
		err     error
		letters []string
		skipped float64
	}{
		"wait":                             {routers.Policy{}, 4, away, nil, 0},
		"retries, then dead letter":        {routers.Policy{Outage: routers.DeadLetter, Retries: 2}, -1, away, []string{"5: connection refused"}, 0},
		"it comes back in time":            {routers.Policy{Outage: routers.DeadLetter, Retries: 5}, 6, away, nil, 0},
		"retries, then skipped":            {routers.Policy{Outage: routers.Skip, Retries: 2}, -1, away, nil, 1},
		"no retry":                         {routers.Policy{Outage: routers.Skip}, -1, away, nil, 1},
		"what is permanent is not skipped": {routers.Policy{Outage: routers.Skip, Retries: 2}, -1, fault.Permanent(errors.New("no")), []string{"5: no"}, 0},
		"given up as its source ends":      {routers.Policy{Outage: routers.DeadLetter, Retries: 2, Interval: time.Hour}, 2, context.Canceled, nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			registry := prometheus.NewRegistry()
			s, letters, alone, failed := stack(), &box{}, 0, 0
			s.Metrics = routers.NewMetrics(registry)
			var done []string
			f, r := around(t, s, tc.policy, letters, func(_ context.Context, b *batch.Batch) error {
				list := b.Records()
				if i := slices.IndexFunc(list, func(r batch.Record) bool { return r.Offset == 5 }); i >= 0 {
					if len(list) == 1 {
						alone++
					}
					if failed++; tc.fails < 0 || failed <= tc.fails {
						return fmt.Errorf("call: %w", tc.err)
					}
				}
				done = append(done, bodies(list)...)
				return nil
			})
			records := numbered(9)
			through(t, f, r, records...)
			want := make([]string, len(tc.letters))
			for i, l := range tc.letters {
				want[i] = l[:3] + "call: " + l[3:]
			}
			require.ElementsMatch(t, want, reasons(letters.letters))
			require.InDelta(t, tc.skipped, counted(t, registry)["cornjacket_messages_skipped_total"], 0)
			gone := len(tc.letters) + int(tc.skipped)
			require.Equal(t, bodies(slices.Delete(records, 5, 5+gone)), done, "its neighbours go through once, in order")
			if gone > 0 && !fault.IsPermanent(tc.err) {
				require.Equal(t, 1+tc.policy.Retries, alone)
			}
			for _, l := range letters.letters {
				require.Equal(t, alone-1, l.RetryCount)
			}
		})
	}
}

// While the breaker is open nothing is called, and what waits does not use up its retries.
func TestTheBreakerKeepsWhatWaits(t *testing.T) {
	t.Parallel()
	letters := &box{}
	var calls atomic.Int32
	policy := routers.Policy{Outage: routers.DeadLetter, Retries: 5, Breaker: routers.Breaker{Failures: 3, Pause: 300 * time.Millisecond}}
	f, r := around(t, stack(), policy, letters, func(context.Context, *batch.Batch) error {
		if calls.Add(1) <= 4 {
			return errors.New("503")
		}
		return nil
	})
	through(t, f, r, numbered(1)...)
	require.Empty(t, letters.letters)
	require.Equal(t, int32(5), calls.Load(), "three that open it, one that sees whether it may close, and the one that succeeds")
}

func TestEachAttemptHasADeadlineOfItsOwn(t *testing.T) {
	t.Parallel()
	letters, calls, s := &box{}, 0, stack()
	s.Timeout = 20 * time.Millisecond
	f, r := around(t, s, routers.Policy{Outage: routers.DeadLetter, Retries: 3}, letters, func(ctx context.Context, b *batch.Batch) error {
		if calls++; calls <= 2 {
			<-ctx.Done()
		}
		return ctx.Err()
	})
	through(t, f, r, numbered(1)...)
	require.Equal(t, 3, calls)
	require.Empty(t, letters.letters)
}

func TestCorrelationIDIsTheSendersOrTheRecordsOwn(t *testing.T) {
	t.Parallel()
	letters := &box{}
	records := numbered(2)
	records[1].Headers = []batch.Header{{Key: event.MetaCorrelationID, Value: "c-2"}}
	f, r := around(t, stack(), routers.Policy{}, letters, func(context.Context, *batch.Batch) error { return fault.Permanent(errors.New("no")) })
	through(t, f, r, records...)
	require.Len(t, letters.letters, 2)
	require.Equal(t, "r-0", letters.letters[0].CorrelationID)
	require.Equal(t, "c-2", letters.letters[1].CorrelationID)
}

// A message of a subscriber that knows no batches is a batch of one.
func TestAStockSubscribersMessage(t *testing.T) {
	t.Parallel()
	letters, f := &box{}, newFeed()
	f.plain = make(chan *message.Message, 1)
	r, err := routers.NewTestRouter(stack(), routers.Policy{}, f, letters, came, func(context.Context, *batch.Batch) error {
		return fault.Permanent(errors.New("no"))
	})
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- r.Run(context.Background()) }()
	m := message.NewMessage("m-1", []byte("body"))
	middleware.SetCorrelationID("c-1", m)
	f.plain <- m
	<-m.Acked()
	require.NoError(t, r.Close(t.Context()))
	require.NoError(t, <-ended)
	require.Equal(t, []string{"body: no"}, reasons(letters.letters))
	require.Equal(t, "c-1", letters.letters[0].CorrelationID)
	require.Nil(t, letters.letters[0].Partition)
	require.Nil(t, letters.letters[0].Offset)
}

// counted returns the sum of each counter and how many observations each histogram has, by their outcome.
func counted(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	require.NoError(t, err)
	seen := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, label := range m.GetLabel() {
				if label.GetName() == "success" || label.GetName() == "acked" {
					name += " " + label.GetValue()
				}
			}
			seen[name] += m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return seen
}

// Metrics stand outside the poison queue and the retries: a record counts once, whatever it took, and a dead letter is
// dealt with. One that is handed out again counts as refused, and again.
func TestMetricsCountRecordsOnce(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	s, outage := stack(), true
	s.Metrics = routers.NewMetrics(registry)
	f, r := around(t, s, routers.Policy{}, &box{}, func(_ context.Context, b *batch.Batch) error {
		if outage {
			outage = false
			return errors.New("away")
		}
		for _, r := range b.Records() {
			if r.Offset == 5 {
				explode()
			}
		}
		return nil
	})
	through(t, f, r, numbered(10)...)
	seen := counted(t, registry)
	require.InDelta(t, 10, seen["subscriber_messages_received_total acked"], 0)
	require.InDelta(t, 10, seen["subscriber_messages_received_total nacked"], 0)
	require.InDelta(t, 1, seen["handler_execution_time_seconds false"], 0)
	require.InDelta(t, 2, seen["handler_execution_time_seconds true"], 0, "the message with the dead letter, and that of what was left")
}

func TestADeadLetterThatCannotBeStoredIsTriedAgainAndNotAcknowledged(t *testing.T) {
	t.Parallel()
	letters := &box{away: 2}
	var done []string
	f, r := around(t, stack(), routers.Policy{}, letters, func(_ context.Context, b *batch.Batch) error {
		for _, r := range b.Records() {
			if r.Offset == 1 {
				return fault.Permanent(errors.New("no"))
			}
		}
		done = append(done, bodies(b.Records())...)
		return nil
	})
	through(t, f, r, numbered(3)...)
	require.Equal(t, []string{"1: no"}, reasons(letters.letters))
	require.Equal(t, []string{"0", "2"}, done)
}

// When the router closes what could not be kept is left to its source.
func TestCloseGivesUpDeadLettersThatCannotBeStored(t *testing.T) {
	t.Parallel()
	letters, tried := &box{away: 1 << 30}, make(chan struct{}, 100)
	f, r := around(t, stack(), routers.Policy{}, letters, func(context.Context, *batch.Batch) error {
		tried <- struct{}{}
		return fault.Permanent(errors.New("no"))
	})
	ended := make(chan error, 1)
	go func() { ended <- r.Run(context.Background()) }()
	ctx, cancel := context.WithCancel(t.Context())
	sent := make(chan batch.Outcome, 1)
	go func() { sent <- f.sender.Send(ctx, numbered(1)) }()
	<-tried
	<-tried
	cancel()
	require.Zero(t, (<-sent).Done)
	require.NoError(t, r.Close(t.Context()))
	require.NoError(t, <-ended)
	require.Empty(t, letters.letters)
}

func TestARouterWhoseHandlersHaveDiedIsAnError(t *testing.T) {
	t.Parallel()
	f, r := around(t, stack(), routers.Policy{}, &box{}, func(context.Context, *batch.Batch) error { return nil })
	ended := make(chan error, 1)
	go func() { ended <- r.Run(t.Context()) }()
	require.Eventually(t, r.Running, soon, every)
	require.NoError(t, f.Close())
	require.ErrorContains(t, <-ended, "router test: all its handlers have stopped")
	require.NoError(t, r.Close(t.Context()))
}

func TestARouterThatIsClosedBeforeItHasStarted(t *testing.T) {
	t.Parallel()
	s := stack()
	s.CloseTimeout = time.Hour
	f, r := around(t, s, routers.Policy{}, &box{}, func(context.Context, *batch.Batch) error { return nil })
	defer func() { require.NoError(t, f.Close()) }()
	require.NoError(t, r.Close(t.Context()), "there is nothing to wait for")
	require.NoError(t, r.Run(t.Context()), "it does not start any more")
	require.False(t, r.Running())
}
