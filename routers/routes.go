// Package routers holds the arrows of the flow: one file a router, this file the table of all of them, and one
// middleware stack.
package routers

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/handlers"
)

// Route is one arrow of the flow: a Watermill router that a service runs.
type Route struct {
	Name        string // of the Watermill handler
	Service     string
	From, To    string
	Handler     string // what it does with one message
	Retry       string
	DeadLetters string // the consumer in the dlq table
	HealthPort  int    // by default
}

// Routes returns every router of the platform, in the order of the flow.
func Routes() []Route {
	const (
		ours = "outage: without end; panic: RETRY_MAX"
		bus  = "bus "
	)
	return []Route{
		{
			Name: Ingestion, Service: "ingestion",
			From: "MQTT devices/+/events/+, events", To: "outbox",
			Handler: "validate, store (group commit)", Retry: ours, DeadLetters: Ingestion, HealthPort: 8080,
		},
		{
			Name: Relay, Service: "relay",
			From: "outbox", To: "event_store, " + bus + strings.Join(event.Topics(), ", "),
			Handler: "sequence, publish (pipelined)", Retry: ours, DeadLetters: Relay, HealthPort: 8086,
		},
		{
			Name: Eventhandler, Service: "eventhandler",
			From: bus + strings.Join(handlers.Topics(handlers.Projections()), ", "), To: "projections",
			Handler: "reduce, store (batched)", Retry: ours, DeadLetters: Eventhandler, HealthPort: 8084,
		},
	}
}

// Names of the routers; each is also the consumer of its dead letters.
const (
	Ingestion    = "ingestion"
	Relay        = "relay"
	Eventhandler = "eventhandler"
)

// Topics returns every topic that the platform creates: those of events and those of dead letters.
func Topics() []string {
	topics := event.Topics()
	for _, t := range event.Topics() {
		topics = append(topics, event.DeadLetterTopic(t))
	}
	return topics
}

// Print writes the table of routers.
func Print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(tw, "ROUTER\tSERVICE\tFROM\tTO\tHANDLER\tRETRY\tDEAD LETTERS\tHEALTH") // Flush reports any error
	for _, r := range Routes() {
		_, _ = fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\tdlq: %s\t:%d\n",
			r.Name, r.Service, r.From, r.To, r.Handler, r.Retry, r.DeadLetters, r.HealthPort)
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("print routers: %w", err)
	}
	return nil
}
