// Package devstack runs what the platform needs from others inside or beside its own process, so that `platform dev`
// works on a bare machine: PostgreSQL as a child process and a broker with the Kafka API. The MQTT broker is package
// pubsub/mochi.
package devstack

import (
	"errors"
	"fmt"
	"net"
)

// Service is one address that is about to be listened on.
type Service struct {
	Name string // as the user knows it, such as "query API"
	Addr string // host:port
}

// CheckPorts returns which of the addresses can't be listened on: one error for each, naming service, address and
// cause, joined. It is for a friendly word before anything is started, not a reservation. Ports that are 0 pass.
func CheckPorts(services []Service) error {
	var errs []error
	taken := make(map[string]string)
	for _, s := range services {
		if _, port, err := net.SplitHostPort(s.Addr); err == nil && port == "0" {
			continue
		}
		if other, ok := taken[s.Addr]; ok {
			errs = append(errs, fmt.Errorf("%s: listen on %s: the %s has the same address", s.Name, s.Addr, other))
			continue
		}
		ln, err := net.Listen("tcp", s.Addr)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: listen on %s: %w", s.Name, s.Addr, cause(err)))
			continue
		}
		taken[s.Addr] = s.Name
		defer func() { _ = ln.Close() }() // nothing was ever sent on it
	}
	return errors.Join(errs...)
}

// cause strips what a network error repeats of the address.
func cause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}
