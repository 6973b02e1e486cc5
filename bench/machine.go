package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// fact is one thing that a reader must know of a run.
type fact struct{ name, value string }

// machine describes what the run is made on and with. What can't be found out is left out.
func (b *bench) machine(ctx context.Context) ([]fact, error) {
	conn, err := pgx.Connect(ctx, b.pg.URL())
	if err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	defer closeConn(conn)
	var postgres string
	err = conn.QueryRow(ctx, `SELECT current_setting('server_version') || ', fsync ' || current_setting('fsync') ||
		', synchronous_commit ' || current_setting('synchronous_commit') || ', shared_buffers ' || current_setting('shared_buffers')`).Scan(&postgres)
	if err != nil {
		return nil, fmt.Errorf("ask PostgreSQL for its version: %w", err)
	}
	cpuinfo, meminfo := fileText("/proc/cpuinfo"), fileText("/proc/meminfo")
	memory := ""
	if bytes := field(meminfo, "MemTotal:"); bytes > 0 {
		memory = fmt.Sprintf("%.0f GiB", bytes/(1<<30))
	}
	mqtt := ""
	if program, err := mosquittoProgram(); err == nil {
		mqtt, _, _ = strings.Cut(output(ctx, program, "-h"), "\n")
		mqtt = strings.TrimPrefix(mqtt, "mosquitto version ")
	}
	facts := []fact{
		{"Date", time.Now().UTC().Format("2006-01-02 15:04 MST")},
		{"Commit", output(ctx, "git", "describe", "--always", "--dirty", "--abbrev=12")},
		{"Processor", fmt.Sprintf("%s, %d cores, %s", colonValue(cpuinfo, "model name"), runtime.NumCPU(), runtime.GOARCH)},
		{"Memory", memory},
		{"Disk", fileSystem(fileText("/proc/mounts"), b.dir)},
		{"System", output(ctx, "uname", "-sr")},
		{"Go", strings.TrimPrefix(runtime.Version(), "go")},
		{"PostgreSQL", postgres},
		{"Mosquitto", mqtt},
		{"Kafka API broker", "kfake as a process of its own, " + fmt.Sprint(partitions) + " partitions a topic"},
		{"Run", fmt.Sprintf("%d round(s) of %s events, a drain of %s; load generator on the same machine",
			b.opts.rounds, thousands(float64(b.opts.events)), thousands(float64(2*b.opts.events)))},
	}
	known := facts[:0]
	for _, f := range facts {
		if f.value != "" {
			known = append(known, f)
		}
	}
	return known, nil
}

// fileText returns a file, or nothing where there is none.
func fileText(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(text)
}

// output returns what a program prints, or nothing if it can't tell.
func output(ctx context.Context, program string, args ...string) string {
	cmd := exec.CommandContext(ctx, program, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil && cmd.ProcessState.ExitCode() != 3 { // mosquitto -h
		return ""
	}
	return strings.TrimSpace(out.String())
}

// colonValue returns the first value of a name in a file such as /proc/cpuinfo.
func colonValue(text, name string) string {
	_, rest, _ := strings.Cut(text, name)
	_, rest, _ = strings.Cut(rest, ":")
	value, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(value)
}

// fileSystem returns type and device of the file system that holds a folder, from /proc/mounts.
func fileSystem(mounts, dir string) string {
	longest, found := -1, ""
	for line := range strings.Lines(mounts) {
		f := strings.Fields(line)
		if len(f) < 3 {
			continue
		}
		at := strings.TrimSuffix(f[1], "/")
		if (dir == at || strings.HasPrefix(dir, at+"/")) && len(at) >= longest {
			longest, found = len(at), f[2]+" on "+f[0]
		}
	}
	return found
}
