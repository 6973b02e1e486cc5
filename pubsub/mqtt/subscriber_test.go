package mqtt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/eclipse/paho.golang/paho"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/batch"
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

// gathered publishes bodies while a batch is in flight, acks that, and returns the next one, which has all of them.
func (s *testSub) gathered(p *publisher, bodies ...string) *message.Message {
	s.t.Helper()
	p.publish(topic1, "first")
	first := s.next()
	require.Equal(s.t, []string{"first"}, values(first))
	for _, body := range bodies {
		p.publish(topic1, body)
	}
	s.awaitWaiting(len(bodies))
	first.Ack()
	m := s.next()
	require.Equal(s.t, bodies, values(m))
	return m
}

func (s *testSub) session() *subscription {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.subs[s.clientID(AllTopics)]
}

// awaitWaiting returns once n messages have been received and not handed out.
func (s *testSub) awaitWaiting(n int) {
	s.t.Helper()
	in := s.session().inbox
	require.Eventually(s.t, func() bool {
		in.mu.Lock()
		defer in.mu.Unlock()
		return len(in.waiting) == n
	}, wait, time.Millisecond)
}

// collect acks batches until n messages have come.
func (s *testSub) collect(n int) (all []string) {
	s.t.Helper()
	for len(all) < n {
		m := s.next()
		all = append(all, values(m)...)
		m.Ack()
	}
	return all
}

// values returns the bodies of what is left of a batch.
func values(m *message.Message) (all []string) {
	for _, r := range batch.From(m).Rest() {
		all = append(all, string(r.Value))
	}
	return all
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
	p.publish(topic1, `{"value":1}`, "event_id", "e", "event_time", "t", "correlation_id", "c", "traceparent", "tp", "secret", "x", "event_id", "2")
	m := s.next()
	require.Equal(t, `{"value":1}`, string(m.Payload))
	require.Equal(t, message.Metadata{event.MetaEventID: "e", event.MetaEventTime: "t",
		event.MetaCorrelationID: "c", event.MetaTraceparent: "tp"}, m.Metadata)
	require.Len(t, batch.From(m).Rest(), 1)
	r := batch.From(m).Rest()[0]
	require.Equal(t, uuid.Version(7), uuid.MustParse(r.ID).Version())
	require.WithinDuration(t, time.Now(), r.At, wait)
	r.ID, r.At = "", time.Time{}
	require.Equal(t, batch.Record{Topic: topic1, Partition: -1, Offset: -1, Key: "device-001", Value: []byte(`{"value":1}`), Headers: []batch.Header{
		{Key: event.MetaEventID, Value: "e"}, {Key: event.MetaEventTime, Value: "t"}, {Key: event.MetaCorrelationID, Value: "c"}, {Key: event.MetaTraceparent, Value: "tp"},
	}}, r)
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
	require.Equal(t, "events", batch.From(m).Rest()[0].Key)
	m.Ack()
	shut(s)
	require.False(t, s.Connected())
	_, ok := <-s.ch
	require.False(t, ok)
	nothingLeft(t, b.url(), p)
}

func TestNackedIsHandedOutAgainAsTheSame(t *testing.T) {
	t.Parallel()
	b := newBroker(t, "")
	s := subscribe(t, b.url())
	s.waitUp()
	m := s.gathered(newPublisher(t, b), numbers(0, 5)...)
	before := batch.From(m).Rest()
	batch.From(m).Done(2)
	m.Nack()
	m = s.next()
	require.Equal(t, before[2:], batch.From(m).Rest(), "with the same IDs and times, without those that are done")
	m.Ack()
}

func TestBatchesAreBounded(t *testing.T) {
	t.Parallel()
	b := newBroker(t, "")
	s := subscribe(t, b.url(), func(c *Config) { c.Batch, c.Buffer = 4, 100_000 })
	s.waitUp()
	p := newPublisher(t, b)
	p.publish(topic1, "first")
	m := s.next()
	big := strings.Repeat("x", 40_000)
	for _, body := range []string{"1", "2", "3", "4", "5", big, big} {
		p.publish(topic1, body)
	}
	s.awaitWaiting(7)
	m.Ack()
	for _, want := range [][]string{numbers(1, 5), {"5", big, big}} {
		m = s.next()
		require.Equal(t, want, values(m))
		m.Ack()
	}
	p.publish(topic1, "6")
	m = s.next()
	for range 3 {
		p.publish(topic1, big) // the third has to wait for room
	}
	s.awaitWaiting(2)
	m.Ack()
	require.Equal(t, []string{big, big, big}, s.collect(3))
}

func TestAcknowledgesOnlyThePrefix(t *testing.T) {
	t.Parallel()
	b := newBroker(t, "")
	s := subscribe(t, b.url(), func(c *Config) { c.CloseTimeout = 100 * time.Millisecond })
	s.waitUp()
	p := newPublisher(t, b)
	m := s.gathered(p, numbers(0, 10)...)
	batch.From(m).Done(3)
	m.Nack()
	require.Equal(t, numbers(3, 10), values(s.next())) // and never answered
	shut(s)
	again := subscribe(t, b.url())
	require.True(t, again.waitUp().SessionPresent)
	require.Equal(t, numbers(3, 10), again.collect(7))
	shut(again)
	nothingLeft(t, b.url(), p)
}

