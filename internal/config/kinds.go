package config

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/alecthomas/kong"
)

var durationType = reflect.TypeFor[time.Duration]()

// mappers registers how each kind of setting, named by its type tag, is read and checked.
func mappers() kong.Option {
	integer := func(low, high int64, rule string) kong.Mapper {
		return mapper(func(v *kong.Value, s string) (int64, error) {
			return readInt(s, low, min(high, highest(v)), withUnit(v)+rule)
		})
	}
	named := map[string]kong.Mapper{
		"positive":       integer(1, math.MaxInt64, ", at least 1"),
		"natural":        integer(0, math.MaxInt64, ", at least 0"),
		"receive":        integer(1, math.MaxUint16, " from 1 to 65535"),
		"replication":    mapper(readReplication),
		"rate":           mapper(readRate),
		"duration":       mapper(func(_ *kong.Value, s string) (time.Duration, error) { return readDuration(s, time.Millisecond) }),
		"duration0":      mapper(func(_ *kong.Value, s string) (time.Duration, error) { return readDuration(s, 0) }),
		"hostport":       mapper(func(_ *kong.Value, s string) (string, error) { return readHostPort(s, 0) }),
		"hostports":      mapper(readHostPorts),
		"hosts":          mapper(readHosts),
		"postgresurl":    mapper(func(_ *kong.Value, s string) (string, error) { return readPostgresURL(s) }),
		"mqtturl":        mapper(func(_ *kong.Value, s string) (string, error) { return readMQTTURL(s, true) }),
		"mqtttcpurl":     mapper(func(_ *kong.Value, s string) (string, error) { return readMQTTURL(s, false) }),
		"services":       mapper(func(_ *kong.Value, s string) ([]string, error) { return parseServices(s) }),
		"oneof":          mapper(readOneOf),
		"clientid":       mapper(readClientID),
		"groupsuffix":    mapper(readGroupSuffix),
		"dir":            mapper(readDir),
		"uuid":           mapper(func(_ *kong.Value, s string) (string, error) { return readUUID(s) }),
		"rfc3339":        mapper(func(_ *kong.Value, s string) (string, error) { return readTime(s) }),
		"instant":        mapper(func(_ *kong.Value, s string) (time.Time, error) { return parseTime(s) }),
		"dlqservices":    mapper(func(_ *kong.Value, s string) ([]string, error) { return parseDeadLetterServices(s) }),
		"projectiontype": mapper(func(_ *kong.Value, s string) (string, error) { return readProjectionType(s) }),
		"consumer":       mapper(func(_ *kong.Value, s string) (string, error) { return readConsumer(s) }),
		"tokens":         mapper(readTokens),
		"tokenname":      mapper(readTokenName),
		"scopes":         mapper(readScopes),
	}
	return kong.OptionFunc(func(k *kong.Kong) error {
		for name, m := range named {
			if err := kong.NamedMapper(name, m).Apply(k); err != nil {
				return fmt.Errorf("register settings of type %s: %w", name, err)
			}
		}
		return kong.KindMapper(reflect.Bool, switchMapper{}).Apply(k)
	})
}

// switchMapper reads settings that are on or off; a flag without a value is on.
type switchMapper struct{}

// IsBool tells the parser that the flag needs no value.
func (switchMapper) IsBool() bool { return true }

// Decode reads a setting.
func (switchMapper) Decode(ctx *kong.DecodeContext, target reflect.Value) error {
	if ctx.Scan.Peek().Type != kong.FlagValueToken {
		target.SetBool(true)
		return nil
	}
	token := ctx.Scan.Pop()
	on, err := strconv.ParseBool(strings.ToLower(fmt.Sprint(token.Value)))
	if err != nil {
		return named(ctx.Value, &Error{Value: fmt.Sprint(token.Value), Problem: "is neither true nor false", Takes: "true or false"})
	}
	target.SetBool(on)
	return nil
}

// named says which setting an error is about.
func named(v *kong.Value, err error) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	e.Env, e.Flag = varOf(v), flagOf(v)
	return e
}

func varOf(v *kong.Value) string {
	if v.Tag.Get(tableTag) != "" {
		return strings.ToUpper(strings.ReplaceAll(v.Name, "-", "_"))
	}
	return v.Tag.Get("var")
}

