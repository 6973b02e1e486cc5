package doctor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/client"
	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/ledger"
	"github.com/cornjacket/platform-services/routers"
)

func ports(s config.Doctor) []examination {
	var all []examination
	for _, service := range s.Services {
		all = append(all, examination{area: "health", check: service, look: func(ctx context.Context) []Finding {
			finding, mqtt := checkHealth(ctx, s, service)
			if service != routers.Ingestion || finding.Status != OK {
				return []Finding{finding}
			}
			return []Finding{finding, clocks(mqtt)}
		}})
	}
	if slices.Contains(s.Services, routers.Query) {
		all = append(all, examination{area: "ledger", check: "balance", look: func(ctx context.Context) []Finding {
			return checkLedger(ctx, s)
		}})
	}
	return all
}

// ask returns a service, to be asked as the platform is set up.
func ask(s config.Doctor, service string) (*client.Service, error) {
	c, err := client.New(client.Config{CertFile: s.CertFile, CAFile: s.CAFile, Token: s.APIToken})
	if err != nil {
		return nil, err
	}
	return c.Service(service, s.Of(service)), nil
}

// checkHealth also returns what the service says of its MQTT source, if it has one.
func checkHealth(ctx context.Context, s config.Doctor, service string) (Finding, map[string]any) {
	a := about("health")
	at, err := ask(s, service)
	if err != nil {
		return a.fail(service, "correct the setting", "%v", err), nil
	}
	h, answer, err := at.Health(ctx)
	switch {
	case answer.Status == 0:
		return a.fail(service, "start it, or correct its address", "%s: %s", at.Addr, reason(ctx, client.Cause(err))), h.Checks["mqtt"]
	case err != nil || h.Service == "":
		return a.fail(service, "something else has this port", "%s answered %d, which is no health answer", at.Addr, answer.Status), h.Checks["mqtt"]
	case h.Service != service:
		return a.fail(service, "correct the addresses", "at %s is %s", at.Addr, h.Service), h.Checks["mqtt"]
	case answer.Status != http.StatusOK:
		return a.fail(service, "mend what the check names; it becomes ready by itself", "%s", strings.Join(client.Failing(h), "; ")), h.Checks["mqtt"]
	}
	return a.ok(service, "ready at %s", at.Addr), h.Checks["mqtt"]
}

// clocks tells of devices whose clocks are not believed.
func clocks(mqtt map[string]any) Finding {
	a := about("mqtt")
	ahead, _ := mqtt["clock_"+event.ClockAhead].(float64)
	unset, _ := mqtt["clock_"+event.ClockUnset].(float64)
	if ahead+unset == 0 {
		return a.ok("device clocks", "all believed since ingestion started")
	}
	return a.warn("device clocks", "set the clocks of those devices (events with clock in their metadata), or see EVENT_TIME_MAX_AHEAD and EVENT_TIME_MIN",
		"since ingestion started %.0f events were too far ahead and %.0f too old, and have the time at which they came", ahead, unset)
}

func checkLedger(ctx context.Context, s config.Doctor) []Finding {
	a := about("ledger")
	at, err := ask(s, routers.Query)
	if err != nil {
		return []Finding{a.fail("balance", "correct the setting", "%v", err)}
	}
	l, err := at.Ledger(ctx)
	var none *client.NoAnswerError
	switch status := client.StatusOf(err); {
	case errors.As(err, &none):
		return []Finding{a.fail("balance", "start the query service", "%s: %s", at.Addr, reason(ctx, none.Err))}
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return []Finding{a.fail("balance", "give a token with the scope read in API_TOKEN (platform token makes one)", "%s answered %d", at.Addr, status)}
	case err != nil:
		return []Finding{a.fail("balance", "see the health of query", "%v", err)}
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