// TestCloseWaitsForAcks acks from another goroutine while Close waits, or refuses what is left of a batch.
func TestCloseWaitsForAcks(t *testing.T) {
	t.Parallel()
	b := newBroker(t, "")
	p := newPublisher(t, b)
	for round := range 4 {
		s := subscribe(t, b.url())
		s.waitUp()
		m := s.gathered(p, numbers(0, 50)...)
		intake := s.session().intake
		go func() {
			<-intake.Done()
			if round%2 == 0 {
				m.Ack()
			} else {
				batch.From(m).Done(49)
				m.Nack()
			}
		}()
		begin := time.Now()
		shut(s)
		require.Less(t, time.Since(begin), 4*time.Second)
		if round%2 == 1 {
			s = subscribe(t, b.url())
			require.Equal(t, []string{"49"}, s.collect(1))
			shut(s)
		}
		nothingLeft(t, b.url(), p)
	}
}

func TestCloseLeavesTheRestToTheSession(t *testing.T) {
	t.Parallel()
	b := newBroker(t, "")
	s := subscribe(t, b.url(), func(c *Config) { c.Window, c.Batch = 20, 5 })
	s.waitUp()
	p := newPublisher(t, b)
	m := s.gathered(p, numbers(0, 5)...)
	for _, n := range numbers(5, 200) {
		p.publish(topic1, n)
	}
	intake := s.session().intake
	go func() {
		<-intake.Done()
		m.Ack()
	}()
	shut(s)
	p.publish(topic1, "200") // while it is away
	again := subscribe(t, b.url())
	require.Equal(t, numbers(5, 201), again.collect(196))
	shut(again)
	nothingLeft(t, b.url(), p)
}

// What waits gathers no longer than until the broker sends no more.
func TestWindowHoldsTheBrokerBack(t *testing.T) {
	t.Parallel()
	b := newBroker(t, "")
	s := subscribe(t, b.url(), func(c *Config) { c.Window = 10; c.CloseTimeout = 100 * time.Millisecond })
	s.waitUp()
	p := newPublisher(t, b)
	p.publish(topic1, "0")
	m := s.next()
	for _, n := range numbers(1, 50) {
		p.publish(topic1, n)
	}
	s.awaitWaiting(9)
	require.Never(t, func() bool {
		in := s.session().inbox
		in.mu.Lock()
		defer in.mu.Unlock()
		return len(in.waiting) > 9
	}, 200*time.Millisecond, 10*time.Millisecond)
	m.Ack()
	require.Equal(t, numbers(1, 50), s.collect(49))
}

// Whatever a handler makes of a batch whose connection is lost: what the broker repeats comes after it is settled, once,
// and as the same messages.
func TestLostConnectionRepeatsInOrderOnceTheOldIsSettled(t *testing.T) {
	t.Parallel()
	for name, settle := range map[string]func(*message.Message) bool{
		"acked":  (*message.Message).Ack,
		"nacked": (*message.Message).Nack,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBroker(t, "")
			line := newProxy(t, b.addr())
			downs := make(chan error, 10)
			s := subscribe(t, line.url(), func(c *Config) { c.OnDown = func(err error) { downs <- err } })
			s.waitUp()
			p := newPublisher(t, b)
			old := s.gathered(p, numbers(0, 6)...)
			before := batch.From(old).Rest()
			p.publish(topic1, "6")
			s.awaitWaiting(1)
			line.cut()
			require.True(t, s.waitUp().SessionPresent)
			require.Equal(t, 2, line.accepted())
			s.awaitWaiting(7)
			select {
			case <-s.ch:
				require.Fail(t, "handed out while a batch of the old connection was still in flight")
			case <-time.After(200 * time.Millisecond):
			}
			require.NoError(t, old.Context().Err())
			settle(old)
			m := s.next()
			require.Equal(t, numbers(0, 7), values(m))
			require.Equal(t, before, batch.From(m).Rest()[:6])
			m.Ack()
			require.ErrorContains(t, <-downs, "broker")
			shut(s)
			require.Empty(t, downs, "a clean stop is no lost connection")
			nothingLeft(t, b.url(), p)
		})
	}
}

func TestBrokerRestart(t *testing.T) {
	t.Parallel()
	b := newBroker(t, "")
	s := subscribe(t, b.url(), func(c *Config) { c.Batch = 4 })
	s.waitUp()
	p := newPublisher(t, b)
	m := s.gathered(p, numbers(0, 4)...)
	for _, n := range numbers(4, 10) {
		p.publish(topic1, n)
	}
	s.awaitWaiting(6)
	m.Ack()
	m = s.next() // so the PUBACKs of the ones before are written; a clean stop of the broker reads them
	require.Equal(t, numbers(4, 8), values(m))
	p.publish("elsewhere", "so that the broker has been round its loop")
	b.stop()
	require.Eventually(t, func() bool { return !s.Connected() && s.LastError() != nil }, wait, time.Millisecond)
	m.Ack() // too late: its connection is gone
	b.start()
	require.True(t, s.waitUp().SessionPresent)
	require.Equal(t, numbers(4, 10), s.collect(6))
	newPublisher(t, b).publish(topic1, "after")
	require.Equal(t, []string{"after"}, s.collect(1))
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
			mu.Lock()
			for _, r := range batch.From(m).Rest() {
				var n int
				_, _ = fmt.Sscan(string(r.Value), &n)
				seen[r.Key] = append(seen[r.Key], n)
			}
			mu.Unlock()
			m.Ack()
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
		{URL: "mqtt://h", Window: 70000}, {URL: "mqtt://h", Window: -1}, {URL: "mqtt://h", Batch: -1}, {URL: "mqtt://h", SessionExpiry: -1},
	} {
		_, err := NewSubscriber(cfg)
		require.Error(t, err, "%+v", cfg)
	}
}
