package routers

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/pgtest"
	"github.com/cornjacket/platform-services/migrations"
	"github.com/cornjacket/platform-services/pubsub/window"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, pgtest.IgnoreServer()) }

const (
	soon = 20 * time.Second
	tick = 2 * time.Millisecond
)

var (
	t0    = time.Date(2026, 2, 7, 10, 0, 0, 123456000, time.UTC)
	quiet = slog.New(slog.DiscardHandler)
)

func stack() Stack {
	return Stack{RetryMax: 3, RetryInterval: time.Millisecond, Timeout: 10 * time.Second, CloseTimeout: 5 * time.Second, Log: quiet}
}

// database returns a pool on a fresh database with all tables.
func database(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool := pgtest.Pool(t, "")
	db := stdlib.OpenDBFromPool(pool)
	defer func() { require.NoError(t, db.Close()) }()
	for _, service := range migrations.Services() {
		_, err := migrations.Up(t.Context(), db, service)
		require.NoError(t, err)
	}
	return pool
}

// source is a windowed subscriber that hands out what the test sends.
type source struct {
	in     chan sent
	closed chan struct{}
	once   sync.Once

	mu    sync.Mutex
	acked []int64 // offsets
}

type sent struct {
	msg *message.Message
	src window.Source
}

func newSource() *source { return &source{in: make(chan sent, 100), closed: make(chan struct{})} }

func (s *source) Subscribe(ctx context.Context, _ string) (<-chan *message.Message, error) {
	out := make(chan *message.Message)
	ctx, cancel := context.WithCancel(ctx)
	lane := window.NewLane(ctx, out, window.LaneConfig[int64]{
		Size: 100, NackDelay: time.Millisecond,
		Advance: func(offset int64) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.acked = append(s.acked, offset)
		},
	})
	go func() {
		defer close(out)
		defer func() { cancel(); <-lane.Done() }()
		for {
			select {
			case m := <-s.in:
				lane.Send(ctx, ctx, m.msg, m.src.Offset, m.src)
			case <-s.closed:
				return
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

func (s *source) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func (s *source) send(msg *message.Message, src window.Source) { s.in <- sent{msg, src} }

func (s *source) hasAcked(offsets ...int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Equal(s.acked, offsets)
}

// letterBox is a DeadLetterStore in memory that refuses the first letters that it is given.
type letterBox struct {
	mu      sync.Mutex
	refuse  int
	refused int
	letters []deadletter.Entry
}

func (b *letterBox) Add(_ context.Context, l deadletter.Entry) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.refuse > 0 {
		b.refuse--
		b.refused++
		return errors.New("database is away")
	}
	b.letters = append(b.letters, l)
	return nil
}

func (b *letterBox) all() []deadletter.Entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.letters)
}

func (b *letterBox) refusals() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.refused
}

// start runs a router until the test ends.
func start(t *testing.T, r *Router) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	require.Eventually(t, r.Running, soon, tick)
	t.Cleanup(func() {
		cancel()
		require.NoError(t, r.Close(context.Background()))
		require.NoError(t, <-ended)
		require.False(t, r.Running())
	})
}

// started returns a router with the stack around a handler of the test, running.
func started(t *testing.T, s Stack, letters DeadLetterStore, h message.NoPublishHandlerFunc) (*source, *Router) {
	t.Helper()
	src := newSource()
	poison := newPoison(Eventhandler, letters, func() time.Time { return t0 }, s.Log, nil)
	router, err := newRouter("test", s, nil, poison)
	require.NoError(t, err)
	router.AddConsumerHandler("test", "sensor-events", src, h)
	r := &Router{name: "test", router: router, letters: poison}
	start(t, r)
	return src, r
}

// envelope7 is an event of device-7.
func envelope7(position int64) event.Envelope {
	return event.Envelope{
		ID: uuid.Must(uuid.NewV7()), Type: "sensor.reading", AggregateID: "device-7", Time: t0, IngestedAt: t0,
		Payload:  []byte(`{"value":1,"unit":"celsius"}`),
		Metadata: event.Metadata{Source: "http", CorrelationID: "c-7", SchemaVersion: 1, Position: position},
	}
}

func marshal(t *testing.T, e event.Envelope) []byte {
	t.Helper()
	data, err := e.Marshal()
	require.NoError(t, err)
	return data
}
