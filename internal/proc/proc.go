// Package proc supervises child processes: they end with this process, however it ends, are asked to stop before they
// are killed, and leave no folders behind.
package proc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	poll  = 20 * time.Millisecond
	grace = 10 * time.Second // for each signal of a stop but the first
)

var errEnded = errors.New("ended")

// Process is a child process. Its methods may be called concurrently.
type Process struct {
	cmd      *exec.Cmd
	stopping atomic.Bool
	done     chan struct{}
	waitErr  error // of cmd.Wait, valid once done is closed; so is err
	err      error
}

// Start starts a command in a process group of its own, so that a Ctrl-C in the terminal reaches this process alone. When
// this process ends, also by kill -9, the kernel sends the child the signal onDeath (Linux). Elsewhere the child must
// notice by itself, such as by the end of its stdin, or a [Guard] or [StopOrphan] ends it.
func Start(cmd *exec.Cmd, onDeath syscall.Signal) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	dieWithParent(cmd.SysProcAttr, onDeath)
	p := &Process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go p.run(started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return p, nil
}

// Run runs a command to its end, as of [Start]. The error is that of [exec.Cmd.Wait].
func Run(cmd *exec.Cmd, onDeath syscall.Signal) error {
	p, err := Start(cmd, onDeath)
	if err != nil {
		return err
	}
	<-p.done
	return p.waitErr
}

// run starts the command and waits for its end on one thread, which the death signal is tied to.
func (p *Process) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := p.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	p.waitErr = p.cmd.Wait()
	if p.waitErr != nil || !p.stopping.Load() {
		p.err = fmt.Errorf("%w (%v)", errEnded, p.cmd.ProcessState)
	}
	close(p.done)
}

// PID returns the process ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended, for whatever reason.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err returns nil while the process runs and after a [Process.Stop] that it followed with exit code 0; else how it ended.
func (p *Process) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// ExitCode returns the exit code of a process that has ended, -1 if a signal ended it.
func (p *Process) ExitCode() int { return p.cmd.ProcessState.ExitCode() }

// Signal sends a signal. It is fine if the process has ended.
func (p *Process) Signal(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %v to process %d: %w", sig, p.PID(), err)
	}
	return nil
}

// Stop sends the first signal and waits for the end until ctx ends, then each further signal with 10 s to end. SIGKILL
// goes to the whole process group. The error says which signals did not help. Stopping again is fine.
func (p *Process) Stop(ctx context.Context, signals ...syscall.Signal) error {
	select {
	case <-p.done:
		return nil
	default:
	}
	p.stopping.Store(true)
	var late []error
	over := ctx.Done()
	for _, sig := range signals {
		target := p.PID()
		if sig == syscall.SIGKILL {
			target = -target
		}
		if err := send(target, sig); err != nil {
			return errors.Join(append(late, fmt.Errorf("send %v to process %d: %w", sig, p.PID(), err))...)
		}
		select {
		case <-p.done:
			return errors.Join(late...)
		case <-over:
			late = append(late, fmt.Errorf("process %d has not ended on %v: %w", p.PID(), sig, ctx.Err()))
		}
		next, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		over = next.Done()
	}
	return errors.Join(late...)
}

// Await polls until ready returns true or an error, the process ends, or ctx does.
func (p *Process) Await(ctx context.Context, ready func() (bool, error)) error {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		if ok, err := ready(); ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-p.done:
			return cmp.Or(p.err, errEnded)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// send sends a signal to a process that SIGSTOP may have frozen. It is fine if the process has ended.
func send(pid int, sig syscall.Signal) error {
	if err := errors.Join(syscall.Kill(pid, sig), syscall.Kill(pid, syscall.SIGCONT)); !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return nil
}

// StopOrphan stops a process that is no child of this one, such as one that a killed process has left: each signal has
// 10 s. It is fine if the process has ended.
func StopOrphan(pid int, signals ...syscall.Signal) error {
	for _, sig := range signals {
		if err := send(pid, sig); err != nil {
			return fmt.Errorf("send %v to process %d: %w", sig, pid, err)
		}
		for end := time.Now().Add(grace); Alive(pid) && time.Now().Before(end); {
			<-time.After(poll)
		}
		if !Alive(pid) {
			return nil
		}
	}
	return fmt.Errorf("process %d does not end", pid)
}

// Alive reports whether a process runs. A zombie does not.
func Alive(pid int) bool {
	if err := syscall.Kill(pid, 0); err != nil && !errors.Is(err, syscall.EPERM) {
		return false
	}
	// A zombie can still be signalled; its state is the first field after the name in parentheses (proc_pid_stat(5)).
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || !strings.HasPrefix(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " Z")
}
