package mqtt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/eclipse/paho.golang/paho"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/window"
)

const topic1 = "devices/device-001/events/sensor.reading"

type testSub struct {
	*Subscriber
	t  testing.TB
	ch <-chan *message.Message
	up chan Granted
}

func subscribe(t testing.TB, url string, change ...func(*Config)) *testSub {
	t.Helper()
	ts := &testSub{t: t, up: make(chan Granted, 100)}
	cfg := Config{URL: url, CloseTimeout: 5 * time.Second, MaxBackoff: 200 * time.Millisecond,
		OnUp: func(g Granted) { ts.up <- g }, Log: slog.New(slog.DiscardHandler)}
	for _, c := range change {
		c(&cfg)
	}
	sub, err := NewSubscriber(cfg)
	require.NoError(t, err)
	ts.Subscriber = sub
	ts.ch, err = sub.Subscribe(context.Background(), AllTopics)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, sub.Close()) })
	return ts
}

func (s *testSub) waitUp() Granted {
	s.t.Helper()
	select {
	case g := <-s.up:
		return g
	case <-time.After(wait):
		require.FailNow(s.t, "not connected", "last error: %v", s.LastError())
		return Granted{}
	}
}

func (s *testSub) next() *message.Message {
	s.t.Helper()
	select {
	case m, ok := <-s.ch:
		require.True(s.t, ok, "channel closed")
		return m
	case <-time.After(wait):
		require.FailNow(s.t, "no message", "last error: %v", s.LastError())
		return nil
	}
}

func (s *testSub) take(n int) []*message.Message {
	s.t.Helper()
	msgs := make([]*message.Message, n)
	for i := range msgs {
		msgs[i] = s.next()
	}
	return msgs
}

func bodies(msgs []*message.Message) []string {
	out := make([]string, len(msgs))
	for i, m := range msgs {
		out[i] = string(m.Payload)
	}
	return out
}

func numbers(from, to int) []string {
	var out []string
	for i := from; i < to; i++ {
		out = append(out, fmt.Sprint(i))
	}
	return out
}

func shut(s *testSub) { require.NoError(s.t, s.Close()) }

// nothingLeft proves that the broker holds nothing: what is published now is what comes first.
func nothingLeft(t *testing.T, url string, p *publisher) {
	t.Helper()
	s := subscribe(t, url)
	require.True(t, s.waitUp().SessionPresent)
	p.publish(topic1, "marker")
	m := s.next()
	require.Equal(t, "marker", string(m.Payload))
	m.Ack()
	shut(s)
}

func TestDelivers(t *testing.T) {
	t.Parallel()
	b := newBroker(t, "")
	s := subscribe(t, b.url())
	g := s.waitUp()
	require.Equal(t, "cornjacket-ingestion", g.ClientID)
	require.False(t, g.SessionPresent)
	require.True(t, g.SharedSubscriptions)
	require.Equal(t, 30*24*time.Hour, g.SessionExpiry)
	require.Equal(t, []string{"$share/ingestion/devices/+/events/#", "$share/ingestion/events"}, g.Filters)
	require.True(t, s.Connected())
	require.NoError(t, s.LastError())

	p := newPublisher(t, b)
	p.publish(topic1, `{"value":1}`, "event_id", "e", "event_time", "t", "correlation_id", "c", "traceparent", "tp", "secret", "x")
	m := s.next()
	require.Equal(t, `{"value":1}`, string(m.Payload))
	require.Equal(t, message.Metadata{event.MetaMQTTTopic: topic1, event.MetaEventID: "e", event.MetaEventTime: "t",
		event.MetaCorrelationID: "c", event.MetaTraceparent: "tp"}, m.Metadata)
	src, ok := window.SourceFrom(m.Context())
	require.True(t, ok)
	require.Equal(t, window.Source{Topic: topic1, Partition: -1, Offset: -1, Key: "device-001"}, src)
	require.NotNil(t, window.TurnFrom(m.Context()))
	require.WithinDuration(t, time.Now(), s.Oldest(), wait)
	m.Ack()
	require.Eventually(t, func() bool { return s.Oldest().IsZero() }, wait, time.Millisecond)
	select {
	case <-m.Context().Done():
	case <-time.After(wait):
		require.Fail(t, "context of an acked message goes on")
	}

	p.publish("events", `{}`)
	m = s.next()
	src, _ = window.SourceFrom(m.Context())
	require.Equal(t, "events", src.Key)
	m.Ack()
	shut(s)
	require.False(t, s.Connected())
	_, ok = <-s.ch
	require.False(t, ok)
	nothingLeft(t, b.url(), p)
}

