package main

import (
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The gateway's own file, request by request.
func TestRoutes(t *testing.T) {
	t.Parallel()
	var file routesFile
	require.NoError(t, readYAML("../traefik/routes.yaml", &file, true))
	table, err := file.prepare()
	require.NoError(t, err)
	for request, want := range map[string]string{
		"POST /api/v1/events":                    "ingestion",
		"POST /api/v1/events/batch":              "ingestion",
		"PUT /api/v1/events":                     "ingestion", // which says that it is not allowed
		"GET /api/v1/events?limit=5":             "query",
		"HEAD /api/v1/events":                    "query",
		"GET /api/v1/events/0190a5c0":            "query",
		"GET /api/v1/events/0190a5c0/journey":    "query",
		"POST /api/v1/eventsabc":                 "query",
		"GET /api/v1/projections/sensor_state/a": "query",
		"GET /api/v1/ledger":                     "query",
		"GET /":                                  "query",
		"GET /openapi.json":                      "query",
		"GET /metrics":                           "",
		"GET /debug/pprof/":                      "",
	} {
		method, target, _ := strings.Cut(request, " ")
		r := httptest.NewRequest(method, "http://gateway"+target, nil)
		got := ""
		for _, route := range table {
			if route.matches(r) {
				got = route.Service
				break
			}
		}
		require.Equal(t, want, got, request)
	}
}

func TestBadRules(t *testing.T) {
	t.Parallel()
	for _, rule := range []string{"", "Path(`/a`", "(Path(`/a`)", "Path(`/a`) &&", "Host(`a`)", "Path(`/a`) Path(`/b`)"} {
		_, err := parseRule(rule)
		require.Error(t, err, rule)
	}
}

// The rules of the broker's own file in Mosquitto's words.
func TestRulesOfTheBroker(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../emqx/devices.acl")
	require.NoError(t, err)
	rules, err := mosquittoRules(string(text))
	require.NoError(t, err)
	require.Equal(t, `pattern write devices/%u/#
pattern read devices/%u/commands/#
user platform
topic read devices/+/events/#
topic read events
user platform
topic write devices/+/commands/+
`, rules)
	_, err = mosquittoRules("{allow, {ipaddr, \"127.0.0.1\"}, all, [\"#\"]}.\n")
	require.ErrorContains(t, err, "has no counterpart")
}

func TestListeners(t *testing.T) {
	t.Parallel()
	s, err := parseRedpanda([]string{
		"--smp=1", "--kafka-addr=internal://0.0.0.0:29092,external://0.0.0.0:9092",
		"--advertise-kafka-addr=internal://redpanda:29092,external://localhost:9092", "--set", "redpanda.auto_create_topics_enabled=false",
	})
	require.NoError(t, err)
	require.Equal(t, map[string]string{"internal": "redpanda:29092", "external": "localhost:9092"}, s.advertise)
	require.False(t, s.create)
	for _, args := range [][]string{
		{}, {"--kafka-addr=internal://0.0.0.0:29092"}, {"--kafka-addr=0.0.0.0:29092"}, {"--walk"}, {"--set", "redpanda.walk=1"},
	} {
		_, err := parseRedpanda(args)
		require.Error(t, err, args)
	}
}
