package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const markdownHead = `# Benchmarks

Made by ` + "`%s`" + `. Everything runs on one machine: servers, platform and load generator share its processors. Numbers
of other machines differ; the ratios travel better. Values are medians of the rounds, with the least and the greatest
beside them; latencies are quantiles of the samples of all rounds. Targets are what the platform was built to reach on
a machine with two cores. They pass and fail nothing.

- *Throughput* runs from the first publish until every event is in its projection, and a run counts only if exactly
  the events that were sent are stored, none is a dead letter and none waits.
- *Stock Watermill* is the pipeline of Watermill's documentation with its default settings: SQL publisher (32
  goroutines, one event each), Forwarder, Kafka, Router with one upsert a message. It has no event log and no MQTT
  broker in front, and its events come from the load generator directly.
- *The ceiling* is all database work of an event in batches of 500 (into the outbox, out of it, into the event log,
  into the projection) on the same tables and indexes, with nothing around it.
- *Latency* runs from the moment at which an event is due to be sent until the query API shows it, asked every 0.5 ms, or every eighth of the time that has passed.

`

// writeMarkdown writes the table as a page of the documentation.
func (r *results) writeMarkdown(path string, host []fact, o options) error {
	var page strings.Builder
	fmt.Fprintf(&page, markdownHead, o.command())
	page.WriteString("| | |\n|---|---|\n")
	for _, f := range host {
		fmt.Fprintf(&page, "| %s | %s |\n", f.name, cell(f.value))
	}
	for _, p := range r.parts() {
		fmt.Fprintf(&page, "\n## %s\n\n| | median | rounds | target |\n|---|--:|--:|--:|\n", p.title)
		for _, row := range p.rows {
			fmt.Fprintf(&page, "| %s | %s | %s | %s |\n", cell(row.label), row.value, row.spread, row.target)
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("create folder of the page: %w", err)
	}
	if err := os.WriteFile(path, []byte(page.String()), 0o644); err != nil {
		return fmt.Errorf("write the page: %w", err)
	}
	return nil
}

func cell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }

// command returns how to make the same run again.
func (o *options) command() string {
	flags := fmt.Sprintf("-rounds %d -events %d", o.rounds, o.events)
	if len(o.only) > 0 {
		flags += " -only " + strings.Join(o.only, ",")
	}
	return fmt.Sprintf("make bench BENCHFLAGS=%q", flags)
}
