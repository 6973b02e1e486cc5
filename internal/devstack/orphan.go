package devstack

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// How long a server that was left behind may take for a fast and for an immediate shutdown.
const (
	orphanFast      = 10 * time.Second
	orphanImmediate = 10 * time.Second
	orphanPoll      = 20 * time.Millisecond
)

// StopOrphan stops a server that a killed process left behind on the folder of a [PostgresConfig], so that its port is
// free. StartPostgres does it too; this is for who looks at ports before that. The caller holds the lock on the folder.
func StopOrphan(dir string) error {
	data, err := filepath.EvalSymlinks(filepath.Join(dir, "data"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find data folder: %w", err)
	}
	return stopOrphan(data)
}

// stopOrphan stops a server that a platform which was killed has left on a data folder, so that a new one can start
// on it. The caller holds the lock on the folder: whoever is there belongs to nobody.
func stopOrphan(dataDir string) error {
	pidFile := filepath.Join(dataDir, "postmaster.pid")
	content, err := os.ReadFile(pidFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read process ID of an old server: %w", err)
	}
	line, _, _ := strings.Cut(string(content), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || pid <= 1 {
		return nil // half written; PostgreSQL says what to do about it
	}
	if !alive(pid) {
		return nil // PostgreSQL removes the file itself, after it has looked for shared memory still in use
	}
	if !isServer(pid, dataDir) {
		// The ID was given to another process, which PostgreSQL would take for the old server and refuse to start.
		if err := os.Remove(pidFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove process ID of an old server: %w", err)
		}
		return nil
	}
	for _, try := range []struct {
		signal syscall.Signal
		wait   time.Duration
	}{{syscall.SIGINT, orphanFast}, {syscall.SIGQUIT, orphanImmediate}} {
		if err := interrupt(pid, try.signal); err != nil {
			return fmt.Errorf("stop old server, process %d: %w", pid, err)
		}
		for end := time.After(try.wait); ; {
			if !alive(pid) {
				return nil
			}
			select {
			case <-time.After(orphanPoll):
				continue
			case <-end:
			}
			break
		}
	}
	return fmt.Errorf("stop old server: process %d on %s does not end", pid, dataDir)
}

// interrupt sends a signal to a process that may have been stopped with SIGSTOP. One that has ended is fine.
func interrupt(pid int, signal syscall.Signal) error {
	err := errors.Join(syscall.Kill(pid, signal), syscall.Kill(pid, syscall.SIGCONT))
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}

func alive(pid int) bool {
	err := syscall.Kill(pid, 0)
	if err != nil && !errors.Is(err, syscall.EPERM) {
		return false
	}
	// A zombie can still be signalled; its state is the first field after the name in parentheses (proc_pid_stat(5)).
	if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil {
		if i := strings.LastIndexByte(string(stat), ')'); i >= 0 && strings.HasPrefix(string(stat[i:]), ") Z") {
			return false
		}
	}
	return true
}

// isServer tells whether a process is a PostgreSQL server on a data folder.
func isServer(pid int, dataDir string) bool {
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err == nil {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		return err == nil && strings.HasPrefix(string(comm), "postgres") && cwd == dataDir
	}
	out, err := exec.Command("ps", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && strings.Contains(string(out), "postgres") && strings.Contains(string(out), dataDir)
}
