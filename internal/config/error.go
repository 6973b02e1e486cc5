package config

import (
	"fmt"
	"net/url"
	"strings"
)

// Error is a setting that can't be used. Its text is one line that names the setting, its value and what it takes.
type Error struct {
	Env     string // variable; empty if the setting has none
	Flag    string // flag with its dashes, or the name of an argument
	Value   string // as given, without passwords; empty if it is not to be shown
	Problem string // such as "is not a number"
	Takes   string // what the setting takes
}

func (e *Error) Error() string {
	var b strings.Builder
	switch {
	case e.Env == "":
		b.WriteString(e.Flag)
	case e.Flag == "":
		b.WriteString(e.Env)
	default:
		fmt.Fprintf(&b, "%s (%s)", e.Env, e.Flag)
	}
	b.WriteString(": ")
	if e.Value != "" {
		fmt.Fprintf(&b, "%q ", clip(e.Value))
	}
	b.WriteString(e.Problem)
	if e.Takes != "" {
		b.WriteString("; takes ")
		b.WriteString(e.Takes)
	}
	return b.String()
}

// clip keeps an error readable whatever was given.
func clip(s string) string {
	const longest = 120
	if len(s) <= longest {
		return s
	}
	return strings.ToValidUTF8(s[:longest], "") + "…"
}

// redact returns a URL without its password and query, which may hold one too, or nothing where it can't be told what
// is a password.
func redact(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.Opaque != "" || (u.Scheme == "" && strings.ContainsAny(s, "=@")) {
		return ""
	}
	u.RawQuery, u.Fragment = "", ""
	return u.Redacted()
}

// redactAddress returns what was given for an address, as it is unless it may hold a password after all.
func redactAddress(s string) string {
	if strings.Contains(s, "@") {
		return redact(s)
	}
	return s
}
