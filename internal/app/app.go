// Package app is the composition root: it builds the platform from its parts, starts them, and stops them in order.
package app

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/ledger"
	"github.com/cornjacket/platform-services/pubsub/kafka"
	"github.com/cornjacket/platform-services/pubsub/mochi"
	"github.com/cornjacket/platform-services/routers"
)

// Version is stamped by the linker.
var Version = "dev"

// Run runs services until ctx ends, which is a clean stop and no error, or until something fatal happens.
func Run(ctx context.Context, cfg config.Run, log *slog.Logger) error {
	return runThen(ctx, cfg, log, nil)
}

// runThen is Run that calls ready once all services are.
func runThen(ctx context.Context, cfg config.Run, log *slog.Logger, ready func(addrs map[string]string)) error {
	tuneGC()
	running, fail := context.WithCancelCause(ctx) // ends with the first fatal error as its cause
	defer fail(nil)
	p := newPlatform(cfg, log, fail, ready)
	err := p.start(running)
	if err == nil {
		<-running.Done()
	}
	switch cause := context.Cause(running); {
	case cause == nil, err != nil && ctx.Err() == nil && !errors.Is(err, context.Canceled): // the start has failed by itself
	case ctx.Err() != nil && errors.Is(cause, context.Cause(ctx)):
		log.Info("stopping")
		err = nil
	default:
		err = cause
	}
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.ShutdownTimeout)
	defer cancel()
	if stopErr := p.Stop(stopCtx); err == nil {
		err = stopErr
	} else if stopErr != nil {
		log.Warn("the stop was not clean", "error", stopErr)
	}
	return err
}

// tuneGC trades some memory for less work: each event leaves a few kilobytes of garbage and almost nothing that lives,
// so at Go's default a collection runs every few milliseconds. The limit keeps the whole below 200 MiB at full load.
// GOGC and GOMEMLIMIT have the last word.
func tuneGC() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(150 << 20)
	}
}

// platform is a running set of services, and what they share.
type platform struct {
	stages

	cfg   config.Run
	log   *slog.Logger
	now   func() time.Time
	fail  func(error) // ends the platform with a fatal error; the first one counts
	ready func(addrs map[string]string)

	registry *prometheus.Registry
	metrics  *routers.Metrics
	lag      *lagGauges
	pending  *prometheus.GaugeVec

	access  access
	bus     kafka.Security
	mqttTLS *tls.Config
	ports   []*port
	broker  *mochi.Broker            // embedded; nil without one
	pools   map[string]*pgxpool.Pool // by URL and use
	topics  *topics
	outbox  outboxWriter
	wake    waker
}

func newPlatform(cfg config.Run, log *slog.Logger, fail func(error), ready func(addrs map[string]string)) *platform {
	p := &platform{cfg: cfg, log: log, now: time.Now, fail: fail, ready: ready, registry: prometheus.NewRegistry(), pools: make(map[string]*pgxpool.Pool)}
	p.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	p.metrics, p.lag = routers.NewMetrics(p.registry), newLagGauges(p.registry)
	p.topics = newTopics(p)
	p.outbox.platform = p
	return p
}

func (p *platform) runs(service string) bool { return slices.Contains(p.cfg.Services, service) }

// start starts the platform stage by stage: it listens before anything else, so that a port that is taken stops the
// start at once, and starts the services against the flow, so that nothing is taken before it can be passed on. A stop
// goes the other way: readiness turns red, nothing more is taken, what was taken is passed on, and then the rest.
func (p *platform) start(ctx context.Context) error {
	for _, read := range []func() error{p.openAccess, p.readBus, p.readMQTT} {
		if err := read(); err != nil {
			return err
		}
	}
	for _, stage := range []stage{
		{"ports", p.listeners()},
		{"databases", []component{onStart(p.prepareDatabases), onStop(p.closePools)}},
		{"topics", []component{p.topics}},
		{"outbox", []component{&p.outbox}},
		{"flow", p.services(flow)},
		{"doors", p.services(doors)},
		{"announcement", []component{&loop{run: p.announce}}},
	} {
		if err := p.stages.start(ctx, stage.name, stage.parts...); err != nil {
			return err
		}
	}
	return nil
}