func TestNackedIsHandedOutAgain(t *testing.T) {
	t.Parallel()
	b := newBroker(t, "")
	s := subscribe(t, b.url())
	s.waitUp()
	newPublisher(t, b).publish(topic1, "1")
	s.next().Nack()
	m := s.next()
	require.Equal(t, "1", string(m.Payload))
	m.Ack()
}

func TestAcknowledgesOnlyThePrefix(t *testing.T) {
	t.Parallel()
	b := newBroker(t, "")
	s := subscribe(t, b.url(), func(c *Config) { c.CloseTimeout = 100 * time.Millisecond })
	s.waitUp()
	p := newPublisher(t, b)
	for _, n := range numbers(0, 10) {
		p.publish(topic1, n)
	}
	msgs := s.take(10)
	require.Equal(t, numbers(0, 10), bodies(msgs))
	for i, m := range msgs {
		if i != 3 {
			m.Ack()
		}
	}
	shut(s)
	again := subscribe(t, b.url())
	require.True(t, again.waitUp().SessionPresent)
	msgs = again.take(7)
	require.Equal(t, numbers(3, 10), bodies(msgs))
	for _, m := range msgs {
		m.Ack()
	}
	shut(again)
	nothingLeft(t, b.url(), p)
}

// TestCloseWaitsForAcks acks from another goroutine while Close waits, with one message refused at the end.
func TestCloseWaitsForAcks(t *testing.T) {
	t.Parallel()
	b := newBroker(t, "")
	p := newPublisher(t, b)
	for round := range 5 {
		s := subscribe(t, b.url())
		s.waitUp()
		for _, n := range numbers(0, 50) {
			p.publish(topic1, n)
		}
		msgs := s.take(50)
		go func() {
			for _, m := range msgs[:49] {
				m.Ack()
			}
			if round%2 == 0 {
				msgs[49].Ack()
			} else {
				msgs[49].Nack()
			}
		}()
		begin := time.Now()
		shut(s)
		require.Less(t, time.Since(begin), 4*time.Second)
		if round%2 == 1 {
			s = subscribe(t, b.url())
			m := s.next()
			require.Equal(t, "49", string(m.Payload))
			m.Ack()
			shut(s)
		}
		nothingLeft(t, b.url(), p)
	}
}

func TestCloseLeavesTheRestToTheSession(t *testing.T) {
	t.Parallel()
	b := newBroker(t, "")
	s := subscribe(t, b.url(), func(c *Config) { c.Window = 20 })
	s.waitUp()
	p := newPublisher(t, b)
	for _, n := range numbers(0, 200) {
		p.publish(topic1, n)
	}
	for _, m := range s.take(5) {
		m.Ack()
	}
	shut(s)
	p.publish(topic1, "200") // while it is away
	again := subscribe(t, b.url())
	for _, want := range numbers(5, 201) {
		m := again.next()
		require.Equal(t, want, string(m.Payload))
		m.Ack()
	}
	shut(again)
	nothingLeft(t, b.url(), p)
}

func TestWindowHoldsTheBrokerBack(t *testing.T) {
	t.Parallel()
	b := newBroker(t, "")
	s := subscribe(t, b.url(), func(c *Config) { c.Window = 10; c.CloseTimeout = 100 * time.Millisecond })
	s.waitUp()
	p := newPublisher(t, b)
	for _, n := range numbers(0, 50) {
		p.publish(topic1, n)
	}
	msgs := s.take(10)
	select {
	case <-s.ch:
		require.Fail(t, "more than the window was handed out")
	case <-time.After(200 * time.Millisecond): // nothing can be waited for
	}
	for i := range 40 {
		msgs[i].Ack()
		msgs = append(msgs, s.next())
	}
	require.Equal(t, numbers(0, 50), bodies(msgs))
}

