package config

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// When requests need tokens; see [Doors].
const (
	AuthAuto = "auto"
	AuthOn   = "on"
	AuthOff  = "off"
)

// Doors are the access to the HTTP ports: tokens, TLS, connections.
type Doors struct {
	// APIAuth is one of [AuthAuto], [AuthOn] and [AuthOff].
	APIAuth       string     `name:"api-auth" type:"oneof" enum:"auto,on,off" var:"API_AUTH" default:"auto" help:"Whether requests need a bearer token. auto: on addresses that are not loopback. on: on all. off: on none."`
	APITokens     []APIToken `name:"api-tokens" type:"tokens" var:"API_TOKENS" placeholder:"NAME:SCOPE+...:SHA256,..." help:"Bearer tokens that are accepted, comma-separated; each a name, its scopes (ingest, read, operate) joined by '+', and the SHA-256 of the token in hexadecimal. platform token makes one."`
	APITokensFile string     `name:"api-tokens-file" var:"API_TOKENS_FILE" placeholder:"FILE" help:"File with more of them, one a line; empty lines and those that begin with # are skipped. A file that changes is read again."`
	// TLSCertFile and TLSKeyFile are both set or both empty.
	TLSCertFile    string   `name:"tls-cert-file" var:"TLS_CERT_FILE" placeholder:"FILE" help:"Certificate of the HTTP ports with its chain, PEM; with it they speak HTTPS only. A file that changes is read again."`
	TLSKeyFile     string   `name:"tls-key-file" var:"TLS_KEY_FILE" placeholder:"FILE" help:"Private key of the certificate, PEM."`
	AllowedHosts   []string `type:"hosts" var:"ALLOWED_HOSTS" placeholder:"NAME,..." help:"Names that the Host header of a request may have, comma-separated; .example.org stands for all below it. IP addresses, localhost and the host of the port's own address always may. Checked on loopback where no token is asked for, and on every port if it is set."`
	MaxConnections int      `type:"positive" unit:"connections" var:"MAX_CONNECTIONS" default:"4096" help:"Most connections of one HTTP port; more are closed at once, but for probes of health."`
}

// Token are the settings of `platform token`.
type Token struct {
	Name   string   `arg:"" type:"tokenname" help:"Name of the token, which tells its owner apart; at most 64 of letters, digits, '.', '_' and '-'."`
	Scopes []string `type:"scopes" required:"" placeholder:"SCOPE,..." help:"What the token allows, comma-separated: ingest (send events), read (read events, projections and metrics), operate (dead letters and profiles)."`
	JSON   bool     `name:"json" help:"Print one JSON document."`
}

// APIToken is a bearer token that is accepted.
type APIToken struct {
	Name   string
	Scopes []string          // of [Scopes]
	Hash   [sha256.Size]byte // SHA-256 of the token
}

// String returns the token as API_TOKENS takes it.
func (t APIToken) String() string {
	return t.Name + ":" + strings.Join(t.Scopes, "+") + ":" + hex.EncodeToString(t.Hash[:])
}

// Scopes returns what tokens can allow.
func Scopes() []string { return []string{"ingest", "read", "operate"} }

// ParseTokensFile reads the text of API_TOKENS_FILE.
func ParseTokensFile(text string) ([]APIToken, error) {
	var list []APIToken
	number := 0
	for line := range strings.Lines(text) {
		number++
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		token, err := parseToken(line)
		if err != nil {
			return nil, fmt.Errorf("line %d %w", number, err)
		}
		list = append(list, token)
	}
	return list, nil
}

const tokenTakes = "name:scopes:hash, as platform token prints it"

// readTokens shows no value in its errors: a wrong one may be the token itself.
func readTokens(_ *kong.Value, s string) ([]APIToken, error) {
	var list []APIToken
	for i, entry := range splitList(s) {
		token, err := parseToken(entry)
		if err != nil {
			return nil, &Error{Problem: fmt.Sprintf("entry %d %s", i+1, err), Takes: "a comma-separated list of " + tokenTakes}
		}
		list = append(list, token)
	}
	if err := CheckTokens(list); err != nil {
		return nil, &Error{Problem: err.Error(), Takes: "tokens with names of their own"}
	}
	return list, nil
}

// CheckTokens refuses tokens that can't be told apart.
func CheckTokens(list []APIToken) error {
	seen := make(map[string]bool)
	for _, t := range list {
		if seen[t.Name] {
			return fmt.Errorf("has two tokens with the name %s", t.Name)
		}
		seen[t.Name] = true
	}
	return nil
}

var tokenName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

