package kafka

import (
	"crypto/tls"
	"fmt"
	"log/slog"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// Security says how brokers are spoken to. The zero value is neither TLS nor a login.
type Security struct {
	TLS *tls.Config // plain text if nil
	// Mechanism is one of the names that SASL has for it (IANA): "plain", "scram-sha-256" or "scram-sha-512", in small
	// letters; no login if empty. PLAIN without TLS shows the password to the network.
	Mechanism          string
	Username, Password string
}

// SASL returns the mechanism, nil for no login. The error is an unknown mechanism.
func (s Security) SASL() (sasl.Mechanism, error) {
	switch s.Mechanism {
	case "":
		return nil, nil
	case "plain":
		return plain.Auth{User: s.Username, Pass: s.Password}.AsMechanism(), nil
	case "scram-sha-256":
		return scram.Auth{User: s.Username, Pass: s.Password}.AsSha256Mechanism(), nil
	case "scram-sha-512":
		return scram.Auth{User: s.Username, Pass: s.Password}.AsSha512Mechanism(), nil
	default:
		return nil, fmt.Errorf("SASL mechanism must be plain, scram-sha-256 or scram-sha-512, is %q", s.Mechanism)
	}
}

// options returns the options of a client.
func (s Security) options() ([]kgo.Opt, error) {
	var opts []kgo.Opt
	if s.TLS != nil {
		opts = append(opts, kgo.DialTLSConfig(s.TLS))
	}
	mechanism, err := s.SASL()
	if err != nil {
		return nil, err
	}
	if mechanism != nil {
		opts = append(opts, kgo.SASL(mechanism))
	}
	return opts, nil
}

// NewSecureClient is [NewClient] for brokers that are spoken to as s says.
func NewSecureClient(brokers []string, s Security, log *slog.Logger, opts ...kgo.Opt) (*kgo.Client, error) {
	secure, err := s.options()
	if err != nil {
		return nil, err
	}
	return NewClient(brokers, log, append(secure, opts...)...)
}
