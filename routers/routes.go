// Package routers holds the arrows of the flow: one file a router, the table of services and routers that drives the
// program (table.go), and one middleware stack.
package routers

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// HealthPort returns the port on which the service of a router answers GET /health by default.
func (r *Route) HealthPort() int {
	s := ServiceOf(r.Service)
	return s.HealthAddress().Port
}

// Print writes the table of routers.
func Print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(tw, "ROUTER\tSERVICE\tFROM\tTO\tHANDLER\tRETRY\tDEAD LETTERS\tHEALTH") // Flush reports any error
	for _, r := range Routes() {
		_, _ = fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\tdlq: %s\t:%d\n",
			r.Name, r.Service, r.From, r.To, r.Does, r.Policy, r.Name, r.HealthPort())
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("print routers: %w", err)
	}
	return nil
}
