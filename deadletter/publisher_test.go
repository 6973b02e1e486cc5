package deadletter_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/pubsub/kafka"
)

// postBus is a bus that is away at first, and notes what is published.
type postBus struct {
	mu     sync.Mutex
	away   bool
	refuse string // payloads with this in them are refused for good
	broken string // and with this, each time, as if their topic were away
	calls  int
	sent   []string // payloads
}

func (b *postBus) Publish(_ string, msgs ...*message.Message) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls++
	for _, m := range msgs {
		switch payload := string(m.Payload); {
		case b.away, b.broken != "" && strings.Contains(payload, b.broken):
			return errors.New("no broker answers")
		case b.refuse != "" && strings.Contains(payload, b.refuse):
			return fault.Permanent(errors.New("message too large"))
		default:
			b.sent = append(b.sent, payload)
		}
	}
	return nil
}

func (b *postBus) Close() error { return nil }

func (b *postBus) change(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

func (b *postBus) published() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.sent)
}

// work runs a publisher until the test ends.
func work(t *testing.T, pool *pgxpool.Pool, bus message.Publisher) *deadletter.Publisher {
	t.Helper()
	p := deadletter.NewPublisher(deadletter.PublisherConfig{DB: pool, Consumers: []string{"eventhandler"}, Bus: bus, Log: quiet, Poll: time.Hour})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return p
}

// addPayloads adds a letter a payload, the first one the oldest.
func addPayloads(t *testing.T, pool *pgxpool.Pool, payloads ...string) {
	t.Helper()
	var entries []deadletter.Entry
	for i, payload := range payloads {
		entries = append(entries, deadletter.Entry{
			Consumer: "eventhandler", Payload: []byte(payload), FailedAt: t0.Add(time.Duration(i) * time.Minute), Topic: "x", BusTopic: "x.dlq",
		})
	}
	require.NoError(t, deadletter.Add(t.Context(), pool, entries...))
}

// left returns how many letters are not marked as published.
func left(t *testing.T, pool *pgxpool.Pool) (n int) {
	t.Helper()
	require.NoError(t, pool.QueryRow(t.Context(), `SELECT count(*) FROM dlq WHERE published_at IS NULL`).Scan(&n))
	return n
}

func TestPublisherWaitsForTheBus(t *testing.T) {
	t.Parallel()
	pool, b := database(t), &postBus{away: true}
	addPayloads(t, pool, "one", "two", "three")
	p := work(t, pool, b)
	require.Eventually(t, func() bool { b.mu.Lock(); defer b.mu.Unlock(); return b.calls >= 3 }, soon, tick)
	require.Equal(t, 3, left(t, pool), "none is marked")
	b.change(func() { b.away = false })
	require.Eventually(t, func() bool { return left(t, pool) == 0 }, soon, tick)
	require.Equal(t, []string{"one", "two", "three"}, b.published())

	addPayloads(t, pool, "four")
	p.Wake()
	require.Eventually(t, func() bool { return left(t, pool) == 0 }, soon, tick, "it does not wait for the poll")
	require.Equal(t, "four", b.published()[3])
}

// One letter that does not get through holds up none, and none is sent again because of it.
func TestPublisherPassesOverWhatDoesNotGetThrough(t *testing.T) {
	t.Parallel()
	pool, b := database(t), &postBus{broken: "second"}
	addPayloads(t, pool, "first", "second", "third")
	work(t, pool, b)
	require.Eventually(t, func() bool { return left(t, pool) == 1 }, soon, tick)
	require.Eventually(t, func() bool { b.mu.Lock(); defer b.mu.Unlock(); return b.calls >= 4 }, soon, tick, "it is tried again")
	require.Equal(t, []string{"first", "third"}, b.published())
	b.change(func() { b.broken = "" })
	require.Eventually(t, func() bool { return left(t, pool) == 0 }, soon, tick)
	require.Equal(t, []string{"first", "third", "second"}, b.published())
}

