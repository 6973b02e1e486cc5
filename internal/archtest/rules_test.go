package archtest

import (
	"fmt"
	"slices"
	"strings"
)

// rule says what the packages of a folder may import. The first rule whose folder matches is the package's.
type rule struct {
	folder string   // below the module; "x/..." is x and all below it, "x/*" is what stands directly below x
	own    []string // folders of this module, in the same form; a package of the rule's own folder is not implied
	third  []string // module path prefixes; nil allows all
	std    []string // standard packages (with all below them) that are refused
}

// Third parties that several folders share: no I/O of their own, or the house's instruments.
var (
	data        = []string{"github.com/google/uuid", "github.com/go-json-experiment/json"}
	instruments = append(slices.Clone(data), "go.opentelemetry.io/otel", "github.com/prometheus/client_golang", "golang.org/x/sync")
	// A folder without I/O, clock or logger. The clock's package is also that of time.Time, so it can't be refused.
	pure = []string{"os", "net", "log", "database", "syscall"}
)

func with(base []string, more ...string) []string { return append(slices.Clone(base), more...) }

// rules is the table of rooms in docs/architecture.md. The workshop (bench, compose/standin) is not in it: those are modules
// of their own, which the product can't import.
var rules = []rule{
	{folder: "event", third: with(data, "github.com/santhosh-tekuri/jsonschema"), std: pure},
	{folder: "handlers/...", own: []string{"event", "handlers"},
		third: with(data, "github.com/expr-lang/expr", "github.com/google/cel-go"), std: pure},
	{folder: "pubsub/batch", own: []string{"event"}, third: with(instruments, "github.com/ThreeDotsLabs/watermill")},
	{folder: "pubsub/*", own: []string{"event", "internal/fault", "ledger", "pubsub/batch"}}, // third parties: see drivers
	{folder: "routers", own: []string{"event", "handlers/...", "pubsub/...", "deadletter", "store", "internal/fault", "internal/health"},
		third: with(instruments, "github.com/jackc/pgx", "github.com/ThreeDotsLabs/watermill", "github.com/ThreeDotsLabs/watermill-kafka", "github.com/sony/gobreaker")},
	{folder: "store/...", own: []string{"event", "internal/fault"}, third: with(instruments, "github.com/jackc/pgx")},
	{folder: "ledger", own: []string{"event", "internal/fault"}, third: with(instruments, "github.com/jackc/pgx")},
	{folder: "deadletter", own: []string{"event", "internal/fault"}, third: with(instruments, "github.com/jackc/pgx", "github.com/ThreeDotsLabs/watermill")},
	{folder: "api/...", own: []string{"event", "store", "ledger", "deadletter", "internal/fault"}, third: with(instruments, "github.com/danielgtaylor/huma")},
	{folder: "migrations/...", third: []string{"github.com/pressly/goose"}},
	{folder: "cmd/platform", own: []string{"internal/...", "routers"}, third: with(instruments, "github.com/alecthomas/kong")},
	{folder: "internal/app/...", own: []string{"..."}},
	// Simulated devices speak MQTT as the platform does.
	{folder: "internal/simulate", own: []string{"event", "pubsub/mqtt"}},
	{folder: "internal/devstack", own: []string{"internal/proc"}},
	{folder: "internal/pgtest", own: []string{"internal/devstack", "internal/proc"}}, // starts the same server
	{folder: "internal/kafkatest", own: []string{"internal/proc"}},
	{folder: "internal/config", own: []string{"handlers", "routers"}},                                  // reads the table of services
	{folder: "internal/client", own: []string{"api", "ledger", "internal/health", "internal/tlsconf"}}, // returns the API's own types
	// What they made, the doctor looks at.
	{folder: "internal/doctor", own: []string{"event", "ledger", "internal/fault", "internal/client", "internal/config", "internal/tlsconf", "migrations", "pubsub/...", "routers"}},
	{folder: "internal/..."},
	{folder: "e2e/..."},
}

