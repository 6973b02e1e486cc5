package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestMain lets the test binary be the processes that the program starts of itself.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && roles[os.Args[1]] != nil {
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

func TestFlags(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ args, want string }{
		{"-rounds 0", "-rounds"},
		{"-events 10", "-events must be at least 1000"},
		{"-rot-events 1000", "-rot-events"},
		{"-latency-for 10ms", "-latency-for"},
		{"-only mqtt,nonsense", `not "nonsense"`},
		{"drain", `unknown argument "drain"`},
	} {
		var stdout, stderr bytes.Buffer
		require.Equal(t, 2, run(strings.Fields(tt.args), &stdout, &stderr), tt.args)
		require.Contains(t, stderr.String(), tt.want)
		require.Empty(t, stdout.String())
	}
	o, err := parseFlags(nil, &bytes.Buffer{})
	require.NoError(t, err)
	for _, m := range measurements() {
		require.Equal(t, m.name != "rot", o.selected(m), m.name)
		require.Positive(t, m.limit(&o), m.name)
	}
	o, err = parseFlags([]string{"-only", "rot,http"}, &bytes.Buffer{})
	require.NoError(t, err)
	for _, m := range measurements() {
		require.Equal(t, m.name == "rot" || m.name == "http", o.selected(m), m.name)
	}
}

// TestRun is a whole run, as small as it can be.
func TestRun(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts servers and builds the platform")
	}
	dir := t.TempDir()
	require.NoError(t, os.Chmod(filepath.Dir(dir), 0o755)) // the user postgres must get through
	page := filepath.Join(dir, "page.md")
	var stdout, progress bytes.Buffer
	code := run([]string{
		"-rounds", "1", "-events", "2000", "-latency-for", "1s", "-only", "ceiling,mqtt,http,batch,stock,drain,latency",
		"-dir", dir, "-markdown", page,
	}, &stdout, &progress)
	require.Zero(t, code, "%s", &progress)
	markdown, err := os.ReadFile(page)
	require.NoError(t, err)
	for _, title := range []string{"Throughput", "Ratios", "Latency", "Resident memory", "Processor time"} {
		require.Contains(t, stdout.String(), title)
		require.Contains(t, string(markdown), "## "+title)
	}
	// Every line of these sections has a value.
	for _, label := range []string{
		"MQTT QoS 1, 200 devices", "MQTT QoS 1, one device", "32 connections", "batch endpoint, accepted", "stock Watermill pipeline",
		"draining a full outbox", "the ceiling", "3 connections", "MQTT to stock", "drain to ceiling",
		"HTTP, 100/s, p99.9", "MQTT, 100/s, p50", "peak under drain load", "MQTT: mosquitto", "stock: Watermill",
	} {
		require.Contains(t, stdout.String(), label)
	}
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 1, "only the page is left, not the data")
}

func TestQuantile(t *testing.T) {
	t.Parallel()
	var all []time.Duration
	for i := range 1000 {
		all = append(all, time.Duration((i*7)%1000+1)) // 1 to 1000, not in order
	}
	for q, want := range map[float64]time.Duration{0: 1, 0.5: 500, 0.99: 990, 0.999: 999, 1: 1000} {
		require.Equal(t, want, quantile(all, q), q)
	}
	require.Equal(t, time.Duration(7), quantile(all[1:2], 0.5)-1)
	require.Zero(t, quantile(nil, 0.5))
}

func TestResults(t *testing.T) {
	t.Parallel()
	r := newResults()
	require.True(t, r.empty())
	for _, v := range []float64{9000, 14000, 12345} {
		r.add("mqtt.rate", v)
	}
	r.add("stock.rate", 1000)
	r.add("stock.rate", 3000)
	m, ok := r.median("mqtt.rate")
	require.True(t, ok)
	require.InDelta(t, 12345, m, 0)
	m, _ = r.median("stock.rate")
	require.InDelta(t, 2000, m, 0)
	_, ok = r.ratio("mqtt.rate", "ceiling.rate")
	require.False(t, ok)
	r.sample("latency.mqtt.100", []time.Duration{1500 * time.Microsecond})
	r.add("latency.mqtt.100.rate", 100)

	var out bytes.Buffer
	require.NoError(t, r.writeText(&out, []fact{{"Processor", "abacus"}}))
	text := strings.Join(strings.Fields(out.String()), " ")
	for _, want := range []string{
		"Processor abacus", "MQTT QoS 1, 200 devices 12,345/s 9,000/s – 14,000/s ≥ 12,000/s", "MQTT to stock 6.17× ≥ 7×",
		"MQTT, 100/s, p50 1.5 ms 1 samples ≤ 5 ms",
	} {
		require.Contains(t, text, want)
	}
	require.NotContains(t, text, "ceiling", "what was not measured is not shown")
}

func TestTableNamesEachValueOnce(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	for _, s := range sections() {
		for _, l := range s.lines {
			require.NotNil(t, l.unit, l.label)
			require.False(t, seen[s.title+l.label], l.label)
			seen[s.title+l.label] = true
		}
	}
}

func TestThousands(t *testing.T) {
	t.Parallel()
	for v, want := range map[float64]string{0: "0", 999.4: "999", 1000: "1,000", 999999.6: "1,000,000", 12345678: "12,345,678"} {
		require.Equal(t, want, thousands(v))
	}
}