func flagOf(v *kong.Value) string {
	if v.Flag == nil {
		return "<" + v.Name + ">"
	}
	return "--" + v.Name
}

// highest returns the greatest number that a setting's field holds.
func highest(v *kong.Value) int64 {
	return 1<<(v.Target.Type().Bits()-1) - 1
}

func withUnit(v *kong.Value) string {
	if unit := v.Tag.Get("unit"); unit != "" {
		return "a number of " + unit
	}
	return "a number"
}

func readInt(s string, low, high int64, takes string) (int64, error) {
	n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	switch {
	case errors.Is(err, strconv.ErrRange) || err == nil && n > high:
		return 0, &Error{Value: s, Problem: "is too large", Takes: takes}
	case err != nil:
		return 0, &Error{Value: s, Problem: "is not a number", Takes: takes}
	case n < low:
		return 0, &Error{Value: s, Problem: "is too small", Takes: takes}
	}
	return n, nil
}

func readReplication(v *kong.Value, s string) (int64, error) {
	takes := withUnit(v) + ", at least 1, or -1 for the broker's default"
	n, err := readInt(s, -1, highest(v), takes)
	if err == nil && n == 0 {
		return 0, &Error{Value: s, Problem: "is too small", Takes: takes}
	}
	return n, err
}

func readRate(v *kong.Value, s string) (float64, error) {
	takes := withUnit(v) + ", at least 0"
	f, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	switch {
	case err != nil || math.IsNaN(f) || math.IsInf(f, 0):
		return 0, &Error{Value: s, Problem: "is not a number", Takes: takes}
	case f < 0:
		return 0, &Error{Value: s, Problem: "is too small", Takes: takes}
	}
	return f, nil
}

func readDuration(s string, least time.Duration) (time.Duration, error) {
	takes := "a duration of at least " + least.String() + ", such as 500ms, 30s, 5m or 24h"
	d, err := time.ParseDuration(strings.TrimSpace(s))
	switch {
	case err != nil:
		return 0, &Error{Value: s, Problem: "is not a duration", Takes: takes}
	case d < least:
		return 0, &Error{Value: s, Problem: "is too short", Takes: takes}
	}
	return d, nil
}

