package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/cornjacket/platform-services/api"
	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/internal/health"
	"github.com/cornjacket/platform-services/pubsub/mochi"
)

// port is the HTTP side of one service. Health answers from the start; the API comes once the service is built.
type port struct {
	service  string
	listener net.Listener
	server   *http.Server
	monitor  *health.Monitor
	guarded  bool // requests need tokens
	handler  atomic.Pointer[http.Handler]
}

// listen takes every port before anything else is done, so that one that is taken stops the start at once.
func (p *platform) listen() error {
	if err := p.openDoors(); err != nil {
		return err
	}
	for _, service := range config.Services() {
		if !p.runs(service) {
			continue
		}
		addr := p.cfg.Of(service)
		listener, guarded, err := p.doors.listen(service, config.AddrVariable(service), addr)
		if err != nil {
			return err
		}
		port := &port{service: service, listener: listener, server: api.Server(p.log), monitor: health.New(service, p.now), guarded: guarded}
		p.ports = append(p.ports, port)
		p.serve(port, nil)
		port.server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			(*port.handler.Load()).ServeHTTP(w, r)
		})
		p.background.Go(func() {
			if err := p.doors.serve(port.server, listener); err != nil {
				p.fail(fmt.Errorf("%s: serve on %s: %w", service, addr, err))
			}
		})
	}
	if err := p.listenMQTT(); err != nil {
		return err
	}
	return p.servePprof()
}

// listenMQTT starts the embedded MQTT broker, if that is asked for. Until ingestion takes from it, it turns clients away.
func (p *platform) listenMQTT() error {
	if !p.cfg.EmbeddedMQTT || !p.runs(config.Ingestion) {
		return nil
	}
	addr, err := p.cfg.EmbeddedMQTTAddr()
	if err != nil {
		return err
	}
	users, err := readMQTTUsers(p.cfg.EmbeddedMQTTUsers)
	if err != nil {
		return err
	}
	broker, err := mochi.Listen(mochi.Config{
		Addr: addr, Username: p.cfg.MQTTUsername, Password: p.cfg.MQTTPassword, Users: users, Batch: p.cfg.BatchSize, Log: p.log,
	})
	if err != nil {
		return fmt.Errorf("embedded MQTT broker: %w", err)
	}
	if bound, err := netip.ParseAddrPort(broker.Addr()); err == nil && !bound.Addr().IsLoopback() && p.cfg.MQTTUsername == "" && users == nil {
		p.log.Warn("everyone who reaches the embedded MQTT broker may publish (neither MQTT_USERNAME nor EMBEDDED_MQTT_USERS is set)", "address", broker.Addr())
	}
	p.broker = broker
	p.onStop(stageIngestion, "embedded MQTT broker", func(context.Context) error { return broker.Close() })
	return nil
}

// readMQTTUsers reads who may use the embedded MQTT broker; nil, which is everyone, if there is no file.
func readMQTTUsers(path string) (*mochi.Users, error) {
	if path == "" {
		return nil, nil //nolint:nilnil // the broker's own notion of everyone
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("EMBEDDED_MQTT_USERS: %w", err)
	}
	defer file.Close() //nolint:errcheck // nothing was written
	users, err := mochi.ReadUsers(file)
	if err != nil {
		return nil, fmt.Errorf("EMBEDDED_MQTT_USERS: %s: %w", path, err)
	}
	return users, nil
}

// servePprof serves Go's profiles, if that is asked for.
func (p *platform) servePprof() error {
	if p.cfg.PprofAddr == "" {
		return nil
	}
	listener, guarded, err := p.doors.listen("pprof", "PPROF_ADDR", p.cfg.PprofAddr)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	server := &http.Server{Handler: api.Wrap(p.log, p.doors.protect(guarded, mux)), ReadHeaderTimeout: 5 * time.Second}
	p.onStop(stageClients, "pprof", func(context.Context) error { return server.Close() })
	p.background.Go(func() {
		if err := p.doors.serve(server, listener); err != nil {
			p.fail(fmt.Errorf("pprof: serve on %s: %w", p.cfg.PprofAddr, err))
		}
	})
	return nil
}

func rootCause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

func (p *platform) port(service string) *port {
	for _, port := range p.ports {
		if port.service == service {
			return port
		}
	}
	return nil
}

// serve puts a service's API behind its port, and starts its health checks.
func (p *platform) serve(port *port, mount func(mux *http.ServeMux)) {
	mux := http.NewServeMux()
	port.monitor.Mount(mux)
	mux.Handle("GET /metrics", promhttp.HandlerFor(p.registry, promhttp.HandlerOpts{Registry: p.registry}))
	if mount != nil {
		mount(mux)
	}
	handler := api.Wrap(p.log, p.doors.protect(port.guarded, mux))
	port.handler.Store(&handler)
}

// watch starts the checks of a service.
func (p *platform) watch(port *port, checks ...health.Check) {
	for _, c := range checks {
		port.monitor.Add(shownCheck(c))
	}
	p.background.Go(func() { port.monitor.Run(p.ctx) })
}

// stopTaking closes a listener and waits for the requests in flight.
func (p *port) stopTaking(ctx context.Context) error {
	if err := p.server.Shutdown(ctx); err != nil {
		return fmt.Errorf("wait for requests in flight: %w", err)
	}
	return nil
}
