package routers

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/handlers"
)

// Service is one row of the table of services. Settings, ports, migrations, wiring, doctor, dlq, routes and the banner
// of the development stack are read from it.
type Service struct {
	Name      string // as in SERVICES
	Title     string // for people
	Addresses []Address
	Database  Database
	Routes    []Route
}

// Address is a setting of what a service listens on.
type Address struct {
	Variable string
	Port     int    // by default, on loopback
	Serves   string // for help texts
	Health   bool   // whether GET /health is answered here; true for one address of a service
}

// Default returns the address as host:port when nothing is set.
func (a Address) Default() string { return fmt.Sprintf("127.0.0.1:%d", a.Port) }

// Database is the setting of a PostgreSQL database. Services that share a setting have the same Database.
type Database struct {
	Variable string
	Of       string // whose it is, for help texts
	// Migrations are the folders that are applied to it, in order; none if it is only read.
	Migrations []string
}

// Route is one arrow of the flow: a Watermill router that a service runs.
type Route struct {
	Name     string // of the router, and of the consumer in the dlq table
	Service  string // that runs it; set by [Routes]
	From, To string // From is set by [Routes] for a consumer of the bus
	Does     string // with one message
	// Topics are those of the bus that the router consumes as Group; both are empty for other sources.
	Topics []string
	Group  string
	Policy Policy
	// DeadLetters is the service on whose health port the dead letters are served.
	DeadLetters string
}

// Names of the services. Those of routers, which are the names of their consumers too, are the same today.
const (
	Ingestion    = "ingestion"
	Relay        = "relay"
	Eventhandler = "eventhandler"
	Query        = "query"
)

// Services returns the table, in the order of the flow. It is the caller's.
func Services() []Service {
	ingestion := Database{Variable: "INGESTION_DATABASE_URL", Of: "of ingestion and the relay", Migrations: []string{"ingestion"}}
	return []Service{
		{
			Name: Ingestion, Title: "Ingestion", Database: ingestion,
			Addresses: []Address{{Variable: "INGESTION_ADDR", Port: 8080, Serves: "HTTP API and health", Health: true}},
			Routes: []Route{{
				Name: Ingestion, From: "MQTT devices/+/events/+, events", To: "outbox",
				Does: "validate, store (group commit)", Policy: Policy{Outage: Wait}, DeadLetters: Ingestion,
			}},
		},
		{
			Name: Relay, Title: "Outbox relay", Database: ingestion,
			Addresses: []Address{{Variable: "RELAY_HEALTH_ADDR", Port: 8086, Serves: "health", Health: true}},
			Routes: []Route{{
				Name: Relay, From: "outbox", To: "event_store, " + fromBus(event.Topics()),
				Does: "sequence, publish (pipelined)", Policy: Policy{Outage: Wait}, DeadLetters: Ingestion,
			}},
		},
		{
			Name: Eventhandler, Title: "Event handler",
			Database:  Database{Variable: "EVENTHANDLER_DATABASE_URL", Of: "of the event handler", Migrations: []string{"eventhandler"}},
			Addresses: []Address{{Variable: "EVENTHANDLER_HEALTH_ADDR", Port: 8084, Serves: "health and dead letters", Health: true}},
			Routes: []Route{{
				Name: Eventhandler, Topics: handlers.Topics(handlers.Projections()), Group: Eventhandler, To: "projections",
				Does: "reduce, store (batched)", Policy: Policy{Outage: Wait}, DeadLetters: Eventhandler,
			}},
		},
		{
			Name: Query, Title: "Query", Database: Database{Variable: "QUERY_DATABASE_URL", Of: "that the query API reads"},
			Addresses: []Address{{Variable: "QUERY_ADDR", Port: 8081, Serves: "HTTP API and health", Health: true}},
		},
	}
}

// ServiceNames returns the names of all services, in the order of the flow.
func ServiceNames() []string {
	var names []string
	for _, s := range Services() {
		names = append(names, s.Name)
	}
	return names
}

// ServiceOf returns the row of a service. A name that is not in the table is a bug.
func ServiceOf(name string) Service {
	return one(Services(), "service", name, func(s Service) string { return s.Name })
}

// Routes returns every router of the platform, in the order of the flow.
func Routes() []Route {
	var routes []Route
	for _, s := range Services() {
		for _, r := range s.Routes {
			r.Service = s.Name
			if len(r.Topics) > 0 {
				r.From = fromBus(r.Topics)
			}
			routes = append(routes, r)
		}
	}
	return routes
}

// RouteOf returns the row of a router. A name that is not in the table is a bug.
func RouteOf(name string) Route {
	return one(Routes(), "router", name, func(r Route) string { return r.Name })
}

func one[T any](rows []T, what, name string, nameOf func(T) string) T {
	for _, row := range rows {
		if nameOf(row) == name {
			return row
		}
	}
	panic(fmt.Sprintf("the table has no %s %q", what, name))
}

func fromBus(topics []string) string { return "bus " + strings.Join(topics, ", ") }

// HealthAddress returns the address on which a service answers GET /health.
func (s *Service) HealthAddress() Address {
	return s.Addresses[slices.IndexFunc(s.Addresses, func(a Address) bool { return a.Health })]
}

// Databases returns the settings of all databases, each once, in the order of the flow.
func Databases() []Database {
	var all []Database
	for _, s := range Services() {
		if !slices.ContainsFunc(all, func(d Database) bool { return d.Variable == s.Database.Variable }) {
			all = append(all, s.Database)
		}
	}
	return all
}

// UsersOf returns the services whose database a setting names.
func UsersOf(d Database) []string {
	var names []string
	for _, s := range Services() {
		if s.Database.Variable == d.Variable {
			names = append(names, s.Name)
		}
	}
	return names
}

// DeadLetterConsumers returns the consumers whose dead letters a service serves.
func DeadLetterConsumers(service string) []string {
	var names []string
	for _, r := range Routes() {
		if r.DeadLetters == service {
			names = append(names, r.Name)
		}
	}
	return names
}

// DeadLetterServices returns the services that serve dead letters, in the order of the flow.
func DeadLetterServices() []string {
	return slices.DeleteFunc(ServiceNames(), func(name string) bool { return len(DeadLetterConsumers(name)) == 0 })
}

// Topics returns every topic that the platform creates: those of events and those of dead letters.
func Topics() []string {
	topics := event.Topics()
	for _, t := range event.Topics() {
		topics = append(topics, event.DeadLetterTopic(t))
	}
	return topics
}
