package routers

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/cornjacket/platform-services/pubsub/batch"
)

// Metrics has the names, labels and buckets of Watermill's own component (components/metrics), so that dashboards made
// for it work. Received messages are the records of batches; the time is that of a batch.
type Metrics struct {
	handlers *prometheus.HistogramVec
	messages *prometheus.CounterVec
	skipped  *prometheus.CounterVec
}

// NewMetrics registers the metrics.
func NewMetrics(registry prometheus.Registerer) *Metrics {
	m := &Metrics{
		handlers: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "handler_execution_time_seconds",
			Help:    "The total time elapsed while executing the handler function in seconds",
			Buckets: []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1},
		}, []string{"handler_name", "success"}),
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "subscriber_messages_received_total",
			Help: "The total number of messages received by the subscriber",
		}, []string{"handler_name", "subscriber_name", "acked"}),
		skipped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cornjacket_messages_skipped_total",
			Help: "Messages let go after their retries, as the policy of their router says.",
		}, []string{"handler_name"}),
	}
	registry.MustRegister(m.handlers, m.messages, m.skipped)
	return m
}

// middleware counts the messages of one handler. What it lets pass is acknowledged by the router, and what it does not
// is refused.
func (m *Metrics) middleware(handler string, subscriber message.Subscriber) message.HandlerMiddleware {
	name := strings.TrimPrefix(fmt.Sprintf("%T", subscriber), "*")
	succeeded, failed := m.handlers.WithLabelValues(handler, "true"), m.handlers.WithLabelValues(handler, "false")
	acked, nacked := m.messages.WithLabelValues(handler, name, "acked"), m.messages.WithLabelValues(handler, name, "nacked")
	return func(h message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			start, b := time.Now(), batch.From(msg)
			records := len(b.Rest())
			produced, err := h(msg)
			took, rest := succeeded, len(b.Rest())
			if err != nil {
				took = failed
				nacked.Add(float64(rest))
			}
			took.Observe(time.Since(start).Seconds())
			acked.Add(float64(records - rest))
			return produced, err
		}
	}
}

// skip returns a [refuser] that counts and lets go.
func skip(m *Metrics, handler string) refuser {
	return func(context.Context, *batch.Record, int, string) error {
		if m != nil {
			m.skipped.WithLabelValues(handler).Inc()
		}
		return nil
	}
}
