package routers

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/pubsub/window"
)

var place = window.Source{Topic: "sensor-events", Partition: 3, Offset: 42, Key: "device-7"}

func TestAPermanentErrorIsADeadLetterAtOnce(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	letters := &letterBox{}
	src, _ := started(t, stack(), letters, func(*message.Message) error {
		calls.Add(1)
		return fmt.Errorf("apply: %w", fault.Permanent(errors.New("value is not a number")))
	})
	raw := []byte("{\x00\xff not an event")
	id := uuid.New()
	msg := message.NewMessage(id.String(), raw)
	middleware.SetCorrelationID("c-1", msg)
	src.send(msg, place)
	require.Eventually(t, func() bool { return src.hasAcked(42) }, soon, tick)
	require.Equal(t, int32(1), calls.Load(), "no retry mends it")
	partition, offset := int32(3), int64(42)
	require.Equal(t, []deadletter.Entry{{
		Consumer: Eventhandler, EventID: id, Payload: raw, Error: "apply: value is not a number", FailedAt: t0,
		Topic: "sensor-events", Partition: &partition, Offset: &offset, Key: "device-7", CorrelationID: "c-1",
		BusTopic: "sensor-events.dlq",
	}}, letters.all())
}

func TestAPanicIsRetriedAndThenADeadLetterWithItsStack(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	letters := &letterBox{}
	src, _ := started(t, stack(), letters, func(*message.Message) error {
		calls.Add(1)
		return explode()
	})
	src.send(message.NewMessage("", marshal(t, envelope7(1))), place)
	require.Eventually(t, func() bool { return src.hasAcked(42) }, soon, tick)
	require.Equal(t, int32(4), calls.Load(), "the first attempt and RetryMax more")
	list := letters.all()
	require.Len(t, list, 1)
	require.Equal(t, 3, list[0].RetryCount)
	require.Contains(t, list[0].Error, "the roof is on fire")
	require.Contains(t, list[0].Error, "routers.explode", "the stack")
}

func explode() error { panic("the roof is on fire") }

func TestAPanicThatPassesIsNoDeadLetter(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	letters := &letterBox{}
	src, _ := started(t, stack(), letters, func(*message.Message) error {
		if calls.Add(1) < 4 {
			return explode()
		}
		return nil
	})
	src.send(message.NewMessage("1", nil), place)
	require.Eventually(t, func() bool { return src.hasAcked(42) }, soon, tick)
	require.Equal(t, int32(4), calls.Load())
	require.Empty(t, letters.all())
}

// What fails because something is away is handed out again without end.
func TestATransientErrorIsNeverADeadLetter(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	letters := &letterBox{}
	src, _ := started(t, stack(), letters, func(*message.Message) error {
		if calls.Add(1) <= 25 {
			return errors.New("connection refused")
		}
		return nil
	})
	src.send(message.NewMessage("1", nil), place)
	require.Eventually(t, func() bool { return src.hasAcked(42) }, soon, tick)
	require.Equal(t, int32(26), calls.Load())
	require.Empty(t, letters.all())
}

// A message that was given up because its source or the platform is ending is left to the source: a retry would only
// hold up the end. That none is made shows in that the message is handed out again before the first one is due.
func TestWhatIsGivenUpAtTheEndIsNeitherRetriedNorADeadLetter(t *testing.T) {
	t.Parallel()
	for _, ending := range []error{window.ErrAbandoned, window.ErrClosed, context.Canceled} {
		t.Run(ending.Error(), func(t *testing.T) {
			t.Parallel()
			var calls atomic.Int32
			letters := &letterBox{}
			s := stack()
			s.RetryInterval = time.Hour
			src, _ := started(t, s, letters, func(*message.Message) error {
				if calls.Add(1) <= 3 {
					return fmt.Errorf("store: %w", ending)
				}
				return nil
			})
			src.send(message.NewMessage("1", nil), place)
			require.Eventually(t, func() bool { return src.hasAcked(42) }, soon, tick)
			require.Equal(t, int32(4), calls.Load())
			require.Empty(t, letters.all())
		})
	}
}

func TestEachAttemptHasADeadlineOfItsOwn(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	letters := &letterBox{}
	s := stack()
	s.Timeout = 20 * time.Millisecond
	src, _ := started(t, s, letters, func(msg *message.Message) error {
		if calls.Add(1) == 1 {
			<-msg.Context().Done()
			return msg.Context().Err()
		}
		source, ok := window.SourceFrom(msg.Context())
		if !ok || source != place {
			return fault.Permanent(fmt.Errorf("the context of the retry has lost its source: %v", source))
		}
		return msg.Context().Err()
	})
	src.send(message.NewMessage("1", nil), place)
	require.Eventually(t, func() bool { return src.hasAcked(42) }, soon, tick)
	require.Equal(t, int32(2), calls.Load())
	require.Empty(t, letters.all())
}

