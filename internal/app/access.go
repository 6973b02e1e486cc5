package app

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cornjacket/platform-services/api"
	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/internal/tlsconf"
)

// access is what all HTTP ports have in common: tokens, TLS, limits of connections.
type access struct {
	cfg   config.Doors
	guard *api.Guard
	deny  func(reason string)
	tls   *tls.Config // nil: plain HTTP
	log   *slog.Logger
}

// openAccess reads tokens and certificates, before anything listens.
func (p *platform) openAccess() error {
	a := access{cfg: p.cfg.Doors, log: p.log}
	accepted, err := openTokens(a.cfg, p.log)
	if err != nil {
		return err
	}
	denied := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "cornjacket_http_denied_total",
		Help: "HTTP requests that were turned away at the door, for want of a token or as those of another site, by reason",
	}, []string{"reason"})
	p.registry.MustRegister(denied)
	a.deny = func(reason string) { denied.WithLabelValues(reason).Inc() }
	a.guard = &api.Guard{Reload: accepted.current, Denied: a.deny}
	if a.cfg.TLSCertFile != "" {
		if a.tls, err = tlsconf.Server(a.cfg.TLSCertFile, a.cfg.TLSKeyFile, p.log); err != nil {
			return fmt.Errorf("TLS_CERT_FILE, TLS_KEY_FILE: %w", err)
		}
	}
	p.access = a
	return nil
}

// listen takes the port of a service, whose address the variable names, and reports whether its requests need tokens.
func (a *access) listen(service, variable, addr string) (l net.Listener, guarded bool, err error) {
	if l, err = net.Listen("tcp", addr); err != nil {
		return nil, false, fmt.Errorf("%s: listen on %s: %w", service, addr, rootCause(err))
	}
	guarded = a.cfg.APIAuth == config.AuthOn || a.cfg.APIAuth != config.AuthOff && !loopback(l.Addr())
	if guarded && len(a.guard.Reload()) == 0 {
		err := fmt.Errorf("API_TOKENS: is empty, and %s=%s is not loopback, where requests need a token; set API_TOKENS (platform token makes one), or API_AUTH=off to let everyone in",
			variable, addr)
		if a.cfg.APIAuth == config.AuthOn {
			err = errors.New("API_TOKENS: there is no token, but API_AUTH=on asks for one on every port")
		}
		return nil, false, errors.Join(err, l.Close())
	}
	if !guarded && !loopback(l.Addr()) {
		a.log.Warn("everyone who reaches this port is let in, without a token (API_AUTH=off)", "service", service, "address", addr)
	}
	return l, guarded, nil
}

func loopback(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// protect puts before a port what refuses other sites, and the guard if requests need tokens. Names are looked at where
// nothing else tells a browser's page from its user: on loopback, and without tokens.
func (a *access) protect(l net.Listener, addr string, guarded bool, next http.Handler) http.Handler {
	origins := api.Origins{
		Hosts:     a.cfg.AllowedHosts,
		CheckHost: len(a.cfg.AllowedHosts) > 0 || !guarded && loopback(l.Addr()),
		Denied:    a.deny,
	}
	if own, _, err := net.SplitHostPort(addr); err == nil && own != "" {
		origins.Hosts = append(slices.Clone(origins.Hosts), own)
	}
	if guarded {
		next = a.guard.Protect(next)
	}
	return origins.Protect(next)
}

// serve answers on a listener until the server is shut down or closed, which is no error.
func (a *access) serve(server *http.Server, l net.Listener) error {
	limitConns(server, a.cfg.MaxConnections)
	var err error
	if a.tls == nil {
		err = server.Serve(l)
	} else {
		server.TLSConfig = a.tls.Clone() // HTTP/2 is added to it
		err = server.ServeTLS(l, "", "")
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
