package proc

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// server is no child of the test's: only a guard ends it, with SIGINT.
const server = `trap 'echo > "$1/interrupted"; rm "$1/guarded/pid"; exit' INT; echo $$ > "$1/guarded/pid"; while :; do sleep 0.02; done`

// waitForDeath starts a child, a process that a guard watches and a server that a guard knows by its file, and tells
// their IDs.
func waitForDeath(dir string) error {
	guarded := filepath.Join(dir, "guarded")
	guard, err := StartGuard(guarded, filepath.Join(guarded, "pid"))
	if err != nil {
		return err
	}
	child, err := Start(exec.Command("sleep", "1000"), syscall.SIGINT)
	if err != nil {
		return err
	}
	apart := &syscall.SysProcAttr{Setsid: true}
	watched, served := exec.Command("sleep", "1000"), exec.Command("/bin/sh", "-c", server, "sh", dir)
	watched.SysProcAttr, served.SysProcAttr = apart, apart
	if err := errors.Join(watched.Start(), served.Start()); err != nil {
		return err
	}
	guard.Watch(999_999_999) // has ended
	guard.tell("none")
	guard.Watch(watched.Process.Pid)
	for {
		if text, err := os.ReadFile(filepath.Join(guarded, "pid")); err == nil && len(text) > 0 {
			break
		}
	}
	text := fmt.Sprint(child.PID(), " ", watched.Process.Pid, " ", served.Process.Pid)
	if err := os.WriteFile(filepath.Join(dir, "part"), []byte(text), 0o600); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(dir, "part"), filepath.Join(dir, "pids")); err != nil {
		return err
	}
	<-child.Done()
	return child.Err()
}

func TestNothingOutlivesAKilledProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	guarded := filepath.Join(dir, "guarded")
	require.NoError(t, os.Mkdir(guarded, 0o755))
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envDie+"="+dir)
	cmd.Stderr = os.Stderr
	parent, err := Start(cmd, syscall.SIGKILL)
	require.NoError(t, err)
	var pids []int
	for _, field := range strings.Fields(await(t, parent, filepath.Join(dir, "pids"))) {
		pid, err := strconv.Atoi(field)
		require.NoError(t, err)
		require.True(t, Alive(pid))
		pids = append(pids, pid)
	}
	require.Len(t, pids, 3)
	require.NoError(t, parent.Signal(syscall.SIGKILL))
	<-parent.Done()
	if runtime.GOOS != "linux" {
		pids = pids[1:] // no death signal there
	}
	for _, pid := range pids {
		require.Eventually(t, func() bool { return !Alive(pid) }, soon, often)
	}
	require.FileExists(t, filepath.Join(dir, "interrupted"), "a server is asked to stop, and not killed")
	require.Eventually(t, func() bool {
		_, err := os.Stat(guarded)
		return errors.Is(err, os.ErrNotExist)
	}, soon, often)
}

func TestGuardThatIsClosed(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "guarded")
	require.NoError(t, os.Mkdir(dir, 0o755))
	g, err := StartGuard(dir, "")
	require.NoError(t, err)
	p, _ := shell(t, `trap 'exit 0' TERM`+forever)
	g.Watch(p.PID())
	require.NoError(t, g.Close())
	require.NoDirExists(t, dir)
	require.NoError(t, p.Stop(deadline(t), syscall.SIGTERM))
	require.NoError(t, p.Err(), "it was left alone")
}
