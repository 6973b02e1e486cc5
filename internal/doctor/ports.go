package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/internal/tlsconf"
	"github.com/cornjacket/platform-services/ledger"
	"github.com/cornjacket/platform-services/routers"
)

// largest is more than any answer needs, in bytes.
const largest = 1 << 20

func ports(s config.Doctor) []examination {
	var all []examination
	for _, service := range s.Services {
		all = append(all, examination{area: "health", check: service, look: func(ctx context.Context) []Finding {
			return []Finding{checkHealth(ctx, s, service, s.Of(service))}
		}})
	}
	if slices.Contains(s.Services, routers.Query) {
		all = append(all, examination{area: "ledger", check: "balance", look: func(ctx context.Context) []Finding {
			return checkLedger(ctx, s, s.Of(routers.Query))
		}})
	}
	return all
}

// get asks a service. It returns the body with any status.
func get(ctx context.Context, s config.Doctor, addr, path string) (int, []byte, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return 0, nil, fmt.Errorf("read address: %w", err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() { // of a listener on all addresses
		host = "localhost"
	}
	speak, scheme, err := transport(s)
	if err != nil {
		return 0, nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+net.JoinHostPort(host, port)+path, http.NoBody)
	if err != nil {
		return 0, nil, fmt.Errorf("make request: %w", err)
	}
	if s.APIToken != "" {
		request.Header.Set("Authorization", "Bearer "+s.APIToken)
	}
	response, err := (&http.Client{Transport: speak}).Do(request)
	if err != nil {
		if u := (*url.Error)(nil); errors.As(err, &u) {
			err = u.Err // the address is told anyway
		}
		return 0, nil, err
	}
	defer response.Body.Close() //nolint:errcheck // nothing was written
	body, err := io.ReadAll(io.LimitReader(response.Body, largest))
	if err != nil {
		return 0, nil, fmt.Errorf("read answer: %w", err)
	}
	return response.StatusCode, body, nil
}

// transport speaks with the services as they are set up. It keeps no connections and uses no proxy.
func transport(s config.Doctor) (t *http.Transport, scheme string, err error) {
	t = &http.Transport{DisableKeepAlives: true}
	switch {
	case s.CAFile != "":
		t.TLSClientConfig, err = tlsconf.Client(s.CAFile)
	case s.CertFile != "":
		t.TLSClientConfig, err = tlsconf.Pinned(s.CertFile)
	default:
		return t, "http", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("read certificates: %w", err)
	}
	return t, "https", nil
}

func checkHealth(ctx context.Context, s config.Doctor, service, addr string) Finding {
	a := about("health")
	status, body, err := get(ctx, s, addr, "/health")
	if err != nil {
		return a.fail(service, "start it, or correct its address", "%s: %s", addr, reason(ctx, err))
	}
	var h struct {
		Service string                     `json:"service"`
		Failing []string                   `json:"failing"`
		Checks  map[string]json.RawMessage `json:"checks"`
	}
	if err := json.Unmarshal(body, &h); err != nil || h.Service == "" {
		return a.fail(service, "something else has this port", "%s answered %d, which is no health answer", addr, status)
	}
	if h.Service != service {
		return a.fail(service, "correct the addresses", "at %s is %s", addr, h.Service)
	}
	if status != http.StatusOK {
		var why []string
		for _, name := range h.Failing {
			var check struct{ Error string }
			_ = json.Unmarshal(h.Checks[name], &check) // then the name has to do
			why = append(why, strings.TrimSuffix(name+": "+check.Error, ": "))
		}
		return a.fail(service, "mend what the check names; it becomes ready by itself", "%s", strings.Join(why, "; "))
	}
	return a.ok(service, "ready at %s", addr)
}

func checkLedger(ctx context.Context, s config.Doctor, addr string) []Finding {
	a := about("ledger")
	status, body, err := get(ctx, s, addr, "/api/v1/ledger")
	if err != nil {
		return []Finding{a.fail("balance", "start the query service", "%s: %s", addr, reason(ctx, err))}
	}
	if status == http.StatusUnauthorized || status == http.StatusForbidden {
		return []Finding{a.fail("balance", "give a token with the scope read in API_TOKEN (platform token makes one)", "%s answered %d", addr, status)}
	}
	var l ledger.Ledger
	if err := json.Unmarshal(body, &l); err != nil || status != http.StatusOK {
		return []Finding{a.fail("balance", "see the health of query", "%s answered %d", addr, status)}
	}
	balance := a.ok("balance", "%d accepted, %d in the log, %d published, all applied or dead letters", l.Accepted, l.Sequenced, l.Published)
	if !l.Balanced {
		var where []string
		surplus := false
		for _, m := range l.Missing {
			where = append(where, fmt.Sprintf("%d at %s (%s)", m.Events, m.Stage, m.Detail))
			surplus = surplus || m.Events < 0
		}
		balance = a.warn("balance", "look again: while events come in some are on their way; if the same ones stay, see the health of that stage",
			"%s", strings.Join(where, "; "))
		if surplus {
			balance.Status, balance.Advice = Fail, "events were applied more than once, or the event log lost some: compare event_store with projections"
		}
	}
	return append([]Finding{balance}, letters(a, l)...)
}

func letters(a about, l ledger.Ledger) []Finding {
	var waiting []string
	for _, consumer := range slices.Sorted(maps.Keys(l.DeadLettered)) {
		if n := l.DeadLettered[consumer].Pending; n > 0 {
			waiting = append(waiting, fmt.Sprintf("%d of %s", n, consumer))
		}
	}
	if len(waiting) == 0 {
		return []Finding{a.ok("dead letters", "none is waiting")}
	}
	return []Finding{a.warn("dead letters", "replay or discard them", "%s", strings.Join(waiting, ", "))}
}