func TestLostConnectionRepeatsInOrderOnceTheOldIsSettled(t *testing.T) {
	t.Parallel()
	b := newBroker(t, "")
	line := newProxy(t, b.addr())
	downs := make(chan error, 10)
	s := subscribe(t, line.url(), func(c *Config) { c.OnDown = func(err error) { downs <- err } })
	s.waitUp()
	p := newPublisher(t, b)
	for _, n := range numbers(0, 6) {
		p.publish(topic1, n)
	}
	old := s.take(6)
	old[0].Ack()
	require.Eventually(t, func() bool { return s.Oldest().After(time.Time{}) }, wait, time.Millisecond)
	line.cut()
	require.True(t, s.waitUp().SessionPresent)
	require.Equal(t, 2, line.accepted())
	for _, m := range old[1:4] {
		m.Ack()
	}
	old[4].Nack()
	select {
	case <-s.ch:
		require.Fail(t, "handed out while a message of the old connection was still in flight")
	case <-time.After(200 * time.Millisecond):
	}
	require.NoError(t, old[5].Context().Err())
	old[5].Ack()
	first := s.next()
	msgs := []*message.Message{first}
	for string(msgs[len(msgs)-1].Payload) != "5" {
		msgs = append(msgs, s.next())
	}
	// Whether the first PUBACK got through before the cut is a race; the rest was never acknowledged.
	require.Contains(t, []int{5, 6}, len(msgs))
	require.Equal(t, numbers(6-len(msgs), 6), bodies(msgs))
	for _, m := range msgs {
		m.Ack()
	}
	require.ErrorContains(t, <-downs, "broker")
	shut(s)
	require.Empty(t, downs, "a clean stop is no lost connection")
	nothingLeft(t, b.url(), p)
}

func TestBrokerRestart(t *testing.T) {
	t.Parallel()
	b := newBroker(t, "")
	s := subscribe(t, b.url())
	s.waitUp()
	p := newPublisher(t, b)
	for _, n := range numbers(0, 10) {
		p.publish(topic1, n)
	}
	msgs := s.take(10)
	for _, m := range msgs[:4] {
		m.Ack()
	}
	require.Eventually(t, func() bool { // the PUBACKs are written; a clean stop of the broker reads them
		s.mu.Lock()
		defer s.mu.Unlock()
		l := s.subs["cornjacket-ingestion"].link
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.sent) == 6 && len(l.puback) == 0
	}, wait, time.Millisecond)
	p.publish("elsewhere", "so that the broker has been round its loop")
	b.stop()
	require.Eventually(t, func() bool { return !s.Connected() && s.LastError() != nil }, wait, time.Millisecond)
	for _, m := range msgs[4:] {
		m.Ack() // too late: their connection is gone
	}
	b.start()
	require.True(t, s.waitUp().SessionPresent)
	msgs = s.take(6)
	require.Equal(t, numbers(4, 10), bodies(msgs))
	for _, m := range msgs {
		m.Ack()
	}
	newPublisher(t, b).publish(topic1, "after")
	m := s.next()
	require.Equal(t, "after", string(m.Payload))
	m.Ack()
}

func TestBrokerAwayAtStart(t *testing.T) {
	t.Parallel()
	b := newBroker(t, "")
	b.stop()
	s := subscribe(t, b.url())
	require.Eventually(t, func() bool { return errors.Is(s.LastError(), syscall.ECONNREFUSED) }, wait, time.Millisecond)
	require.False(t, s.Connected())
	b.start()
	s.waitUp()
	require.True(t, s.Connected())
}

func TestHungBrokerShowsWithinSeconds(t *testing.T) {
	t.Parallel()
	b := newBroker(t, "")
	line := newProxy(t, b.addr())
	s := subscribe(t, line.url())
	s.waitUp()
	require.NoError(t, b.cmd.Process.Signal(syscall.SIGSTOP))
	begin := time.Now()
	require.Eventually(t, func() bool { return !s.Connected() }, wait, 10*time.Millisecond)
	require.Less(t, time.Since(begin), 5*time.Second)
	require.ErrorContains(t, s.LastError(), "silent")
	require.NoError(t, b.cmd.Process.Signal(syscall.SIGCONT))
	require.Eventually(t, s.Connected, wait, 10*time.Millisecond)
	require.Equal(t, 1, line.accepted(), "a short hang must not cost the connection")
}

