package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"slices"
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
	addr     string          // to listen on
	monitor  *health.Monitor // of the service
	server   *http.Server

	listener net.Listener
	guarded  bool // requests need tokens
	handler  atomic.Pointer[http.Handler]
	serving  loop
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
			port := &port{
				platform: p, service: s.Name, address: address, addr: p.cfg.Listen.Get(address.Variable),
				monitor: monitor, server: api.Server(p.log),
			}
			p.ports = append(p.ports, port)
			parts = append(parts, port)
		}
	}
	if p.cfg.EmbeddedMQTT && p.runs(routers.Ingestion) {
		parts = append(parts, &embeddedBroker{p})
	}
	if p.cfg.PprofAddr != "" {
		parts = append(parts, p.profiles()...)
	}
	return parts
}

// Start listens, and serves health and metrics.
func (p *port) Start(context.Context) error {
	listener, guarded, err := p.platform.access.listen(p.service, p.address.Variable, p.addr)
	if err != nil {
		return err
	}
	p.listener, p.guarded = listener, guarded
	p.mount(nil)
	p.server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		(*p.handler.Load()).ServeHTTP(w, r)
	})
	p.serving.run = func(context.Context) {
		if err := p.platform.access.serve(p.server, listener); err != nil {
			p.platform.fail(fmt.Errorf("%s: serve on %s: %w", p.service, listener.Addr(), err))
		}
	}
	return p.serving.Start(context.Background())
}

// Stop closes the port, whatever is in flight.
func (p *port) Stop(ctx context.Context) error {
	return errors.Join(p.server.Close(), p.serving.Stop(ctx), p.checking.Stop(ctx))
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
	handler := api.Wrap(p.platform.log, p.platform.access.protect(p.listener, p.addr, p.guarded, mux))
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
	row := routers.ServiceOf(service)
	return p.portAt(row.HealthAddress().Variable)
}

// portAt returns the port of an address, by its variable; nil if its service does not run.
func (p *platform) portAt(variable string) *port {
	i := slices.IndexFunc(p.ports, func(port *port) bool { return port.address.Variable == variable })
	if i < 0 {
		return nil
	}
	return p.ports[i]
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

// profiles returns the port of Go's profiles.
func (p *platform) profiles() []component {
	port := &port{
		platform: p, service: "pprof", address: routers.Address{Variable: "PPROF_ADDR"}, addr: p.cfg.PprofAddr,
		server: &http.Server{ReadHeaderTimeout: 5 * time.Second}, // a profile takes as long as it is asked for
	}
	return []component{port, onStart(func(context.Context) error {
		port.mount(func(mux *http.ServeMux) {
			mux.HandleFunc("/debug/pprof/", pprof.Index)
			mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
			mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
		})
		return nil
	})}
}
