package main

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
)

// matcher reports whether a rule matches a request.
type matcher func(*http.Request) bool

// ruleParser reads Traefik's rules: Path, PathPrefix and Method with one argument in backquotes, joined by && and ||,
// negated by !, in parentheses.
type ruleParser struct{ tokens []string }

var ruleToken = regexp.MustCompile("&&|\\|\\||[!()]|[A-Za-z]+\\(`[^`]*`\\)|\\s+|.")

func parseRule(rule string) (matcher, error) {
	p := &ruleParser{}
	for _, token := range ruleToken.FindAllString(rule, -1) {
		if strings.TrimSpace(token) != "" {
			p.tokens = append(p.tokens, token)
		}
	}
	m, err := p.either()
	if err == nil && len(p.tokens) > 0 {
		err = fmt.Errorf("unexpected %s", p.tokens[0])
	}
	if err != nil {
		return nil, fmt.Errorf("rule %s: %w", rule, err)
	}
	return m, nil
}

// take removes the next token if it is that one.
func (p *ruleParser) take(token string) bool {
	if len(p.tokens) == 0 || p.tokens[0] != token {
		return false
	}
	p.tokens = p.tokens[1:]
	return true
}

func (p *ruleParser) either() (matcher, error) {
	m, err := p.both()
	for err == nil && p.take("||") {
		var right matcher
		left := m
		right, err = p.both()
		m = func(r *http.Request) bool { return left(r) || right(r) }
	}
	return m, err
}

func (p *ruleParser) both() (matcher, error) {
	m, err := p.one()
	for err == nil && p.take("&&") {
		var right matcher
		left := m
		right, err = p.one()
		m = func(r *http.Request) bool { return left(r) && right(r) }
	}
	return m, err
}

func (p *ruleParser) one() (matcher, error) {
	switch {
	case len(p.tokens) == 0:
		return nil, fmt.Errorf("ends too early")
	case p.take("!"):
		m, err := p.one()
		return func(r *http.Request) bool { return !m(r) }, err
	case p.take("("):
		m, err := p.either()
		if err == nil && !p.take(")") {
			err = fmt.Errorf("a parenthesis is not closed")
		}
		return m, err
	}
	token := p.tokens[0]
	p.tokens = p.tokens[1:]
	name, rest, _ := strings.Cut(token, "(`")
	argument := strings.TrimSuffix(rest, "`)")
	switch name {
	case "Path":
		return func(r *http.Request) bool { return r.URL.Path == argument }, nil
	case "PathPrefix":
		return func(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, argument) }, nil
	case "Method":
		return func(r *http.Request) bool { return r.Method == argument }, nil
	default:
		return nil, fmt.Errorf("unknown matcher %s", token)
	}
}
