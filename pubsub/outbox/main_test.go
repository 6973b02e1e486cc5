package outbox_test

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/pgtest"
	"github.com/cornjacket/platform-services/migrations"
	"github.com/cornjacket/platform-services/pubsub/batch"
	"github.com/cornjacket/platform-services/pubsub/outbox"
)

const (
	soon = 20 * time.Second
	tick = 2 * time.Millisecond
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, pgtest.IgnoreServer()) }

// store is a database with the tables of ingestion.
type store struct {
	t    *testing.T
	pool *pgxpool.Pool
	db   *sql.DB
}

// newStore migrates a database; an empty url means a fresh one.
func newStore(t *testing.T, url string) *store {
	t.Helper()
	s := open(t, url)
	_, err := migrations.Up(t.Context(), s.db, "ingestion")
	require.NoError(t, err)
	return s
}

func open(t *testing.T, url string) *store {
	t.Helper()
	pool := pgtest.Pool(t, url)
	db := stdlib.OpenDBFromPool(pool)
	t.Cleanup(func() { _ = db.Close() }) // it only wraps the pool
	return &store{t: t, pool: pool, db: db}
}

func (s *store) publisher(cfg outbox.PublisherConfig) publisher {
	s.t.Helper()
	p := publisher{outbox.NewPublisher(s.pool, cfg)}
	s.t.Cleanup(func() { require.NoError(s.t, p.Close()) })
	return p
}

type publisher struct{ *outbox.Publisher }

// Store stores one event.
func (p publisher) Store(ctx context.Context, e event.Envelope) error {
	return p.Publisher.Store(ctx, []event.Envelope{e})
}

// subscribe starts a relay that ends with the test at the latest.
func (s *store) subscribe(cfg outbox.SubscriberConfig) (*outbox.Subscriber, <-chan *message.Message) {
	s.t.Helper()
	sub, out := s.start(cfg)
	s.t.Cleanup(func() { drain(s.t, sub, out) })
	return sub, out
}

// start starts a relay whose batches are handed out event by event.
func (s *store) start(cfg outbox.SubscriberConfig) (*outbox.Subscriber, <-chan *message.Message) {
	s.t.Helper()
	sub, out := s.batches(cfg)
	return sub, single(out)
}

// batches starts a relay.
func (s *store) batches(cfg outbox.SubscriberConfig) (*outbox.Subscriber, <-chan *message.Message) {
	s.t.Helper()
	sub := outbox.NewSubscriber(s.pool, cfg)
	out, err := sub.Subscribe(s.t.Context(), outbox.Topic)
	require.NoError(s.t, err)
	return sub, out
}

// single hands out batches as messages of one event each, one after the other.
func single(in <-chan *message.Message) <-chan *message.Message {
	out := make(chan *message.Message)
	go func() {
		defer close(out)
		for m := range in {
			b := batch.From(m)
			for len(b.Rest()) > 0 && one(batch.New(m.Context(), b.Rest()[:1]), out) {
				b.Done(1)
			}
			if len(b.Rest()) > 0 {
				m.Nack()
			} else {
				m.Ack()
			}
		}
	}()
	return out
}

// one hands out a message and reports whether it was acknowledged.
func one(m *message.Message, out chan<- *message.Message) bool {
	select {
	case out <- m:
	case <-m.Context().Done():
		return false
	}
	select {
	case <-m.Acked():
		return true
	case <-m.Nacked():
	case <-m.Context().Done():
	}
	return false
}

// nextBatch receives a batch.
func nextBatch(t *testing.T, out <-chan *message.Message) (*message.Message, []batch.Record) {
	t.Helper()
	select {
	case m, ok := <-out:
		require.True(t, ok, "the subscription has ended")
		return m, batch.From(m).Records()
	case <-time.After(soon):
		require.FailNow(t, "no message")
		return nil, nil
	}
}

// drain closes a relay, acknowledging what it still hands out.
func drain(t *testing.T, sub *outbox.Subscriber, out <-chan *message.Message) {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		for m := range out {
			m.Ack()
		}
	})
	require.NoError(t, sub.Close())
	wg.Wait()
}

func (s *store) exec(query string, args ...any) {
	s.t.Helper()
	_, err := s.pool.Exec(context.Background(), query, args...)
	require.NoError(s.t, err)
}

func scan[T any](s *store, query string, args ...any) T {
	s.t.Helper()
	var v T
	require.NoError(s.t, s.pool.QueryRow(context.Background(), query, args...).Scan(&v))
	return v
}

func (s *store) count(table string) int { return scan[int](s, "SELECT count(*) FROM "+table) }

// stored returns the values of the events in the log, in the order of their positions.
func (s *store) stored() string {
	return scan[string](s, `SELECT coalesce(string_agg(payload->>'value', ' ' ORDER BY position), '') FROM event_store`)
}

func newEvent(aggregate string, value int) event.Envelope {
	now := time.Now().UTC().Truncate(time.Microsecond)
	return event.Envelope{
		ID: uuid.Must(uuid.NewV7()), Type: "sensor.reading", AggregateID: aggregate, Time: now, IngestedAt: now,
		Payload:  jsontext.Value(fmt.Sprintf(`{"value":%d,"unit":"c"}`, value)),
		Metadata: event.Metadata{Source: "http", CorrelationID: "c-1", SchemaVersion: 1},
	}
}

// poison is an event that the outbox refuses, though its envelope is fine.
func poison() event.Envelope {
	e := newEvent("a", 0)
	e.Payload = jsontext.Value(`{"value":`)
	return e
}

func values(from, to int) string {
	var all []string
	for i := from; i < to; i++ {
		all = append(all, fmt.Sprint(i))
	}
	return strings.Join(all, " ")
}

// received is one event as a relay handed it out.
type received struct {
	event.Envelope
	msg *message.Message
}

// next receives one message.
func next(t *testing.T, out <-chan *message.Message) received {
	t.Helper()
	select {
	case m, ok := <-out:
		require.True(t, ok, "the subscription has ended")
		e, err := event.Unmarshal(m.Payload)
		require.NoError(t, err)
		require.Equal(t, e.ID.String(), m.UUID)
		return received{Envelope: e, msg: m}
	case <-time.After(soon):
		require.FailNow(t, "no message")
		return received{}
	}
}

// nextAcked receives and acknowledges n messages.
func nextAcked(t *testing.T, out <-chan *message.Message, n int) []received {
	t.Helper()
	var all []received
	for range n {
		r := next(t, out)
		require.True(t, r.msg.Ack())
		all = append(all, r)
	}
	return all
}

func positions(all []received) []int64 {
	var p []int64
	for _, r := range all {
		p = append(p, r.Metadata.Position)
	}
	return p
}

func payloads(all []received) string {
	var p []string
	for _, r := range all {
		p = append(p, value(r.Envelope))
	}
	return strings.Join(p, " ")
}

func value(e event.Envelope) string {
	var p struct {
		Value jsontext.Value `json:"value"`
	}
	if err := json.Unmarshal(e.Payload, &p); err != nil {
		return err.Error()
	}
	return string(p.Value)
}

// requireSame compares events, payloads as JSON: one that is handed out again comes from the log, which is jsonb.
func requireSame(t *testing.T, want, got event.Envelope) {
	t.Helper()
	require.JSONEq(t, string(want.Payload), string(got.Payload))
	want.Payload, got.Payload = nil, nil
	require.Equal(t, want, got)
}
