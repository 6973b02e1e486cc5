package api

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// Origins refuse what web pages of other sites make a browser send. It must stand inside of [Wrap].
type Origins struct {
	// Hosts are the names under which a port may be asked, beside loopback's and IP addresses. A host that begins with a
	// dot stands for all names that end with it.
	Hosts []string
	// CheckHost says whether other names are refused. A page whose name its owner lets point to 127.0.0.1 (DNS rebinding)
	// is of the same origin as the port, for its browser; only the name tells.
	CheckHost bool
	// Denied is told of each request that was turned away: "cross-site", "foreign host". It is called concurrently.
	Denied func(reason string)
}

// Protect puts the check before a port.
func (o *Origins) Protect(next http.Handler) http.Handler {
	sites := http.NewCrossOriginProtection()
	sites.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.Denied("cross-site")
		writeProblem(w, r, newProblem(http.StatusForbidden, "requests that change something are not taken from the pages of another site"))
	}))
	next = sites.Handler(next)
	if !o.CheckHost {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !o.knows(r.Host) {
			o.Denied("foreign host")
			writeProblem(w, r, mistake(http.StatusMisdirectedRequest, "Host", "must be a name of this port: localhost, an IP address, or one of ALLOWED_HOSTS"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// knows reports whether a Host header is no foreign name. An IP address is never one: no browser asks a name server for
// it. HTTP/1.0 does without the header, and no browser does.
func (o *Origins) knows(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil || host == "" {
		return true
	}
	return host == "localhost" || strings.HasSuffix(host, ".localhost") ||
		slices.ContainsFunc(o.Hosts, func(known string) bool {
			return strings.EqualFold(host, known) || strings.HasPrefix(known, ".") && strings.HasSuffix(host, strings.ToLower(known))
		})
}
