package app

import (
	"context"
	"maps"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/health"
	"github.com/cornjacket/platform-services/routers"
)

// clock returns the bounds of the times that are believed.
func (p *platform) clock() event.Clock {
	return event.Clock{MaxAhead: p.cfg.EventTimeMaxAhead, Min: p.cfg.EventTimeMin}
}

// oddities counts what is odd in what devices publish, and neither refused nor an error.
type oddities struct {
	counter *prometheus.CounterVec

	mu     sync.Mutex
	counts map[string]int
}

func newOddities(registry prometheus.Registerer) *oddities {
	o := &oddities{
		counter: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cornjacket_mqtt_oddities_total",
			Help: "MQTT messages that are odd, by kind; clock_ahead and clock_unset: the event has the time at which it came, since the device's clock is not believed; retained_cleared: no event, but an empty body by which a retained message is cleared.",
		}, []string{"kind"}),
		counts: make(map[string]int),
	}
	for _, kind := range routers.Oddities() {
		o.counter.WithLabelValues(kind)
		o.counts[kind] = 0
	}
	registry.MustRegister(o.counter)
	return o
}

// add counts one.
func (o *oddities) add(kind string) {
	o.counter.WithLabelValues(kind).Inc()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.counts[kind]++
}

// tell adds the counts to the details of a check.
func (o *oddities) tell(c health.Check) health.Check {
	probe := c.Probe
	c.Probe = func(ctx context.Context) (health.Details, error) {
		found, err := probe(ctx)
		d := health.Details{}
		maps.Copy(d, found)
		o.mu.Lock()
		defer o.mu.Unlock()
		for kind, n := range o.counts {
			d[kind] = n
		}
		return d, err
	}
	return c
}
