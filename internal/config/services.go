package config

import (
	"slices"
	"strings"
)

// Names of the services.
const (
	Ingestion    = "ingestion"
	Relay        = "relay"
	Eventhandler = "eventhandler"
	Query        = "query"
)

// Services returns the names of all services, in the order of the flow.
func Services() []string { return []string{Ingestion, Relay, Eventhandler, Query} }

// Of returns the address that a service answers GET /health on, empty if it is none of [Services].
func (a *Addresses) Of(service string) string {
	switch service {
	case Ingestion:
		return a.IngestionAddr
	case Relay:
		return a.RelayHealthAddr
	case Eventhandler:
		return a.EventhandlerHealthAddr
	case Query:
		return a.QueryAddr
	default:
		return ""
	}
}

// AddrVariable returns the variable of the address that [Addresses.Of] returns.
func AddrVariable(service string) string {
	switch service {
	case Ingestion:
		return "INGESTION_ADDR"
	case Relay:
		return "RELAY_HEALTH_ADDR"
	case Eventhandler:
		return "EVENTHANDLER_HEALTH_ADDR"
	case Query:
		return "QUERY_ADDR"
	default:
		return ""
	}
}

// parseServices reads a list of services: known ones, each once, in the order of the flow.
func parseServices(s string) ([]string, error) {
	known := Services()
	takes := "a comma-separated list of: " + strings.Join(known, ", ")
	given := splitList(s)
	if len(given) == 0 {
		return nil, &Error{Value: s, Problem: "names no service", Takes: takes}
	}
	for _, name := range given {
		if !slices.Contains(known, name) {
			return nil, &Error{Value: name, Problem: "is not a service", Takes: takes}
		}
	}
	return slices.DeleteFunc(known, func(name string) bool { return !slices.Contains(given, name) }), nil
}