func TestRefusedSubscription(t *testing.T) {
	t.Parallel()
	b := newBroker(t, "max_qos 0")
	s := subscribe(t, b.url())
	require.Eventually(t, func() bool { return s.LastError() != nil }, wait, time.Millisecond)
	require.Eventually(t, func() bool {
		err := s.LastError()
		return err != nil && err.Error() != "not connected to the MQTT broker yet"
	}, wait, time.Millisecond)
	require.ErrorContains(t, s.LastError(), "instead of QoS 1")
	require.False(t, s.Connected())
	require.Empty(t, s.up)
}

func TestOrderPerKeyThroughCuts(t *testing.T) {
	t.Parallel()
	b := newBroker(t, "")
	line := newProxy(t, b.addr())
	s := subscribe(t, line.url(), func(c *Config) { c.Window = 50 })
	s.waitUp()
	const keys, each = 5, 200
	p := newPublisher(t, b)
	go func() {
		for i := range each {
			for k := range keys {
				msg := &paho.Publish{Topic: fmt.Sprintf("devices/d%d/events/sensor.reading", k), QoS: 1, Payload: fmt.Append(nil, i)}
				if _, err := p.client.Publish(context.Background(), msg); err != nil {
					return
				}
			}
			if i%50 == 25 {
				line.cut()
			}
		}
	}()
	var mu sync.Mutex
	seen := make(map[string][]int)
	done := func() bool {
		mu.Lock()
		defer mu.Unlock()
		for k := range keys {
			got := seen[fmt.Sprintf("d%d", k)]
			if len(got) == 0 || got[len(got)-1] != each-1 {
				return false
			}
		}
		return true
	}
	go func() {
		for m := range s.ch {
			go func() { // as the router does
				src, _ := window.SourceFrom(m.Context())
				window.TurnFrom(m.Context()).Do(func() {
					var n int
					_, _ = fmt.Sscan(string(m.Payload), &n)
					mu.Lock()
					seen[src.Key] = append(seen[src.Key], n)
					mu.Unlock()
					m.Ack()
				})
			}()
		}
	}()
	require.Eventually(t, done, wait, 10*time.Millisecond)
	mu.Lock()
	defer mu.Unlock()
	for key, got := range seen {
		next := 0
		for i, n := range got {
			require.LessOrEqual(t, n, next, "%s: gap before position %d", key, i)
			if n < next && i > 0 && n != got[i-1]+1 {
				continue // a repetition begins
			}
			next = max(next, n+1)
		}
		require.Equal(t, each, next)
	}
	require.Greater(t, line.accepted(), 1)
}

func TestSubscribeContextEnds(t *testing.T) {
	t.Parallel()
	b := newBroker(t, "")
	sub, err := NewSubscriber(Config{URL: b.url(), Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ch, err := sub.Subscribe(ctx, "events")
	require.NoError(t, err)
	cancel()
	select {
	case _, ok := <-ch:
		require.False(t, ok)
	case <-time.After(wait):
		require.Fail(t, "channel is not closed")
	}
	require.NoError(t, sub.Close())
	require.NoError(t, sub.Close())
	_, err = sub.Subscribe(context.Background(), "events")
	require.ErrorIs(t, err, ErrClosed)
}

func TestConfigErrors(t *testing.T) {
	t.Parallel()
	for _, cfg := range []Config{
		{}, {URL: "localhost:1883"}, {URL: "http://localhost"}, {URL: "mqtt://"},
		{URL: "mqtt://h", Window: 70000}, {URL: "mqtt://h", Window: -1}, {URL: "mqtt://h", SessionExpiry: -1},
	} {
		_, err := NewSubscriber(cfg)
		require.Error(t, err, "%+v", cfg)
	}
}
