package proc

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

const (
	soon   = 20 * time.Second
	often  = 10 * time.Millisecond
	envDie = "PROC_TEST_DIE" // folder of a test binary that starts processes and waits to be killed
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(envDie); dir != "" {
		if err := waitForDeath(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	goleak.VerifyTestMain(m)
}

// shell starts a script that says "ready" once it is; $1 is an empty folder.
func shell(t *testing.T, script string) (*Process, string) {
	t.Helper()
	dir := t.TempDir()
	p, err := Start(exec.Command("/bin/sh", "-c", script, "sh", dir), syscall.SIGKILL)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Stop(context.Background(), syscall.SIGKILL)) })
	await(t, p, filepath.Join(dir, "ready"))
	return p, dir
}

// await waits for a file, and returns what is in it.
func await(t *testing.T, p *Process, path string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	var text []byte
	require.NoError(t, p.Await(ctx, func() (bool, error) {
		var err error
		text, err = os.ReadFile(path)
		return err == nil && len(text) > 0, nil
	}))
	return strings.TrimSpace(string(text))
}

// forever is a shell's way to wait that any signal interrupts.
const forever = `; echo > "$1/ready"; while :; do sleep 0.02; done`

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	t.Cleanup(cancel)
	return ctx
}

func TestStop(t *testing.T) {
	t.Parallel()
	good, _ := shell(t, `trap 'exit 0' TERM`+forever)
	require.NoError(t, good.Err())
	require.NoError(t, good.Stop(deadline(t), syscall.SIGTERM))
	require.NoError(t, good.Err())
	require.Zero(t, good.ExitCode())
	require.NoError(t, good.Stop(deadline(t), syscall.SIGTERM), "again")
	require.NoError(t, good.Signal(syscall.SIGTERM))

	bad, _ := shell(t, `trap 'exit 7' TERM`+forever)
	require.NoError(t, bad.Stop(deadline(t), syscall.SIGTERM))
	require.EqualError(t, bad.Err(), "ended (exit status 7)")
	require.Equal(t, 7, bad.ExitCode())
}

func TestEndThatNobodyAskedFor(t *testing.T) {
	t.Parallel()
	p, err := Start(exec.Command("true"), syscall.SIGKILL)
	require.NoError(t, err)
	<-p.Done()
	require.EqualError(t, p.Err(), "ended (exit status 0)")
	require.NoError(t, p.Stop(deadline(t), syscall.SIGTERM))
	require.EqualError(t, p.Err(), "ended (exit status 0)", "a later stop does not make it well")

	_, err = Start(exec.Command("/does/not/exist"), syscall.SIGKILL)
	require.ErrorContains(t, err, "start /does/not/exist: ")
	require.NoError(t, Run(exec.Command("true"), syscall.SIGKILL))
	require.EqualError(t, Run(exec.Command("false"), syscall.SIGKILL), "exit status 1")
}

func TestStopEscalates(t *testing.T) {
	t.Parallel()
	p, dir := shell(t, `trap '' TERM; sleep 1000 & echo $! > "$1/child"`+forever)
	child, err := strconv.Atoi(await(t, p, filepath.Join(dir, "child")))
	require.NoError(t, err)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	err = p.Stop(over, syscall.SIGTERM, syscall.SIGKILL)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, "has not ended on terminated")
	require.EqualError(t, p.Err(), "ended (signal: killed)")
	require.Equal(t, -1, p.ExitCode())
	require.Eventually(t, func() bool { return !Alive(child) }, soon, often, "the whole group is killed")
}

func TestStopReachesTheFrozen(t *testing.T) {
	t.Parallel()
	p, _ := shell(t, `trap 'exit 0' TERM`+forever)
	require.NoError(t, p.Signal(syscall.SIGSTOP))
	require.NoError(t, p.Stop(deadline(t), syscall.SIGTERM))
	require.NoError(t, p.Err())
}

func TestAwait(t *testing.T) {
	t.Parallel()
	never := func() (bool, error) { return false, nil }
	p, _ := shell(t, `true`+forever)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, p.Await(over, never), context.Canceled)
	require.ErrorIs(t, p.Await(deadline(t), func() (bool, error) { return false, os.ErrInvalid }), os.ErrInvalid)
	require.NoError(t, p.Signal(syscall.SIGKILL))
	require.EqualError(t, p.Await(deadline(t), never), "ended (signal: killed)")

	stopped, _ := shell(t, `trap 'exit 0' TERM`+forever)
	require.NoError(t, stopped.Stop(deadline(t), syscall.SIGTERM))
	require.ErrorIs(t, stopped.Await(deadline(t), never), errEnded, "it will never be ready")
}

// The kernel sends the death signal when the thread that forked ends, not only when the process does.
func TestChildOutlivesTheThreadOfItsStart(t *testing.T) {
	t.Parallel()
	const threads = 3 // the main thread, which can be one of them, does not end
	var locked sync.WaitGroup
	locked.Add(threads)
	started := make(chan *Process)
	for range threads {
		go func() {
			runtime.LockOSThread() // and the thread ends with the goroutine
			locked.Done()
			locked.Wait()
			p, _ := Start(exec.Command("sleep", "1000"), syscall.SIGKILL) // nil is found below
			started <- p
		}()
	}
	for range threads {
		p := <-started
		require.NotNil(t, p)
		t.Cleanup(func() { require.NoError(t, p.Stop(context.Background(), syscall.SIGKILL)) })
		select {
		case <-p.Done():
			require.Fail(t, "it ended with the thread")
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func TestStopOrphan(t *testing.T) {
	t.Parallel()
	p, _ := shell(t, `trap 'exit 3' INT`+forever)
	require.NoError(t, p.Signal(syscall.SIGSTOP)) // it may even hang
	require.NoError(t, StopOrphan(p.PID(), syscall.SIGINT, syscall.SIGQUIT))
	<-p.Done()
	require.Equal(t, 3, p.ExitCode())
	require.NoError(t, StopOrphan(p.PID(), syscall.SIGINT), "it has ended")
}

func TestZombieIsNotAlive(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells of zombies")
	}
	require.True(t, Alive(os.Getpid()))
	cmd := exec.Command("sleep", "1000")
	require.NoError(t, cmd.Start())
	require.True(t, Alive(cmd.Process.Pid))
	require.NoError(t, cmd.Process.Kill())
	require.Eventually(t, func() bool { return !Alive(cmd.Process.Pid) }, soon, often)
	require.Error(t, cmd.Wait())
	require.False(t, Alive(cmd.Process.Pid))
}