// Stop turns readiness red and stops the stages.
func (p *platform) Stop(ctx context.Context) error {
	for _, port := range p.ports {
		port.turnRed()
	}
	return p.stages.Stop(ctx)
}

// service is a component that runs one service of the table.
type service struct {
	*platform
	parts stages
	build func(ctx context.Context, s *service) error
}

// Start builds the service and starts its parts.
func (s *service) Start(ctx context.Context) error { return s.build(ctx, s) }

// Stop stops its parts.
func (s *service) Stop(ctx context.Context) error { return s.parts.Stop(ctx) }

// Stages of services.
const (
	flow  = iota // carries events on
	doors        // takes them in
)

// builders are how the services of the table are built, in the order in which they start: against the flow.
var builders = []struct {
	service string
	stage   int
	build   func(ctx context.Context, s *service) error
}{
	{routers.Query, flow, buildQuery},
	{routers.Eventhandler, flow, buildEventhandler},
	{routers.Relay, flow, buildRelay},
	{routers.Ingestion, doors, buildIngestion},
}

// accounts are the consumers of the bus as the ledger sees them, each in the database that it keeps its positions in.
var accounts = []func(ctx context.Context, s *service) (ledger.Consumer, error){
	eventhandlerAccount,
}

// services returns the services of a stage that are to run.
func (p *platform) services(stage int) []component {
	var parts []component
	for _, b := range builders {
		if b.stage == stage && p.runs(b.service) {
			parts = append(parts, &service{platform: p, build: b.build})
		}
	}
	return parts
}

// announce says once that all services are ready.
func (p *platform) announce(ctx context.Context) {
	started := p.now()
	for !p.allReady() {
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return
		}
	}
	addrs := make(map[string]string, len(p.ports))
	for _, port := range p.ports {
		addrs[port.name()] = port.listener.Addr().String()
	}
	if p.broker != nil {
		addrs["mqtt"] = p.broker.Addr()
	}
	p.log.Info("ready", "version", Version, "services", p.cfg.Services, "addresses", addrs, "seconds", p.now().Sub(started).Seconds())
	if p.ready != nil {
		p.ready(addrs)
	}
}

func (p *platform) allReady() bool {
	for _, port := range p.ports {
		if _, ready := port.monitor.Report(); !ready {
			return false
		}
	}
	return true
}

// routing is a component that runs a router; that it ends by itself is fatal.
type routing struct {
	loop
	router *routers.Router
}

// routing returns the component of a router that starts once a channel is closed; at once if that is nil.
func (p *platform) routing(router *routers.Router, after <-chan struct{}) *routing {
	return &routing{router: router, loop: loop{run: func(ctx context.Context) {
		if after != nil {
			select {
			case <-after:
			case <-ctx.Done():
				return
			}
		}
		if err := router.Run(context.WithoutCancel(ctx)); err != nil {
			p.fail(err)
		}
	}}}
}

// Stop lets the router finish what it has taken.
func (r *routing) Stop(ctx context.Context) error {
	return errors.Join(r.router.Close(ctx), r.loop.Stop(ctx))
}

func (p *platform) stack() routers.Stack {
	return routers.Stack{
		RetryMax:      p.cfg.RetryMax,
		RetryInterval: p.cfg.RetryInterval,
		Timeout:       p.cfg.HandlerTimeout,
		CloseTimeout:  p.cfg.ShutdownTimeout / 3,
		Metrics:       p.metrics,
		Log:           p.log,
	}
}

func newID() uuid.UUID { return uuid.Must(uuid.NewV7()) } // fails only if the system has no randomness
