package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// line is one row of the table: what was measured, and how it is shown.
type line struct {
	label  string
	key    string
	over   string // a ratio to this key
	unit   func(float64) string
	target string
}

// section is a part of the table.
type section struct {
	title string
	lines []line
}

// row is a line with its values.
type row struct{ label, value, spread, target string }

func eventsPerSecond(v float64) string { return thousands(v) + "/s" }
func times(v float64) string           { return strconv.FormatFloat(v, 'f', 2, 64) + "×" }
func percent(v float64) string         { return strconv.FormatFloat(100*v, 'f', 0, 64) + " %" }
func percentOfCore(v float64) string   { return strconv.FormatFloat(v, 'f', 1, 64) + " %" }
func mebibytes(v float64) string       { return strconv.FormatFloat(v/mib, 'f', 0, 64) + " MiB" }
func seconds(v float64) string         { return strconv.FormatFloat(v, 'f', 2, 64) + " s" }
func perSecondText(v float64) string   { return strconv.FormatFloat(v, 'f', 1, 64) + "/s" }

// thousands writes a whole number with separators.
func thousands(v float64) string {
	digits := strconv.FormatFloat(v, 'f', 0, 64)
	for at := len(digits) - 3; at > 0; at -= 3 {
		digits = digits[:at] + "," + digits[at:]
	}
	return digits
}

// sections is the table.
func sections() []section {
	return slices.Concat([]section{
		{"Throughput, from the first publish to the last projection", []line{
			{label: "MQTT QoS 1, 200 devices", key: "mqtt.rate", unit: eventsPerSecond, target: "≥ 12,000/s"},
			{label: "MQTT QoS 1, one device", key: "mqtt.hot.rate", unit: eventsPerSecond},
			{label: "HTTP, one event a request, 32 connections", key: "http.rate", unit: eventsPerSecond, target: "≥ 9,000/s"},
			{label: "batch endpoint, 200 devices", key: "batch.rate", unit: eventsPerSecond, target: "≥ 20,000/s"},
			{label: "batch endpoint, accepted", key: "batch.accepted", unit: eventsPerSecond, target: "≥ 20,000/s"},
			{label: "batch endpoint, one device", key: "batch.hot.rate", unit: eventsPerSecond},
			{label: "stock Watermill pipeline", key: "stock.rate", unit: eventsPerSecond},
			{label: "draining a full outbox", key: "drain.rate", unit: eventsPerSecond, target: "≥ 25,000/s"},
			{label: "draining, from the start of the process", key: "drain.fromstart", unit: eventsPerSecond},
			{label: "database alone: the ceiling", key: "ceiling.rate", unit: eventsPerSecond},
			{label: "database alone, 1 connection", key: "ceiling.1", unit: eventsPerSecond},
			{label: "database alone, 2 connections", key: "ceiling.2", unit: eventsPerSecond},
			{label: "database alone, 3 connections", key: "ceiling.3", unit: eventsPerSecond},
		}},
		{"Ratios of medians", []line{
			{label: "MQTT to stock", key: "mqtt.rate", over: "stock.rate", unit: times, target: "≥ 7×"},
			{label: "HTTP to stock", key: "http.rate", over: "stock.rate", unit: times},
			{label: "batch endpoint to stock", key: "batch.rate", over: "stock.rate", unit: times},
			{label: "drain to ceiling", key: "drain.rate", over: "ceiling.rate", unit: percent, target: "≥ 55 %"},
			{label: "MQTT, one device to 200", key: "mqtt.hot.rate", over: "mqtt.rate", unit: percent},
			{label: "batch endpoint, one device to 200", key: "batch.hot.rate", over: "batch.rate", unit: percent},
		}},
	}, resources(), []section{
		{"Rot: an old transaction held open", []line{
			{label: "each 250,000 events", key: "rot.rate", unit: eventsPerSecond},
			{label: "a fresh platform in the same minutes", key: "rot.fresh", unit: eventsPerSecond},
			{label: "the one to the other", key: "rot.ratio", unit: percent, target: "≥ 80 %"},
			{label: "the last 250,000 events to a fresh platform", key: "rot.last", unit: percent, target: "≥ 80 %"},
		}},
	})
}