// drivers are the third parties that talk to something outside. A folder under pubsub uses one of them.
var drivers = map[string][]string{
	"MQTT client": {"github.com/eclipse/paho.golang"},
	"MQTT broker": {"github.com/mochi-mqtt/server"},
	"Postgres":    {"github.com/jackc/pgx", "github.com/lib/pq", "github.com/ThreeDotsLabs/watermill-sql"},
	"Kafka":       {"github.com/twmb/franz-go", "github.com/IBM/sarama", "github.com/ThreeDotsLabs/watermill-kafka"},
}

// pkg is what `go list -json` tells of a package.
type pkg struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

// checkImports returns one line for each import that breaks a rule.
func checkImports(module string, pkgs []pkg) []string {
	var broken []string
	for _, p := range pkgs {
		folder := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		i := slices.IndexFunc(rules, func(r rule) bool { return matches(r.folder, folder) })
		if i < 0 {
			broken = append(broken, fmt.Sprintf("%s: no rule names this folder; add it here and to the rooms in docs/architecture.md", folder))
			continue
		}
		for _, imported := range p.Imports {
			if reason := rules[i].refuses(module, imported); reason != "" {
				broken = append(broken, fmt.Sprintf("%s imports %s: %s", folder, imported, reason))
			}
		}
		broken = append(broken, checkDrivers(module, folder, p)...)
	}
	return broken
}

// refuses returns why a package of the rule's folder may not import another; empty if it may.
func (r rule) refuses(module, imported string) string {
	if own, ok := strings.CutPrefix(imported, module+"/"); ok {
		if slices.ContainsFunc(r.own, func(pattern string) bool { return matches(pattern, own) }) {
			return ""
		}
		return fmt.Sprintf("%s may import of this module only %v", r.folder, r.own)
	}
	if first, _, _ := strings.Cut(imported, "/"); !strings.Contains(first, ".") {
		if slices.ContainsFunc(r.std, func(std string) bool { return below(std, imported) }) {
			return fmt.Sprintf("%s does no I/O and no logging", r.folder)
		}
		return ""
	}
	if r.third == nil {
		return ""
	}
	if slices.ContainsFunc(r.third, func(prefix string) bool { return below(prefix, imported) }) {
		return ""
	}
	return fmt.Sprintf("%s may import of third parties only %v", r.folder, r.third)
}

// checkDrivers holds pubsub/<driver> to one driver, and to leaving its siblings alone, in tests too.
func checkDrivers(module, folder string, p pkg) []string {
	if !matches("pubsub/*", folder) {
		return nil
	}
	var broken []string
	for _, imported := range slices.Concat(p.TestImports, p.XTestImports) {
		own := strings.TrimPrefix(imported, module+"/")
		if matches("pubsub/*", own) && own != folder && own != "pubsub/batch" {
			broken = append(broken, fmt.Sprintf("%s imports %s in a test: a driver never imports a sibling", folder, imported))
		}
	}
	used := make(map[string]bool)
	for driver, prefixes := range drivers {
		for _, imported := range p.Imports {
			if slices.ContainsFunc(prefixes, func(prefix string) bool { return below(prefix, imported) }) {
				used[driver] = true
			}
		}
	}
	if len(used) > 1 {
		names := make([]string, 0, len(used))
		for name := range used {
			names = append(names, name)
		}
		slices.Sort(names)
		broken = append(broken, fmt.Sprintf("%s uses the drivers of %s: one driver a folder", folder, strings.Join(names, " and ")))
	}
	return broken
}

// matches reports whether a folder is one that the pattern names.
func matches(pattern, folder string) bool {
	if pattern == "..." {
		return true
	}
	if parent, ok := strings.CutSuffix(pattern, "/..."); ok {
		return below(parent, folder)
	}
	if parent, ok := strings.CutSuffix(pattern, "/*"); ok {
		rest, ok := strings.CutPrefix(folder, parent+"/")
		return ok && rest != "" && !strings.Contains(rest, "/")
	}
	return pattern == folder
}

// below reports whether path is prefix or stands below it.
func below(prefix, path string) bool { return path == prefix || strings.HasPrefix(path, prefix+"/") }
