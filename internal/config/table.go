package config

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/cornjacket/platform-services/routers"
)

// Values are the values of settings that the table of services names, by variable. They are not changed in place.
type Values map[string]*string

// Get returns the value of a variable, empty if the table does not name it.
func (v Values) Get(variable string) string {
	if value := v[variable]; value != nil {
		return *value
	}
	return ""
}

// With returns the values with one of them replaced.
func (v Values) With(variable, value string) Values {
	v = maps.Clone(v)
	v[variable] = &value
	return v
}

// Addresses are what the platform listens on, each as host:port.
type Addresses struct {
	Listen    Values `type:"hostport" table:"addresses"`
	PprofAddr string `type:"hostport" var:"PPROF_ADDR" placeholder:"HOST:PORT" help:"Go profiles (net/http/pprof); none if empty. They show what is in memory: keep it on loopback."`
}

// Of returns the address on which a service answers GET /health.
func (a *Addresses) Of(service string) string {
	row := routers.ServiceOf(service)
	return a.Listen.Get(row.HealthAddress().Variable)
}

// EveryAddress returns addresses that are all the same, such as one with port 0.
func EveryAddress(address string) Addresses {
	values := make(Values)
	for _, s := range routers.Services() {
		for _, a := range s.Addresses {
			values[a.Variable] = &address
		}
	}
	return Addresses{Listen: values}
}

// Databases are the PostgreSQL databases of the services, each as a URL. They may be the same database.
type Databases struct {
	URLs Values `type:"postgresurl" table:"databases"`
}

// DatabaseOf returns the URL of the database of a service.
func (d *Databases) DatabaseOf(service string) string {
	return d.URLs.Get(routers.ServiceOf(service).Database.Variable)
}

// OneDatabase returns the settings of services that share a database.
func OneDatabase(url string) Databases {
	values := make(Values)
	for _, d := range routers.Databases() {
		values[d.Variable] = &url
	}
	return Databases{URLs: values}
}

// row is a setting that stands in the table of services.
type row struct{ variable, standard, help string }

// tables are the settings that a field with a table tag stands for, in the order of their help.
func tables() map[string][]row {
	var addresses, databases []row
	services := routers.Services()
	slices.SortStableFunc(services, func(a, b routers.Service) int { return a.HealthAddress().Port - b.HealthAddress().Port })
	for _, s := range services {
		for _, a := range s.Addresses {
			addresses = append(addresses, row{a.Variable, a.Default(), s.Title + ": " + a.Serves + "."})
		}
	}
	for _, d := range routers.Databases() {
		databases = append(databases, row{d.Variable, "${database_url}", "Database " + d.Of + ", a PostgreSQL URL."})
	}
	return map[string][]row{"addresses": addresses, "databases": databases}
}

// expandTables replaces each flag of a field with a table tag by the flags that it stands for.
func expandTables(node *kong.Node) error {
	all := tables()
	return kong.Visit(node, func(v kong.Visitable, next kong.Next) error {
		if n, ok := v.(*kong.Node); ok {
			var flags []*kong.Flag
			for _, flag := range n.Flags {
				name := flag.Tag.Get(tableTag)
				if name == "" {
					flags = append(flags, flag)
					continue
				}
				rows, ok := all[name]
				if !ok {
					return fmt.Errorf("there is no table %q of settings", name)
				}
				flags = append(flags, expand(flag, rows)...)
			}
			n.Flags = flags
		}
		return next(nil)
	})
}

const tableTag = "table"

// expand returns a flag for each row, with the kind and the group of the one for all, and gives that one's field the
// values.
func expand(all *kong.Flag, rows []row) []*kong.Flag {
	values := make(Values, len(rows))
	flags := make([]*kong.Flag, len(rows))
	for i, r := range rows {
		value, tag, target := *all.Value, *all.Tag, new(string)
		values[r.variable] = target
		flag := *all
		flag.Value = &value
		value.Flag, value.Tag, value.Target = &flag, &tag, reflect.ValueOf(target).Elem()
		value.Name = strings.ToLower(strings.ReplaceAll(r.variable, "_", "-"))
		value.Help, value.OrigHelp, value.Default, value.HasDefault = r.help, r.help, r.standard, true
		flags[i] = &flag
	}
	all.Target.Set(reflect.ValueOf(values))
	return flags
}

// parseServices reads a list of services: known ones, each once, in the order of the flow.
func parseServices(s string) ([]string, error) {
	return chooseFrom(routers.ServiceNames(), "service", s)
}

// parseDeadLetterServices reads a list of services that serve dead letters. A consumer whose dead letters another
// service serves stands for that one.
func parseDeadLetterServices(s string) ([]string, error) {
	var given []string
	for _, name := range splitList(s) {
		if at := DeskOf(name); at != "" {
			name = at
		}
		given = append(given, name)
	}
	return chooseFrom(routers.DeadLetterServices(), "service with dead letters", strings.Join(given, ","))
}

// chooseFrom reads a list of known names, and returns each once in their order.
func chooseFrom(known []string, what, s string) ([]string, error) {
	takes := "a comma-separated list of: " + strings.Join(known, ", ")
	given := splitList(s)
	if len(given) == 0 {
		return nil, &Error{Value: s, Problem: "names no service", Takes: takes}
	}
	for _, name := range given {
		if !slices.Contains(known, name) {
			return nil, &Error{Value: name, Problem: "is not a " + what, Takes: takes}
		}
	}
	return slices.DeleteFunc(known, func(name string) bool { return !slices.Contains(given, name) }), nil
}

// DeskOf returns the service that serves the dead letters of a consumer, empty if there is no such consumer.
func DeskOf(consumer string) string {
	for _, r := range routers.Routes() {
		if r.Name == consumer {
			return r.DeadLetters
		}
	}
	return ""
}

func consumers() []string {
	var names []string
	for _, r := range routers.Routes() {
		names = append(names, r.Name)
	}
	return names
}

// deadLetterServices lists the services that serve dead letters, each with those that it serves them for.
func deadLetterServices() string {
	var list []string
	for _, name := range routers.DeadLetterServices() {
		others := slices.DeleteFunc(routers.DeadLetterConsumers(name), func(c string) bool { return c == name })
		if len(others) > 0 {
			name += " (for the " + orList(others, "and") + " too)"
		}
		list = append(list, name)
	}
	return orList(list, "and")
}

// orList joins names as in a sentence.
func orList(names []string, word string) string {
	last := len(names) - 1
	if last < 1 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:last], ", ") + " " + word + " " + names[last]
}
