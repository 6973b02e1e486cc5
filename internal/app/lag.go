package app

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cornjacket/platform-services/internal/health"
	"github.com/cornjacket/platform-services/pubsub/kafka"
)

// lagGauges are how far the relay and the consumers of this process are behind.
type lagGauges struct{ events, seconds *prometheus.GaugeVec }

func newLagGauges(registry prometheus.Registerer) *lagGauges {
	g := &lagGauges{
		events: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "cornjacket_lag_events", Help: "Events that wait for a consumer; the relay's are those of outbox and log that the bus does not have.",
		}, []string{"consumer"}),
		seconds: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "cornjacket_lag_seconds", Help: "Age of the oldest event that waits for a consumer, in seconds.",
		}, []string{"consumer"}),
	}
	registry.MustRegister(g.events, g.seconds)
	return g
}

// set shows a lag; an unknown one is not shown rather than shown as the last known.
func (g *lagGauges) set(consumer string, known bool, events int64, seconds float64) {
	if !known {
		g.events.DeleteLabelValues(consumer)
		g.seconds.DeleteLabelValues(consumer)
		return
	}
	g.events.WithLabelValues(consumer).Set(float64(events))
	g.seconds.WithLabelValues(consumer).Set(seconds)
}

// stall notices that there is something to do and nothing is done.
type stall struct {
	patience time.Duration
	now      func() time.Time
	done     int64
	since    time.Time // of the last thing that was done, or of the first that waits after a time without any
}

// look returns for how long nothing was done of what waits, and an error if that is too long. Done changes with each
// thing that is done.
func (s *stall) look(waiting, done int64) (time.Duration, error) {
	if waiting == 0 || done != s.done || s.since.IsZero() {
		s.done, s.since = done, s.now()
		return 0, nil
	}
	silent := s.now().Sub(s.since)
	if silent > s.patience {
		return silent, fmt.Errorf("is stuck: %d events wait and nothing was done for %s", waiting, silent.Round(time.Second))
	}
	return silent, nil
}

// stallMargin is added to what a handler may take before a consumer counts as stuck.
const stallMargin = 5 * time.Second

// consumerLag reports how far a consumer is behind, and fails when it has no partitions or does not move.
func consumerLag(name string, sub *kafka.Subscriber, gauges *lagGauges, timeout time.Duration, now func() time.Time) health.Check {
	s := &stall{patience: timeout + stallMargin, now: now}
	return health.Check{Name: "consumer", Every: time.Second, Probe: func(ctx context.Context) (health.Details, error) {
		d := health.Details{"partitions": sub.Assigned()}
		if !sub.Joined() {
			gauges.set(name, false, 0, 0)
			return d, errors.New("no partitions assigned yet")
		}
		askCtx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		lag, err := sub.Lag(askCtx)
		if err != nil { // the check of the bus says so
			gauges.set(name, false, 0, 0)
			s.since = time.Time{}
			d["lag"] = "unknown"
			return d, nil
		}
		seconds := age(lag.Oldest, now())
		silent, err := s.look(lag.Events, lag.Acked)
		if lag.Events > 0 && lag.Oldest.IsZero() { // none was fetched: it waits at least since we have seen it wait
			seconds = silent.Round(time.Millisecond).Seconds()
		}
		gauges.set(name, true, lag.Events, seconds)
		d["lag_events"], d["lag_seconds"] = lag.Events, seconds
		return d, err
	}}
}

func age(t, now time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return max(0, now.Sub(t).Round(time.Millisecond).Seconds())
}
