// Package app is the composition root: it builds the platform from its parts, starts them, and stops them in order.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/cornjacket/platform-services/internal/config"
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
	p := newPlatform(cfg, log)
	// Everything that goes on in the background ends with this context, with the first fatal error as its cause.
	p.ctx, p.fail = context.WithCancelCause(context.Background())
	err := p.start(ctx)
	if err == nil {
		p.background.Go(func() { p.announce(ctx, ready) })
		select {
		case <-ctx.Done():
			log.Info("stopping")
		case <-p.ctx.Done():
			err = context.Cause(p.ctx)
		}
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil // stopped while starting
	}
	if stopErr := p.stop(); err == nil {
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

// platform is a running set of services.
type platform struct {
	cfg config.Run
	log *slog.Logger
	now func() time.Time

	ctx        context.Context
	fail       context.CancelCauseFunc
	background sync.WaitGroup

	registry *prometheus.Registry
	metrics  *routers.Metrics
	lag      *lagGauges
	doors    doors
	ports    []*port
	pools    map[string]*pgxpool.Pool // by URL and use
	closers  []closer
	broker   *mochi.Broker // embedded; nil without one
	pending  *prometheus.GaugeVec
	clients  clients

	topicsExist chan struct{} // see topics
}

// closer is one step of the stop. Steps with the same stage are closed at the same time.
type closer struct {
	stage int
	name  string
	close func(ctx context.Context) error
}

// Stages of the stop: stop taking, then relay what is left, then the clients.
const (
	stageDoors = iota
	stageIngestion
	stageFlow
	stageClients
)

func newPlatform(cfg config.Run, log *slog.Logger) *platform {
	p := &platform{cfg: cfg, log: log, now: time.Now, registry: prometheus.NewRegistry(), pools: make(map[string]*pgxpool.Pool)}
	p.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	p.metrics, p.lag = routers.NewMetrics(p.registry), newLagGauges(p.registry)
	return p
}

func (p *platform) runs(service string) bool { return slices.Contains(p.cfg.Services, service) }

// start listens, waits for the databases, migrates, and starts the services in the order against the flow, so that
// nothing is taken before it can be passed on.
func (p *platform) start(ctx context.Context) error {
	defer p.recoverTo()
	if err := p.listen(); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{
		p.readClients, p.prepareDatabases, p.startQuery, p.startEventhandler, p.startRelayAndIngestion,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (p *platform) recoverTo() {
	if r := recover(); r != nil {
		p.fail(fmt.Errorf("bug at start: %v\n%s", r, debug.Stack()))
		panic(r)
	}
}

// announce says once that all services are ready.
func (p *platform) announce(ctx context.Context, ready func(map[string]string)) {
	started := p.now()
	for {
		waiting := ""
		for _, port := range p.ports {
			if r, ok := port.monitor.Report(); !ok && waiting == "" {
				waiting = r.Service
			}
		}
		if waiting == "" {
			break
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return
		case <-p.ctx.Done():
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
	if ready != nil {
		ready(addrs)
	}
}

// stop ends everything in order within the shutdown timeout.
func (p *platform) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), p.cfg.ShutdownTimeout)
	defer cancel()
	for _, port := range p.ports {
		port.monitor.Stop()
	}
	var errs []error
	for stage := stageDoors; stage <= stageClients; stage++ {
		errs = append(errs, p.closeStage(ctx, stage)...)
	}
	p.fail(nil)
	for _, port := range p.ports {
		if err := port.server.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close %s port: %w", port.service, err))
		}
	}
	p.background.Wait()
	closed := make(chan struct{})
	go func() { // closing a pool waits for its connections, which a frozen server may hold
		defer close(closed)
		for _, pool := range p.pools {
			pool.Close()
		}
	}()
	select {
	case <-closed:
	case <-ctx.Done():
		errs = append(errs, errors.New("database connections could not be closed in time"))
	}
	return errors.Join(errs...)
}

func (p *platform) closeStage(ctx context.Context, stage int) []error {
	var closing sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for _, c := range p.closers {
		if c.stage != stage {
			continue
		}
		closing.Go(func() {
			if err := c.close(ctx); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("stop %s: %w", c.name, err))
			}
		})
	}
	closing.Wait()
	return errs
}

func (p *platform) onStop(stage int, name string, close func(ctx context.Context) error) {
	p.closers = append(p.closers, closer{stage, name, close})
}

// goRun runs a router; that it ends while the platform runs is fatal.
func (p *platform) goRun(r *routers.Router) {
	p.background.Go(func() {
		if err := r.Run(p.ctx); err != nil {
			p.fail(err)
		}
	})
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
