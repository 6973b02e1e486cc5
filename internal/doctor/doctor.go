// Package doctor checks a platform from outside, with the settings that the platform itself runs with: its databases,
// bus and MQTT broker, the health of its services, and its ledger. It changes nothing.
package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/routers"
)

// Status of a finding.
const (
	OK   = "ok"
	Warn = "warn" // it works, but not as well or as safely as it should
	Fail = "fail" // it does not work, or loses events
)

// Finding is the outcome of one check.
type Finding struct {
	Area   string `json:"area"` // settings, database, bus, mqtt, health, ledger
	Check  string `json:"check"`
	Status string `json:"status"`
	Detail string `json:"detail"`
	Advice string `json:"advice,omitempty"` // what to do about it
}

// Report is all that was found.
type Report struct {
	Status   string    `json:"status"` // the worst of them
	Findings []Finding `json:"checks"`
}

// examination is one area to look at. It returns soon after its context ends.
type examination struct {
	area, check string // for the finding when it does not
	look        func(ctx context.Context) []Finding
}

// Run checks everything and prints what it has found. The error says how many checks failed.
func Run(ctx context.Context, settings config.Doctor, out io.Writer) error {
	report := Examine(ctx, settings)
	if err := report.print(out, settings.JSON); err != nil {
		return fmt.Errorf("print findings: %w", err)
	}
	if n := report.count(Fail); n > 0 {
		return fmt.Errorf("%d of %d checks failed", n, len(report.Findings))
	}
	return nil
}

// Examine checks everything at once. A dependency that hangs costs the time of one check.
func Examine(ctx context.Context, settings config.Doctor) Report {
	var all []examination
	all = append(all, examination{area: "settings", check: "settings", look: func(context.Context) []Finding { return checkSettings(settings) }})
	all = append(all, databases(settings)...)
	all = append(all, examination{area: "bus", check: "brokers", look: func(ctx context.Context) []Finding { return checkBus(ctx, settings) }})
	if slices.Contains(settings.Services, routers.Ingestion) {
		all = append(all, examination{area: "mqtt", check: "connect", look: func(ctx context.Context) []Finding { return checkMQTT(ctx, settings) }})
	}
	all = append(all, ports(settings)...)
	found := make([][]Finding, len(all))
	var looking sync.WaitGroup
	for i, e := range all {
		looking.Go(func() { found[i] = e.within(ctx, settings.Timeout) })
	}
	looking.Wait()
	report := Report{Status: OK, Findings: slices.Concat(found...)}
	for _, status := range []string{Warn, Fail} {
		if report.count(status) > 0 {
			report.Status = status
		}
	}
	return report
}

// within looks for as long as it may. What does not return in time is left behind: the process ends soon.
func (e examination) within(ctx context.Context, timeout time.Duration) []Finding {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	done := make(chan []Finding, 1)
	go func() { done <- e.look(ctx) }()
	const grace = time.Second // for what it is about to say
	select {
	case found := <-done:
		return found
	case <-time.After(timeout + grace):
		return []Finding{{
			Area: e.area, Check: e.check, Status: Fail, Detail: fmt.Sprintf("no answer within %s", timeout),
			Advice: "it hangs, or is too slow for --timeout",
		}}
	}
}

func (r *Report) count(status string) (n int) {
	for _, f := range r.Findings {
		if f.Status == status {
			n++
		}
	}
	return n
}

func (r *Report) print(out io.Writer, asJSON bool) error {
	if asJSON {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		encoder.SetEscapeHTML(false)
		return encoder.Encode(r)
	}
	var b strings.Builder
	width := 0
	for _, f := range r.Findings {
		width = max(width, len(f.Check))
	}
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "%-5s %-9s %-*s  %s\n", f.Status, f.Area, width, f.Check, f.Detail)
		if f.Advice != "" && f.Status != OK {
			fmt.Fprintf(&b, "%-5s %-9s %-*s  -> %s\n", "", "", width, "", f.Advice)
		}
	}
	fmt.Fprintf(&b, "\n%d ok, %d warn, %d fail\n", r.count(OK), r.count(Warn), r.count(Fail))
	_, err := io.WriteString(out, b.String())
	return err
}

// about makes findings of one area.
type about string

func (a about) ok(check, detail string, args ...any) Finding {
	return Finding{Area: string(a), Check: check, Status: OK, Detail: fmt.Sprintf(detail, args...)}
}

func (a about) warn(check, advice, detail string, args ...any) Finding {
	return Finding{Area: string(a), Check: check, Status: Warn, Advice: advice, Detail: fmt.Sprintf(detail, args...)}
}

func (a about) fail(check, advice, detail string, args ...any) Finding {
	return Finding{Area: string(a), Check: check, Status: Fail, Advice: advice, Detail: fmt.Sprintf(detail, args...)}
}

// reason is an error in one line, by its cause: drivers tell of each address that they have tried.
func reason(ctx context.Context, err error) string {
	if ctx.Err() != nil {
		return "does not answer"
	}
	if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) {
		return pg.Message
	}
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		err = op.Err
	}
	return strings.Join(strings.Fields(err.Error()), " ")
}

// checkSettings tells of settings that are right one by one and wrong together. Those that are malformed have ended the
// command before.
func checkSettings(s config.Doctor) []Finding {
	a := about("settings")
	found := []Finding{a.ok("settings", "well-formed; services %s", strings.Join(s.Services, ", "))}
	taken := map[string]string{}
	for _, service := range s.Services {
		for _, address := range routers.ServiceOf(service).Addresses {
			addr := s.Listen.Get(address.Variable)
			if other, ok := taken[addr]; ok && !strings.HasSuffix(addr, ":0") {
				found = append(found, a.fail("addresses", "give each service a port of its own", "%s and %s have the same address %s", other, service, addr))
			}
			taken[addr] = service
		}
	}
	return found
}
