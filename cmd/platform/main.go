// Command platform runs the services of the event platform, and what it takes to develop and operate them.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/cornjacket/platform-services/internal/config"
)

// Exit codes.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
)

func main() {
	ctx, stop := untilSignal(context.Background(), os.Stderr, os.Exit)
	code := (&program{
		env:    os.LookupEnv,
		stdin:  os.Stdin,
		stdout: os.Stdout,
		stderr: os.Stderr,
		work:   platform(),
	}).main(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

// program is one call of the command, with what it takes from the process around it.
type program struct {
	env            config.LookupEnv
	stdin          io.Reader
	stdout, stderr io.Writer
	work           work
}

// main does what the arguments say and returns the exit code. It is the one place that prints errors.
func (p *program) main(ctx context.Context, args []string) int {
	if len(args) == 0 {
		return p.usage()
	}
	command, err := p.parse(args)
	if err != nil {
		p.complain(err)
		if p.fromEnvironment(err, args) {
			return exitError
		}
		return exitUsage
	}
	if command == nil { // help was asked for, and printed
		return exitOK
	}
	if err := command(ctx); err != nil {
		p.complain(err)
		return exitError
	}
	return exitOK
}

// fromEnvironment tells a variable that can't be used, which is an error of the start like any other, from a command
// line that can't.
func (p *program) fromEnvironment(err error, args []string) bool {
	var bad *config.Error
	if !errors.As(err, &bad) || bad.Env == "" {
		return false
	}
	if _, set := p.env(bad.Env); !set {
		return false
	}
	return !slices.ContainsFunc(args, func(arg string) bool { return arg == bad.Flag || strings.HasPrefix(arg, bad.Flag+"=") })
}

func (p *program) complain(err error) {
	fmt.Fprintf(p.stderr, "platform: %s\n", oneLine(err))
}

// burst is how long after the first signal others count as the same: timeout(1) and some supervisors signal the process
// and then its group, which would turn each of their clean stops into a hard one.
const burst = 500 * time.Millisecond

// untilSignal returns a context that ends with the first SIGINT or SIGTERM. A second one calls exit at once, for when
// the clean stop hangs. The returned function stops listening.
func untilSignal(parent context.Context, stderr io.Writer, exit func(int)) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		var first time.Time
		for {
			select {
			case s := <-signals:
				switch {
				case first.IsZero():
					first = time.Now()
					cancel()
				case time.Since(first) > burst:
					fmt.Fprintf(stderr, "platform: %s again, stopping at once\n", s)
					exit(exitError)
					return
				}
			case <-done:
				return
			}
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		cancel()
	}
}