func readHostPort(s string, lowest int) (string, error) {
	takes := "host:port, such as 127.0.0.1:8080, [::1]:8080 or 0.0.0.0:8080"
	s = strings.TrimSpace(s)
	_, port, err := net.SplitHostPort(s)
	if err != nil || strings.ContainsAny(s, "/@ ") {
		return "", &Error{Value: redactAddress(s), Problem: "is not host:port", Takes: takes}
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || int(n) < lowest {
		return "", &Error{Value: s, Problem: "has no port from " + strconv.Itoa(lowest) + " to 65535", Takes: takes}
	}
	return s, nil
}

func readHostPorts(_ *kong.Value, s string) ([]string, error) {
	list := splitList(s)
	if len(list) == 0 {
		return nil, &Error{Value: s, Problem: "names no address", Takes: "a comma-separated list of host:port"}
	}
	for _, address := range list {
		host, _, err := net.SplitHostPort(address)
		if _, bad := readHostPort(address, 1); err != nil || host == "" || bad != nil {
			return nil, &Error{Value: redactAddress(address), Problem: "is not host:port", Takes: "a comma-separated list of host:port, such as localhost:9092"}
		}
	}
	return list, nil
}

// readHosts reads names of hosts, without ports.
func readHosts(_ *kong.Value, s string) ([]string, error) {
	list := splitList(s)
	for _, name := range list {
		if strings.ContainsAny(name, ":/@* ") || strings.Trim(name, ".") == "" {
			return nil, &Error{Value: name, Problem: "is not the name of a host", Takes: "a comma-separated list of names without ports, such as platform or .example.org"}
		}
	}
	return list, nil
}

func readPostgresURL(s string) (string, error) {
	takes := "a URL such as postgres://user:password@host:5432/database?sslmode=disable"
	u, err := url.Parse(strings.TrimSpace(s))
	switch {
	case err != nil || u.Opaque != "":
		return "", &Error{Value: redact(s), Problem: "is not a URL", Takes: takes}
	case u.Scheme != "postgres" && u.Scheme != "postgresql":
		return "", &Error{Value: redact(s), Problem: "is not a URL of PostgreSQL", Takes: takes}
	case u.Host == "" && !u.Query().Has("host"):
		return "", &Error{Value: redact(s), Problem: "names no host", Takes: takes}
	}
	return u.String(), nil
}

// mqttPorts are the schemes of MQTT brokers and the ports that they mean. Source: the MQTT client library (autopaho).
var mqttPorts = map[string]string{
	"mqtt": "1883", "tcp": "1883", "mqtts": "8883", "ssl": "8883", "tls": "8883", "ws": "80", "wss": "443",
}

func readMQTTURL(s string, webSocket bool) (string, error) {
	takes := "a URL such as mqtt://host:1883 or mqtts://host:8883"
	if webSocket {
		takes = "a URL such as mqtt://host:1883, mqtts://host:8883, ws://host/mqtt or wss://host/mqtt"
	}
	u, err := url.Parse(strings.TrimSpace(s))
	if err != nil || u.Opaque != "" {
		return "", &Error{Value: redact(s), Problem: "is not a URL", Takes: takes}
	}
	port, known := mqttPorts[u.Scheme]
	switch {
	case !known || (!webSocket && strings.HasPrefix(u.Scheme, "ws")):
		return "", &Error{Value: redact(s), Problem: "is not a URL of an MQTT broker", Takes: takes}
	case u.Hostname() == "":
		return "", &Error{Value: redact(s), Problem: "names no host", Takes: takes}
	case u.User != nil: // the client library would not use them
		return "", &Error{Value: redact(s), Problem: "holds a user", Takes: takes + "; the user goes into MQTT_USERNAME and MQTT_PASSWORD"}
	}
	u.Host = hostPort(u, port)
	if _, err := readHostPort(u.Host, 0); err != nil {
		return "", &Error{Value: redact(s), Problem: "has no port from 0 to 65535", Takes: takes}
	}
	return u.String(), nil
}

// hostPort returns the address of a URL, with the port that its scheme means if it names none.
func hostPort(u *url.URL, port string) string {
	if u.Port() != "" {
		return u.Host
	}
	return net.JoinHostPort(u.Hostname(), port)
}

func readOneOf(v *kong.Value, s string) (string, error) {
	known := v.EnumSlice()
	if choice := strings.ToLower(strings.TrimSpace(s)); slices.Contains(known, choice) {
		return choice, nil
	}
	return "", &Error{Value: s, Problem: "is not one of them", Takes: orList(known, "or")}
}

// readClientID keeps to what every broker must take in a client identifier, and more, but nothing that breaks a log.
// Source: MQTT 5.0 §3.1.3.1.
func readClientID(_ *kong.Value, s string) (string, error) {
	notAllowed := func(r rune) bool { return !unicode.IsPrint(r) || strings.ContainsRune("/+#", r) }
	if s == "" || len(s) > 256 || strings.ContainsFunc(s, notAllowed) {
		return "", &Error{Value: s, Problem: "is not a client identifier", Takes: "1 to 256 bytes of printable text without '/', '+' and '#'"}
	}
	return s, nil
}

func readGroupSuffix(_ *kong.Value, s string) (string, error) {
	notAllowed := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-", r)
	}
	if len(s) > 100 || strings.ContainsFunc(s, notAllowed) {
		return "", &Error{Value: s, Problem: "can't be part of the name of a group", Takes: "up to 100 letters, digits, '.', '_' and '-'"}
	}
	return s, nil
}

func readDir(_ *kong.Value, s string) (string, error) {
	if s == "" {
		return "", &Error{Problem: "has no default, since there is no home folder", Takes: "a folder"}
	}
	dir, err := filepath.Abs(s)
	if err != nil {
		return "", &Error{Value: s, Problem: "can't be made an absolute path: " + err.Error(), Takes: "a folder"}
	}
	return dir, nil
}

// splitList splits a comma-separated list, without blanks around its elements and without empty ones.
func splitList(s string) []string {
	var list []string
	for element := range strings.SplitSeq(s, ",") {
		if element = strings.TrimSpace(element); element != "" {
			list = append(list, element)
		}
	}
	return list
}
