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

	"github.com/cornjacket/platform-services/internal/proc"
)

// StopOrphan stops a server that a killed process left behind on the folder of a [PostgresConfig], so that its port is
// free. StartPostgres does it too; this is for callers that look at ports before that. The caller holds the lock on the folder.
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
	if !proc.Alive(pid) {
		return nil // PostgreSQL removes the file itself, after it has looked for shared memory still in use
	}
	if !isServer(pid, dataDir) {
		// The ID was given to another process, which PostgreSQL would take for the old server and refuse to start.
		if err := os.Remove(pidFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove process ID of an old server: %w", err)
		}
		return nil
	}
	if err := proc.StopOrphan(pid, syscall.SIGINT, syscall.SIGQUIT); err != nil {
		return fmt.Errorf("stop old server on %s: %w", dataDir, err)
	}
	return nil
}

// isServer reports whether a process is a PostgreSQL server on a data folder.
func isServer(pid int, dataDir string) bool {
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err == nil {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		return err == nil && strings.HasPrefix(string(comm), "postgres") && cwd == dataDir
	}
	out, err := exec.Command("ps", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && strings.Contains(string(out), "postgres") && strings.Contains(string(out), dataDir)
}
