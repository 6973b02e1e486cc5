package routers

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/window"
	"github.com/cornjacket/platform-services/store"
)

// laneSource hands out one message again and again, as the subscribers of the hot path do.
type laneSource struct {
	n       int
	payload []byte
	done    chan struct{}
}

func (s *laneSource) Subscribe(ctx context.Context, _ string) (<-chan *message.Message, error) {
	out := make(chan *message.Message)
	go func() {
		defer close(out)
		left := s.n
		lane := window.NewLane(ctx, out, window.LaneConfig[int]{Size: 2000, Advance: func(int) {
			if left--; left == 0 {
				close(s.done)
			}
		}})
		keys := []string{"device-001", "device-002", "device-003", "device-004"}
		for i := range s.n {
			m := message.NewMessage("0190a5c0-7b1e-7c3a-9d3e-5f6a7b8c9d0e", s.payload)
			m.Metadata = message.Metadata{event.MetaEventType: "sensor.reading", event.MetaCorrelationID: "c"}
			if !lane.Send(ctx, ctx, m, i, window.Source{Topic: "t", Key: keys[i%4]}) {
				return
			}
		}
		lane.Close()
		<-lane.Done()
	}()
	return out, nil
}

func (s *laneSource) Close() error { return nil }

// nowhere is a projection store that keeps nothing.
type nowhere struct{}

func (nowhere) Update(_ context.Context, _ []store.ProjectionKey, fold func(map[store.ProjectionKey]*store.Projection) error) error {
	return fold(map[store.ProjectionKey]*store.Projection{})
}

// BenchmarkEventhandler is what one event costs on its way through lane, router, middleware, decoding and batcher,
// without any I/O.
func BenchmarkEventhandler(b *testing.B) {
	e := event.Envelope{
		ID: uuid.Must(uuid.NewV7()), Type: "sensor.reading", AggregateID: "device-001", Time: time.Now().UTC(), IngestedAt: time.Now().UTC(),
		Payload:  []byte(`{"value":72.5,"unit":"fahrenheit","humidity":40.1,"battery":3.7}`),
		Metadata: event.Metadata{Source: "mqtt", CorrelationID: uuid.NewString(), SchemaVersion: 1, Position: 4711},
	}
	payload, err := e.Marshal()
	if err != nil {
		b.Fatal(err)
	}
	source := &laneSource{n: b.N, payload: payload, done: make(chan struct{})}
	router, err := NewEventhandler(EventhandlerConfig{
		Stack: Stack{
			RetryMax: 3, RetryInterval: time.Millisecond, Timeout: 30 * time.Second, CloseTimeout: 5 * time.Second,
			Metrics: NewMetrics(prometheus.NewRegistry()), Log: slog.New(slog.DiscardHandler),
		},
		Subscriber: source, Store: nowhere{}, Now: time.Now,
	})
	if err != nil {
		b.Fatal(err)
	}
	var running sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	running.Go(func() { _ = router.Run(b.Context()) })
	<-source.done
	b.StopTimer()
	_ = router.Close(b.Context())
	running.Wait()
}