// A whole page that does not get through does not hold up the next one either.
func TestPublisherPassesOverAPageThatDoesNotGetThrough(t *testing.T) {
	t.Parallel()
	pool, b := database(t), &postBus{broken: "broken"}
	addPayloads(t, pool, append(slices.Repeat([]string{"broken"}, 2*deadletter.PageLetters), "whole")...)
	work(t, pool, b)
	require.Eventually(t, func() bool { return slices.Contains(b.published(), "whole") }, soon, tick)
}

// What the bus will never take stays in the table and is not tried again.
func TestPublisherPassesOverWhatTheBusRefuses(t *testing.T) {
	t.Parallel()
	pool, b := database(t), &postBus{refuse: "huge"}
	addPayloads(t, pool, "a", "huge", "b")
	work(t, pool, b)
	require.Eventually(t, func() bool { return left(t, pool) == 0 }, soon, tick)
	require.Equal(t, []string{"a", "b"}, b.published())
}

func TestPublisherPublishesMoreThanOnePage(t *testing.T) {
	t.Parallel()
	pool, b := database(t), &postBus{}
	var payloads []string
	for i := range 2*deadletter.PageLetters + 50 {
		payloads = append(payloads, fmt.Sprint(i))
	}
	addPayloads(t, pool, payloads...)
	large := strings.Repeat("x", deadletter.PageBytes/2)
	addPayloads(t, pool, "1"+large, "2"+large, "3"+large) // each page has one, because of its bytes
	work(t, pool, b)
	require.Eventually(t, func() bool { return left(t, pool) == 0 }, soon, tick)
	require.Len(t, b.published(), len(payloads)+3)
	require.Equal(t, payloads, b.published()[:len(payloads)])
}

// The publisher of the hot path publishes letters too. One that is larger than a broker takes is passed over.
func TestLettersOnTheBus(t *testing.T) {
	t.Parallel()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(2, "x.dlq"))
	require.NoError(t, err)
	defer cluster.Close()
	broker := cluster.ListenAddrs()
	bus, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: broker, Log: quiet})
	require.NoError(t, err)
	defer func() { require.NoError(t, bus.Close()) }()
	pool := database(t)
	e := letter("eventhandler", 2, 7)
	e.BusTopic = "x.dlq"
	require.NoError(t, deadletter.Add(t.Context(), pool, e))
	addPayloads(t, pool, strings.Repeat("x", 2<<20), "unreadable")
	work(t, pool, bus)
	require.Eventually(t, func() bool { return left(t, pool) == 0 }, soon, tick)

	client, err := kgo.NewClient(kgo.SeedBrokers(broker...), kgo.ConsumeTopics("x.dlq"))
	require.NoError(t, err)
	defer client.Close()
	records := map[string]map[string]string{}
	for len(records) < 2 {
		fetches := client.PollFetches(t.Context())
		require.NoError(t, fetches.Err())
		fetches.EachRecord(func(r *kgo.Record) {
			headers := map[string]string{"key": string(r.Key)}
			for _, h := range r.Headers {
				headers[h.Key] = string(h.Value)
			}
			require.NotEmpty(t, headers["dlq_id"])
			delete(headers, "dlq_id")
			records[string(r.Value)] = headers
		})
	}
	require.Equal(t, map[string]map[string]string{
		`{"a":1}`: {
			"key": "device-1", "event_id": id(7).String(), "consumer": "eventhandler", "error_message": "refused", "failed_at": "2026-02-07T10:00:00.123456Z",
			"retry_count": "3", "source_topic": "sensor-events", "source_partition": "2", "source_offset": "7", "correlation_id": "c-1",
		},
		"unreadable": {
			"key": "", "consumer": "eventhandler", "error_message": "", "failed_at": "2026-02-07T10:01:00.123456Z", "retry_count": "0", "source_topic": "x",
			"correlation_id": "",
		},
	}, records)
}
