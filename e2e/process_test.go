package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/internal/proc"
)

// output keeps what a process has printed. It may be used concurrently.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// tail returns the last lines, for messages.
func (o *output) tail() string {
	s := o.String()
	const most = 4000
	if len(s) > most {
		s = "…" + s[len(s)-most:]
	}
	return s
}

// process is the command while it runs.
type process struct {
	*proc.Process
	stdout, stderr output
	done           chan struct{}
	code           int // valid once done is closed; -1 if a signal ended it
}

// launch starts a program. Variables of this process that are the platform's do not reach it, env does.
func launch(env []string, program string, args ...string) (*process, error) {
	p := &process{done: make(chan struct{})}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &p.stdout, &p.stderr
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}, env...)
	var err error
	if p.Process, err = proc.Start(cmd, syscall.SIGKILL); err != nil {
		return nil, err
	}
	guard.Watch(p.PID())
	go func() {
		<-p.Done()
		p.code = p.ExitCode()
		close(p.done)
	}()
	return p, nil
}

func (p *process) signal(s syscall.Signal) error { return p.Signal(s) }

// ended waits for the end and returns the exit code.
func (p *process) ended(timeout time.Duration) (int, error) {
	select {
	case <-p.done:
		return p.code, nil
	case <-time.After(timeout):
		return 0, fmt.Errorf("process %d has not ended within %s:\n%s", p.PID(), timeout, p.stderr.tail())
	}
}

// stop ends the process as an operator does.
func (p *process) stop() (int, error) {
	if err := p.signal(syscall.SIGTERM); err != nil {
		return 0, err
	}
	return p.ended(wait)
}

// kill ends the process at once, if it still runs.
func (p *process) kill() error {
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	_, err := p.ended(wait)
	return err
}

// platformCommand runs the command to its end.
func platformCommand(t testing.TB, env []string, args ...string) *process {
	t.Helper()
	p, err := launch(env, binary, args...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.kill()) })
	_, err = p.ended(wait)
	require.NoError(t, err)
	return p
}

// tool runs a client program to its end and returns what it printed; the test is skipped where it is not installed.
func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	path := needTool(t, name)
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	require.NoError(t, err, "%s %s\n%s", name, strings.Join(args, " "), out)
	return string(out)
}

// needTool finds a program, also where Debian keeps servers.
func needTool(t testing.TB, name string) string {
	t.Helper()
	for _, candidate := range []string{name, "/usr/sbin/" + name, "/usr/local/sbin/" + name, "/opt/homebrew/sbin/" + name} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path
		}
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is not installed, and CI must not skip this test", name)
	}
	t.Skipf("%s is not installed (make setup)", name)
	return ""
}

// oneLine returns what the process wrote to stderr, which must be one line.
func (p *process) oneLine(t testing.TB) string {
	t.Helper()
	text := p.stderr.String()
	require.Equal(t, 1, strings.Count(text, "\n"), "one line: %s", text)
	require.True(t, strings.HasPrefix(text, "platform: "), text)
	return strings.TrimSuffix(text, "\n")
}
