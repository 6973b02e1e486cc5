package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cornjacket/platform-services/internal/proc"
)

const pollEvery = 20 * time.Millisecond

// child is a process that the run has started.
type child struct {
	*proc.Process
	name string
	log  string      // file that it writes to
	life io.Closer   // its stdin: our own programs end when it does
	told atomic.Bool // that it failed
}

// startChild starts a program whose output goes to a log file. It ends with this process, also when this one is
// killed: on Linux by the death signal, elsewhere by the end of its stdin if it is one of ours.
func startChild(name, log string, env []string, program string, args ...string) (*child, error) {
	file, err := os.Create(log)
	if err != nil {
		return nil, fmt.Errorf("create log of %s: %w", name, err)
	}
	defer func() { _ = file.Close() }() // the child has its own copy
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = file, file
	c := &child{name: name, log: log}
	if c.life, err = cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", name, err)
	}
	if c.Process, err = proc.Start(cmd, syscall.SIGKILL); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return c, nil
}

// failure returns nil while the process runs, and after a stop that was asked for and went well.
func (c *child) failure() error {
	err := c.Err()
	if err == nil {
		return nil
	}
	c.told.Store(true)
	return c.explain(err)
}

// explain adds the name and what the log said last to an error.
func (c *child) explain(err error) error {
	return fmt.Errorf("%s %w; the end of its log:\n%s", c.name, err, tail(c.log))
}

// alive returns a context that ends with the process, with its failure as the cause.
func (c *child) alive(ctx context.Context) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-c.Done():
			cancel(c.failure())
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// because adds why ctx has ended to an error that came of it.
func because(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	if err == nil || cause == nil || errors.Is(err, cause) {
		return err
	}
	return fmt.Errorf("%w: %w", cause, err)
}

// stop asks the process to end, and kills it if it does not. An end before that is an error, unless it was told.
func (c *child) stop() error {
	if c.told.Load() {
		return nil
	}
	if err := c.failure(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	if err := c.Stop(ctx, syscall.SIGTERM, syscall.SIGKILL); err != nil {
		return c.explain(fmt.Errorf("was killed: %w", err))
	}
	return c.failure()
}

// kill ends the process at once.
func (c *child) kill() { _ = c.Stop(context.Background(), syscall.SIGKILL) } // fails only if it has ended

// await polls until the process is as it should be, it ends, or ctx does.
func (c *child) await(ctx context.Context, what string, ready func() (bool, error)) error {
	err := c.Await(ctx, ready)
	if err == nil {
		return nil
	}
	if failed := c.failure(); failed != nil {
		return failed
	}
	return fmt.Errorf("wait until %s %s: %w; the end of its log:\n%s", c.name, what, err, tail(c.log))
}

// tail returns the last lines of a log, and the words of a panic before them.
func tail(path string) string {
	const most, last = 64 << 10, 6
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	text = text[max(0, len(text)-most):]
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	rest := max(0, len(lines)-last)
	for i, line := range lines[:rest] {
		if strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:") {
			return "    " + strings.Join(lines[i:min(len(lines), i+2*last)], "\n    ")
		}
	}
	return "    " + strings.Join(lines[rest:], "\n    ")
}

// withParent returns a context that also ends when stdin does, which is when the process that started this one has
// gone.
func withParent(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // however it ends, it has ended
		cancel()
	}()
	return ctx, cancel
}

// announce tells the parent something by a file that appears as a whole.
func announce(path, text string) error {
	if err := os.WriteFile(path+".part", []byte(text), 0o644); err != nil {
		return fmt.Errorf("announce: %w", err)
	}
	if err := os.Rename(path+".part", path); err != nil {
		return fmt.Errorf("announce: %w", err)
	}
	return nil
}

// announced waits for what a child announces.
func (c *child) announced(ctx context.Context, path string) (string, error) {
	var text []byte
	err := c.await(ctx, "is ready", func() (bool, error) {
		var err error
		text, err = os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		return err == nil, err
	})
	return string(text), err
}
