package pgtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/cornjacket/platform-services/internal/proc"
)

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

// sweep deletes the folders of processes that are gone and whose guard is too. It is a courtesy: what it can't delete
// stays for the next time.
func sweep(root string) {
	dirs, _ := filepath.Glob(filepath.Join(root, "run-*")) // the pattern is good
	for _, dir := range dirs {
		pid, err := strconv.Atoi(strings.Split(filepath.Base(dir), "-")[1])
		if err != nil || proc.Alive(pid) {
			continue
		}
		if running, err := os.ReadFile(filepath.Join(dir, "data", "postmaster.pid")); err == nil {
			line, _, _ := strings.Cut(string(running), "\n")
			if server, err := strconv.Atoi(line); err == nil && proc.Alive(server) {
				continue
			}
		}
		_ = os.RemoveAll(dir)
	}
}
