// Command bench measures the platform against a stock Watermill pipeline and against what the database can do, all on
// this machine and in one run. It starts what it needs as processes of its own (PostgreSQL with its stock durable
// settings, Mosquitto, a Kafka API broker, the platform), on free ports and in a temporary folder, and ends them when it
// is done. Its table goes to stdout, progress to stderr. It reports; it passes and fails no timing. The exit code is 1
// when a measurement could not be made or lost events.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	rounds     int
	only       []string
	events     int
	rotEvents  int
	latencyFor time.Duration
	services   string
	platform   string
	markdown   string
	dir        string
	keep       bool
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	if len(args) > 0 {
		if role, ok := roles[args[0]]; ok {
			return exitCode(stderr, role(ctx, args[1:]))
		}
	}
	opts, err := parseFlags(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 2
	}
	return exitCode(stderr, benchmark(ctx, opts, stdout, stderr))
}

func exitCode(stderr io.Writer, err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintln(stderr, "bench:", err)
	return 1
}

func parseFlags(args []string, stderr io.Writer) (options, error) {
	var o options
	var only string
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.IntVar(&o.rounds, "rounds", 3, "how often each measurement is made; the table shows medians")
	f.StringVar(&only, "only", "", "measurements to make, comma-separated, of "+strings.Join(names(), ",")+" (default: all but rot)")
	f.IntVar(&o.events, "events", 100_000, "events of a measurement; the backlog drain has twice as many")
	f.IntVar(&o.rotEvents, "rot-events", 5_000_000, "events of the measurement rot")
	f.DurationVar(&o.latencyFor, "latency-for", 10*time.Second, "how long each latency is sampled in a round")
	f.StringVar(&o.services, "services", "ingestion,relay,eventhandler,query", "services of the platform that is measured")
	f.StringVar(&o.platform, "platform", "", "platform binary to measure (default: one is built from ./cmd/platform)")
	f.StringVar(&o.markdown, "markdown", "", "file to write the table to, with the machine it was made on")
	f.StringVar(&o.dir, "dir", "", "folder for the data of the servers; its disk is what is measured (default: the system's temporary folder)")
	f.BoolVar(&o.keep, "keep", false, "keep the folder with data and logs")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unknown argument %q, see -help", f.Arg(0))
	}
	if only != "" {
		o.only = strings.Split(only, ",")
	}
	return o, o.check()
}

func (o *options) check() error {
	switch {
	case o.rounds < 1:
		return fmt.Errorf("-rounds must be at least 1, is %d", o.rounds)
	case o.events < minEvents:
		return fmt.Errorf("-events must be at least %d, is %d", minEvents, o.events)
	case o.rotEvents < 2*rotStep:
		return fmt.Errorf("-rot-events must be at least %d, is %d", 2*rotStep, o.rotEvents)
	case o.latencyFor < time.Second:
		return fmt.Errorf("-latency-for must be at least 1s, is %s", o.latencyFor)
	}
	for _, name := range o.only {
		if !slices.Contains(names(), name) {
			return fmt.Errorf("-only takes %s, not %q", strings.Join(names(), ","), name)
		}
	}
	return nil
}

// selected reports whether a measurement is to be made.
func (o *options) selected(m measurement) bool {
	if len(o.only) == 0 {
		return !m.extra
	}
	return slices.Contains(o.only, m.name)
}