// resources are memory and processor time.
func resources() []section {
	memory := []line{
		{label: "platform, idle", key: "idle.rss", unit: mebibytes, target: "≤ 60 MiB"},
	}
	cpu := []line{}
	for _, l := range []struct{ key, what string }{
		{"mqtt", "MQTT"}, {"http", "HTTP"}, {"batch", "batch"}, {"drain", "drain"},
	} {
		memory = append(memory, line{
			label: "platform, peak under " + l.what + " load", key: l.key + ".peak", unit: mebibytes, target: "≤ 200 MiB",
		})
		for _, process := range []string{"platform", "postgres", "kafka", "mosquitto"} {
			if process == "mosquitto" && l.key != "mqtt" {
				continue // is idle
			}
			cpu = append(cpu, line{label: l.what + ": " + process, key: l.key + ".cpu." + process, unit: seconds})
		}
	}
	for _, process := range []string{"stock", "postgres", "kafka"} {
		cpu = append(cpu, line{label: "stock: " + strings.Replace(process, "stock", "Watermill", 1), key: "stock.cpu." + process, unit: seconds})
	}
	return []section{
		{"Resident memory", memory},
		{"Processor time per 100,000 events", cpu},
		{"Idle", []line{
			{label: "platform, share of a core", key: "idle.cpu.platform", unit: percentOfCore},
			{label: "PostgreSQL, share of a core", key: "idle.cpu.postgres", unit: percentOfCore},
			{label: "database transactions", key: "idle.queries", unit: perSecondText},
		}},
	}
}

// rows returns the lines of a section that were measured.
func (r *results) rows(s section) []row {
	var rows []row
	for _, l := range s.lines {
		value, ok := r.median(l.key)
		spread := ""
		if l.over != "" {
			value, ok = r.ratio(l.key, l.over)
		} else if all := r.values[l.key]; len(all) > 1 {
			spread = l.unit(slices.Min(all)) + " – " + l.unit(slices.Max(all))
		}
		if ok {
			rows = append(rows, row{l.label, l.unit(value), spread, l.target})
		}
	}
	return rows
}

// latencyRows are quantiles of all samples of all rounds.
func (r *results) latencyRows() []row {
	targets := map[string]string{"100 p50": "≤ 5 ms", "100 p99": "≤ 12 ms"}
	var rows []row
	for _, transport := range []string{"http", "mqtt"} {
		for _, at := range []string{"100", "half"} {
			key := "latency." + transport + "." + at
			took := r.samples[key]
			rate, ok := r.median(key + ".rate")
			if !ok {
				continue
			}
			label := fmt.Sprintf("%s, %s/s", strings.ToUpper(transport), thousands(rate))
			if at == "half" {
				label += " (half of the maximum)"
			}
			for _, q := range []struct {
				name string
				q    float64
			}{{"p50", 0.5}, {"p99", 0.99}, {"p99.9", 0.999}} {
				ms := float64(quantile(took, q.q)) / float64(time.Millisecond)
				rows = append(rows, row{
					label + ", " + q.name, strconv.FormatFloat(ms, 'f', 1, 64) + " ms",
					thousands(float64(len(took))) + " samples", targets[at+" "+q.name],
				})
			}
		}
	}
	return rows
}

// part is a section as it is printed.
type part struct {
	title string
	rows  []row
}

func (r *results) parts() []part {
	var parts []part
	for i, s := range sections() {
		if i == 2 {
			parts = append(parts, part{"Latency, from publish to visible by query", r.latencyRows()})
		}
		parts = append(parts, part{s.title, r.rows(s)})
	}
	return slices.DeleteFunc(parts, func(p part) bool { return len(p.rows) == 0 })
}

// writeText writes the table for a terminal.
func (r *results) writeText(to io.Writer, host []fact) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	for _, f := range host {
		fmt.Fprintf(w, "%s\t%s\n", f.name, f.value)
	}
	for _, p := range r.parts() {
		fmt.Fprintf(w, "\n%s\tmedian\trounds\ttarget\n", p.title)
		for _, row := range p.rows {
			fmt.Fprintf(w, "  %s\t%s\t%s\t%s\n", row.label, row.value, row.spread, row.target)
		}
	}
	return w.Flush()
}
