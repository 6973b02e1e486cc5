package proc

import (
	"errors"
	"fmt"
	"io"
	"os/exec"
	"sync"
	"syscall"
)

// guardScript waits for the end of the process that holds the other end of its stdin. Process IDs come one a line;
// "none" says that those before have ended. The server of the pid file is asked to end and has 10 s.
const guardScript = `pids=
while read -r pid; do
	[ "$pid" = none ] && pids= || pids="$pids $pid"
done
[ -n "$pids" ] && kill -KILL $pids 2>/dev/null && sleep 1
[ -n "$2" ] && pid=$(head -n 1 "$2" 2>/dev/null) || pid=
n=0
while [ -n "$pid" ] && kill -INT "$pid" 2>/dev/null && [ $n -lt 100 ]; do sleep 0.1; n=$((n+1)); done
rm -rf -- "$1"`

// Guard is a process that cleans up after this one, however it ends: it ends what was left running, and deletes a
// folder. Keep the Guard as long as that is needed: it acts when it is collected. Its methods may be called concurrently.
type Guard struct {
	mu    sync.Mutex
	cmd   *exec.Cmd
	stdin io.WriteCloser // closed by the kernel when this process ends
}

// StartGuard starts a guard of a folder. If pidFile is not empty, a server whose process ID is in its first line by then
// is stopped before the folder is deleted.
func StartGuard(dir, pidFile string) (*Guard, error) {
	g := &Guard{cmd: exec.Command("/bin/sh", "-c", guardScript, "guard", dir, pidFile)}
	g.cmd.Dir = "/"
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a Ctrl-C is not for it
	var err error
	if g.stdin, err = g.cmd.StdinPipe(); err == nil {
		err = g.cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start guard of %s: %w", dir, err)
	}
	return g, nil
}

// Watch makes the guard kill a process (SIGKILL), unless Close comes first.
func (g *Guard) Watch(pid int) { g.tell(fmt.Sprint(pid)) }

// Close lets the guard delete the folder now, and waits for it. The watched processes have ended.
func (g *Guard) Close() error {
	g.tell("none")
	if err := errors.Join(g.stdin.Close(), g.cmd.Wait()); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	return nil
}

func (g *Guard) tell(line string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, _ = fmt.Fprintln(g.stdin, line) // a guard that was killed can't be helped
}
