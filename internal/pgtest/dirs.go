package pgtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// script waits for the end of the process that holds the other end of its standard input, which is how it notices
// however that ends; then for the end of the server, which it asks for where the kernel does not; then it deletes the
// server's folder.
const script = `cat >/dev/null
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
if [ -n "$pid" ]; then
	kill -INT "$pid" 2>/dev/null
	n=0
	while kill -0 "$pid" 2>/dev/null && [ $n -lt 100 ]; do sleep 0.1; n=$((n+1)); done
fi
rm -rf -- "$1"`

// reaper is a process that cleans up after this one.
type reaper struct {
	cmd   *exec.Cmd
	alive *os.File // closed by the kernel when this process ends
}

// rootDir is where all the folders of this user's test servers are. The user that the servers run as must be able to
// pass through it.
func rootDir() (string, error) {
	root := filepath.Join(os.TempDir(), "cornjacket-pgtest-"+strconv.Itoa(os.Getuid()))
	if err := os.MkdirAll(root, 0o711); err != nil {
		return "", fmt.Errorf("create folder for test servers: %w", err)
	}
	info, err := os.Lstat(root)
	if err != nil {
		return "", fmt.Errorf("look at folder for test servers: %w", err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || !info.IsDir() || int(st.Uid) != os.Getuid() {
		return "", fmt.Errorf("%s is not a folder of this user", root) // anybody may put things into /tmp
	}
	if err := os.Chmod(root, 0o711); err != nil {
		return "", fmt.Errorf("open folder for test servers: %w", err)
	}
	return root, nil
}

// runDir makes a folder for one server, and deletes those that were left behind.
func runDir(root string) (string, error) {
	sweep(root)
	dir, err := os.MkdirTemp(root, "run-"+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		return "", fmt.Errorf("create folder for a test server: %w", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", fmt.Errorf("open folder for a test server: %w", err)
	}
	return dir, nil
}

// sweep deletes the folders of processes that are gone and whose reaper is too. It is a courtesy: what it can't delete
// stays for the next time.
func sweep(root string) {
	dirs, _ := filepath.Glob(filepath.Join(root, "run-*")) // the pattern is good
	for _, dir := range dirs {
		pid, err := strconv.Atoi(strings.Split(filepath.Base(dir), "-")[1])
		if err != nil || !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			continue
		}
		if running, err := os.ReadFile(filepath.Join(dir, "data", "postmaster.pid")); err == nil {
			line, _, _ := strings.Cut(string(running), "\n")
			if server, err := strconv.Atoi(line); err == nil && !errors.Is(syscall.Kill(server, 0), syscall.ESRCH) {
				continue
			}
		}
		_ = os.RemoveAll(dir)
	}
}

// startReaper starts the reaper of a server's folder. It must be kept as long as the server is needed.
func startReaper(dir string) (*reaper, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start reaper: %w", err)
	}
	cmd := exec.Command("/bin/sh", "-c", script, "pgtest-reaper", dir)
	cmd.Stdin = r
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a Ctrl-C is not for it
	err = cmd.Start()
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("start reaper: %w", err), w.Close())
	}
	return &reaper{cmd: cmd, alive: w}, nil
}

// reap lets the reaper do its work now, and waits for it.
func (r *reaper) reap() error {
	if err := errors.Join(r.alive.Close(), r.cmd.Wait()); err != nil {
		return fmt.Errorf("clean up after test server: %w", err)
	}
	return nil
}
