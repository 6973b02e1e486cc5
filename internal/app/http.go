package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/cornjacket/platform-services/api"
	"github.com/cornjacket/platform-services/internal/health"
	"github.com/cornjacket/platform-services/routers"
)

// port is the HTTP side of one address of a service. Health answers from the start; the API comes once the service is
// built.
type port struct {
	platform *platform
	service  string
	address  routers.Address
	monitor  *health.Monitor // of the service

	listener net.Listener
	guarded  bool // requests need tokens
	server   *http.Server
	handler  atomic.Pointer[http.Handler]
	serving  *loop // nil before it listens
	checking loop
}

// listeners returns all that listens, in the order of the table.
func (p *platform) listeners() []component {
	var parts []component
	for _, s := range routers.Services() {
		if !p.runs(s.Name) {
			continue
		}
		monitor := health.New(s.Name, p.now)
		for _, address := range s.Addresses {
			port := &port{platform: p, service: s.Name, address: address, monitor: monitor}
			p.ports = append(p.ports, port)
			parts = append(parts, port)
		}
	}
	if p.cfg.EmbeddedMQTT && p.runs(routers.Ingestion) {
		parts = append(parts, &embeddedBroker{p})
	}
	if p.cfg.PprofAddr != "" {
		parts = append(parts, &profiles{platform: p})
	}
	return parts
}

// Start listens, and serves health and metrics.
func (p *port) Start(context.Context) error {
	listener, guarded, err := p.platform.access.listen(p.service, p.address.Variable, p.platform.cfg.Listen.Get(p.address.Variable))
	if err != nil {
		return err
	}
	p.listener, p.guarded, p.server = listener, guarded, api.Server(p.platform.log)
	p.mount(nil)
	p.server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		(*p.handler.Load()).ServeHTTP(w, r)
	})
	p.serving = p.platform.serving(p.service, p.server, listener)
	return p.serving.Start(context.Background())
}

// Stop closes the port, whatever is in flight.
func (p *port) Stop(ctx context.Context) error {
	return errors.Join(closeServer(ctx, p.server, p.serving), p.checking.Stop(ctx))
}

// turnRed ends readiness. Checks that run are not waited for here: some end only when their client is closed.
func (p *port) turnRed() {
	p.monitor.Stop()
	p.checking.end()
}

// mount puts an API behind the port; nil leaves health and metrics alone.
func (p *port) mount(add func(mux *http.ServeMux)) {
	mux := http.NewServeMux()
	if p.address.Health {
		p.monitor.Mount(mux)
		mux.Handle("GET /metrics", promhttp.HandlerFor(p.platform.registry, promhttp.HandlerOpts{Registry: p.platform.registry}))
	}
	if add != nil {
		add(mux)
	}
	handler := api.Wrap(p.platform.log, p.platform.access.protect(p.guarded, mux))
	p.handler.Store(&handler)
}

// name names the port in the log: after its service, or after its variable if health is answered on another port.
func (p *port) name() string {
	if p.address.Health {
		return p.service
	}
	return p.address.Variable
}

// port returns the port on which a service answers GET /health.
func (p *platform) port(service string) *port {
	for _, port := range p.ports {
		if port.service == service && port.address.Health {
			return port
		}
	}
	return nil
}

// serving returns the work of a server.
func (p *platform) serving(name string, server *http.Server, l net.Listener) *loop {
	return &loop{run: func(context.Context) {
		if err := p.access.serve(server, l); err != nil {
			p.fail(fmt.Errorf("%s: serve on %s: %w", name, l.Addr(), err))
		}
	}}
}

// closeServer closes a server and waits until its work has ended; without work it has not begun.
func closeServer(ctx context.Context, server *http.Server, work *loop) error {
	if work == nil {
		return nil
	}
	return errors.Join(server.Close(), work.Stop(ctx))
}

// apiOn is the component of an API behind a port.
type apiOn struct {
	*port
	add func(mux *http.ServeMux)
}

// Start lets requests in.
func (a apiOn) Start(context.Context) error {
	a.mount(a.add)
	return nil
}

// Stop lets no further request in and waits for those in flight.
func (a apiOn) Stop(ctx context.Context) error {
	if err := a.server.Shutdown(ctx); err != nil {
		return fmt.Errorf("wait for requests in flight: %w", err)
	}
	return nil
}

// checks returns the step that begins to look after the health of a service.
func (p *platform) checks(service string, checks ...health.Check) component {
	port := p.port(service)
	for _, c := range checks {
		port.monitor.Add(shownCheck(c))
	}
	port.checking.run = port.monitor.Run
	return onStart(port.checking.Start)
}

// profiles serve Go's profiles on a port of their own.
type profiles struct {
	platform *platform
	server   *http.Server
	serving  *loop // nil before it listens
}

// Start listens and serves.
func (p *profiles) Start(context.Context) error {
	listener, guarded, err := p.platform.access.listen("pprof", "PPROF_ADDR", p.platform.cfg.PprofAddr)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	p.server = &http.Server{Handler: api.Wrap(p.platform.log, p.platform.access.protect(guarded, mux)), ReadHeaderTimeout: 5 * time.Second}
	p.serving = p.platform.serving("pprof", p.server, listener)
	return p.serving.Start(context.Background())
}

// Stop closes the port, whatever is in flight.
func (p *profiles) Stop(ctx context.Context) error { return closeServer(ctx, p.server, p.serving) }
