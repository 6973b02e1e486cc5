package app

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"sync/atomic"

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
	tokens, err := allTokens(a.cfg)
	if err != nil {
		return err
	}
	denied := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "cornjacket_http_denied_total",
		Help: "HTTP requests that were turned away at the door, for want of a token or as those of another site, by reason",
	}, []string{"reason"})
	p.registry.MustRegister(denied)
	a.deny = func(reason string) { denied.WithLabelValues(reason).Inc() }
	a.guard = &api.Guard{Tokens: tokens, Denied: a.deny}
	if a.cfg.TLSCertFile != "" {
		if a.tls, err = tlsconf.Server(a.cfg.TLSCertFile, a.cfg.TLSKeyFile, p.log); err != nil {
			return fmt.Errorf("TLS_CERT_FILE, TLS_KEY_FILE: %w", err)
		}
	}
	p.access = a
	return nil
}

// allTokens returns the tokens of the settings and of their file.
func allTokens(cfg config.Doors) ([]api.Token, error) {
	list := cfg.APITokens
	if cfg.APITokensFile != "" {
		text, err := os.ReadFile(cfg.APITokensFile)
		if err != nil {
			return nil, fmt.Errorf("API_TOKENS_FILE: read tokens: %w", err)
		}
		more, err := config.ParseTokensFile(string(text))
		if err == nil {
			list = append(list[:len(list):len(list)], more...)
			err = config.CheckTokens(list)
		}
		if err != nil {
			return nil, fmt.Errorf("API_TOKENS_FILE: %s: %w", cfg.APITokensFile, err)
		}
	}
	tokens := make([]api.Token, len(list))
	for i, t := range list {
		tokens[i] = api.Token{Name: t.Name, Hash: t.Hash}
		for _, scope := range t.Scopes {
			tokens[i].Scopes = append(tokens[i].Scopes, api.Scope(scope))
		}
	}
	return tokens, nil
}

// listen takes the port of a service, whose address the variable names, and reports whether its requests need tokens.
func (a *access) listen(service, variable, addr string) (l net.Listener, guarded bool, err error) {
	if l, err = net.Listen("tcp", addr); err != nil {
		return nil, false, fmt.Errorf("%s: listen on %s: %w", service, addr, rootCause(err))
	}
	guarded = a.cfg.APIAuth == config.AuthOn || a.cfg.APIAuth != config.AuthOff && !loopback(l.Addr())
	if guarded && len(a.guard.Tokens) == 0 {
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

// limitConns lets a server have at most so many connections, and closes at once what comes beyond: a client that finds
// the door shut knows more than one that waits behind it. No limit if zero.
func limitConns(server *http.Server, most int) {
	if most <= 0 {
		return
	}
	var open atomic.Int64
	server.ConnState = func(conn net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew: // nothing is read before this returns
			if open.Add(1) > int64(most) {
				_ = conn.Close() // nothing was said on it
			}
		case http.StateClosed, http.StateHijacked:
			open.Add(-1)
		}
	}
}