func TestCorrelationIDIsTheSendersOrTheMessagesOwn(t *testing.T) {
	t.Parallel()
	seen := make(chan string, 2)
	letters := &letterBox{}
	src, _ := started(t, stack(), letters, func(msg *message.Message) error {
		seen <- middleware.MessageCorrelationID(msg)
		return fault.Permanent(errors.New("no"))
	})
	src.send(message.NewMessage("m-1", nil), window.Source{Topic: "a", Partition: -1, Offset: -1})
	require.Equal(t, "m-1", <-seen)
	msg := message.NewMessage("m-2", nil)
	middleware.SetCorrelationID("c-2", msg)
	src.send(msg, window.Source{Topic: "a", Partition: -1, Offset: -1})
	require.Equal(t, "c-2", <-seen)
	require.Eventually(t, func() bool { return len(letters.all()) == 2 }, soon, tick)
	for _, l := range letters.all() {
		require.Contains(t, []string{"m-1", "c-2"}, l.CorrelationID)
		require.Nil(t, l.Partition, "the source has none")
		require.Nil(t, l.Offset)
	}
}

// Metrics stand outside the poison queue and the retries: one message is one observation, and a dead letter is dealt
// with.
func TestMetricsCountAMessageOnce(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	counted := NewMetrics(registry)
	s := stack()
	s.Metrics = counted
	src, _ := started(t, s, &letterBox{}, func(*message.Message) error { return explode() })
	src.send(message.NewMessage("1", nil), place)
	require.Eventually(t, func() bool { return src.hasAcked(42) }, soon, tick)
	families, err := registry.Gather()
	require.NoError(t, err)
	seen := make(map[string]float64) // how many observations each family has with each outcome
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, label := range m.GetLabel() {
				if label.GetName() == "success" || label.GetName() == "acked" {
					seen[f.GetName()+" "+label.GetValue()] += m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
				}
			}
		}
	}
	require.Equal(t, map[string]float64{
		"handler_execution_time_seconds true": 1, "handler_execution_time_seconds false": 0,
		"subscriber_messages_received_total acked": 1, "subscriber_messages_received_total nacked": 0,
	}, seen)
}

func TestADeadLetterThatCannotBeStoredIsTriedAgainAndNotAcknowledged(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	letters := &letterBox{refuse: 3}
	src, _ := started(t, stack(), letters, func(*message.Message) error {
		calls.Add(1)
		return fault.Permanent(errors.New("no"))
	})
	src.send(message.NewMessage("1", nil), place)
	require.Eventually(t, func() bool { return letters.refusals() > 0 }, soon, tick)
	require.True(t, src.hasAcked(), "nothing yet")
	require.Eventually(t, func() bool { return src.hasAcked(42) }, soon, tick)
	require.Len(t, letters.all(), 1)
	require.Equal(t, int32(1), calls.Load())
}

func TestCloseGivesUpDeadLettersThatCannotBeStored(t *testing.T) {
	t.Parallel()
	letters := &letterBox{refuse: 1 << 30}
	s := stack()
	s.CloseTimeout = 50 * time.Millisecond
	src := newSource()
	poison := newPoison(Eventhandler, letters, time.Now, s.Log, nil)
	router, err := newRouter("test", s, nil, poison)
	require.NoError(t, err)
	router.AddConsumerHandler("test", "x", src, func(*message.Message) error { return fault.Permanent(errors.New("no")) })
	r := &Router{name: "test", router: router, letters: poison}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	src.send(message.NewMessage("1", nil), place)
	require.Eventually(t, func() bool { return letters.refusals() > 0 }, soon, tick)
	cancel()
	require.Error(t, r.Close(context.Background()), "a message was in flight")
	<-ended
	require.True(t, src.hasAcked(), "the source still has it")
	require.Empty(t, letters.all())
}

func TestARouterWhoseHandlersHaveDiedIsAnError(t *testing.T) {
	t.Parallel()
	src := newSource()
	poison := newPoison(Eventhandler, &letterBox{}, time.Now, quiet, nil)
	router, err := newRouter("test", stack(), nil, poison)
	require.NoError(t, err)
	router.AddConsumerHandler("test", "x", src, func(*message.Message) error { return nil })
	r := &Router{name: "test", router: router, letters: poison}
	ended := make(chan error, 1)
	go func() { ended <- r.Run(t.Context()) }()
	require.Eventually(t, r.Running, soon, tick)
	require.NoError(t, src.Close())
	select {
	case err := <-ended:
		require.ErrorContains(t, err, "router test: all its handlers have stopped")
	case <-time.After(soon):
		require.Fail(t, "the router goes on without handlers")
	}
	require.NoError(t, r.Close(t.Context()))
}

func TestARouterThatIsClosedBeforeItHasStarted(t *testing.T) {
	t.Parallel()
	src, s := newSource(), stack()
	s.CloseTimeout = time.Hour
	r, err := NewEventhandler(EventhandlerConfig{Stack: s, Subscriber: src, Letters: &letterBox{}, Now: time.Now})
	require.NoError(t, err)
	require.NoError(t, r.Close(t.Context()), "there is nothing to wait for")
	require.NoError(t, r.Run(t.Context()), "it does not start any more")
	require.False(t, r.Running())
}

func TestThatARouterIsClosedIsNoErrorOfItsRun(t *testing.T) {
	t.Parallel()
	src := newSource()
	r, err := NewEventhandler(EventhandlerConfig{Stack: stack(), Subscriber: src, Letters: &letterBox{}, Now: time.Now})
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- r.Run(context.Background()) }()
	require.Eventually(t, r.Running, soon, tick)
	require.NoError(t, r.Close(t.Context()))
	require.NoError(t, <-ended)
}