func parseToken(entry string) (t APIToken, err error) {
	parts := strings.Split(entry, ":")
	if len(parts) != 3 {
		return t, fmt.Errorf("is not name:scopes:hash")
	}
	if t.Name = strings.TrimSpace(parts[0]); !tokenName.MatchString(t.Name) {
		return t, fmt.Errorf("has a name that is not 1 to 64 of letters, digits, '.', '_' and '-'")
	}
	for scope := range strings.SplitSeq(parts[1], "+") {
		scope = strings.TrimSpace(scope)
		if !slices.Contains(Scopes(), scope) {
			return t, fmt.Errorf("(%s) has a scope that is not one of %s", t.Name, strings.Join(Scopes(), ", "))
		}
		t.Scopes = append(t.Scopes, scope)
	}
	hash, err := hex.DecodeString(strings.TrimSpace(parts[2]))
	if err != nil || len(hash) != sha256.Size {
		return t, fmt.Errorf("(%s) has a hash that is not the 64 hexadecimal digits of SHA-256", t.Name)
	}
	copy(t.Hash[:], hash)
	return t, nil
}

func readTokenName(_ *kong.Value, s string) (string, error) {
	if !tokenName.MatchString(s) {
		return "", &Error{Value: s, Problem: "is not a name of a token", Takes: "1 to 64 of letters, digits, '.', '_' and '-'"}
	}
	return s, nil
}

// readScopes returns the scopes that were given, each once.
func readScopes(_ *kong.Value, s string) ([]string, error) {
	takes := "a comma-separated list of: " + strings.Join(Scopes(), ", ")
	given := splitList(strings.ReplaceAll(s, "+", ","))
	if len(given) == 0 {
		return nil, &Error{Value: s, Problem: "names no scope", Takes: takes}
	}
	for _, scope := range given {
		if !slices.Contains(Scopes(), scope) {
			return nil, &Error{Value: scope, Problem: "is not a scope", Takes: takes}
		}
	}
	return slices.DeleteFunc(Scopes(), func(scope string) bool { return !slices.Contains(given, scope) }), nil
}

// checkDoors reports settings of the doors that do not go together.
func (d *Doors) checkDoors() error {
	switch {
	case d.TLSCertFile != "" && d.TLSKeyFile == "":
		return &Error{Env: "TLS_KEY_FILE", Flag: "--tls-key-file", Problem: "must be given with TLS_CERT_FILE", Takes: "a file"}
	case d.TLSKeyFile != "" && d.TLSCertFile == "":
		return &Error{Env: "TLS_CERT_FILE", Flag: "--tls-cert-file", Problem: "must be given with TLS_KEY_FILE", Takes: "a file"}
	case d.APIAuth == AuthOn && len(d.APITokens) == 0 && d.APITokensFile == "":
		return &Error{Env: "API_TOKENS", Flag: "--api-tokens", Problem: "must be given with API_AUTH=on", Takes: "a comma-separated list of " + tokenTakes}
	}
	return nil
}

// Bus says how the bus is spoken to.
type Bus struct {
	RedpandaTLS           bool   `name:"redpanda-tls" var:"REDPANDA_TLS" help:"Speak TLS with the bus."`
	RedpandaTLSCAFile     string `name:"redpanda-tls-ca-file" var:"REDPANDA_TLS_CA_FILE" placeholder:"FILE" help:"Certificates of the authorities that the bus's certificate may be from, PEM; the system's if empty."`
	RedpandaSASLMechanism string `name:"redpanda-sasl-mechanism" type:"oneof" enum:"none,plain,scram-sha-256,scram-sha-512" var:"REDPANDA_SASL_MECHANISM" default:"none" help:"How to log in at the bus: ${enum}."`
	RedpandaSASLUsername  string `name:"redpanda-sasl-username" var:"REDPANDA_SASL_USERNAME" help:"User at the bus."`
	RedpandaSASLPassword  string `name:"redpanda-sasl-password" var:"REDPANDA_SASL_PASSWORD" help:"Password at the bus."`
}

// SASLNone is the mechanism of a client that does not log in at the bus.
const SASLNone = "none"

// checkBus reports settings of the bus that do not go together.
func (b *Bus) checkBus() error {
	login := b.RedpandaSASLMechanism != SASLNone && b.RedpandaSASLMechanism != ""
	switch {
	case b.RedpandaTLSCAFile != "" && !b.RedpandaTLS:
		return &Error{Env: "REDPANDA_TLS", Flag: "--redpanda-tls", Problem: "must be given with REDPANDA_TLS_CA_FILE", Takes: "true or false"}
	case login && b.RedpandaSASLUsername == "":
		return &Error{Env: "REDPANDA_SASL_USERNAME", Flag: "--redpanda-sasl-username", Problem: "must be given with REDPANDA_SASL_MECHANISM", Takes: "a name"}
	case !login && (b.RedpandaSASLUsername != "" || b.RedpandaSASLPassword != ""):
		return &Error{
			Env: "REDPANDA_SASL_MECHANISM", Flag: "--redpanda-sasl-mechanism", Problem: "must be given with a user or a password for the bus",
			Takes: "none, plain, scram-sha-256 or scram-sha-512",
		}
	}
	return nil
}
