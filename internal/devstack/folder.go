package devstack

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Files that make a folder one of ours.
const (
	markerName = ".cornjacket-dev"
	lockName   = ".lock"
	markerText = "Data of `platform dev`. `platform dev --fresh` deletes everything in this folder.\n"
)

// ErrLocked says that a data folder is in use by another process.
var ErrLocked = errors.New("data folder is in use")

// Lock is the right to use a data folder, held until Close or the end of the process, however it ends.
type Lock struct{ file *os.File }

// LockFolder takes a data folder for this process, creating it if need be. The errors are ErrLocked, naming the other
// process, and one for a folder that holds something but was not made by us.
func LockFolder(dir string) (*Lock, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("create data folder: %w", err)
	}
	if err := claim(dir); err != nil {
		return nil, err
	}
	l, err := lockFile(filepath.Join(dir, lockName))
	if errors.Is(err, ErrLocked) {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return l, err
}

// Close gives the folder up. Keep the Lock until then: one that is collected is released.
func (l *Lock) Close() error {
	// Closing alone would leave the lock with a child process that has been forked and has not got to its exec.
	err := syscall.Flock(int(l.file.Fd()), syscall.LOCK_UN)
	if closeErr := l.file.Close(); closeErr != nil {
		err = closeErr // it was closed before: unlocking failed for the same reason
	}
	if err != nil {
		return fmt.Errorf("release lock: %w", err)
	}
	return nil
}

// claim makes sure that a folder carries the marker; one that is not empty and does not is not ours.
func claim(dir string) error {
	marker := filepath.Join(dir, markerName)
	if _, err := os.Stat(marker); err == nil {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read data folder: %w", err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s is not a data folder of platform dev: it is not empty and has no %s", dir, markerName)
	}
	if err := os.WriteFile(marker, []byte(markerText), 0o644); err != nil {
		return fmt.Errorf("mark data folder: %w", err)
	}
	return nil
}

// lockFile locks a file without waiting, and writes the process ID into it for the next one.
func lockFile(path string) (*Lock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer func() { _ = f.Close() }() // nothing was written
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		buf := make([]byte, 20)
		n, _ := f.Read(buf) // only for the message
		return nil, fmt.Errorf("%w by process %s", ErrLocked, strings.TrimSpace(string(buf[:n])))
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write lock: %w", err), f.Close())
	}
	return &Lock{f}, nil
}

// Wipe deletes what is in a data folder, and what StartPostgres had to put elsewhere for it; the folder itself stays.
// A folder that does not exist is fine. It refuses one that is not ours or that is in use (ErrLocked), and stops a
// PostgreSQL server that was left behind on it.
func Wipe(dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	lock, err := LockFolder(dir)
	if err != nil {
		return fmt.Errorf("delete old data: %w", err)
	}
	if err := errors.Join(wipe(dir), lock.Close()); err != nil {
		return fmt.Errorf("delete old data: %w", err)
	}
	return nil
}

func wipe(dir string) error {
	// A data folder of PostgreSQL lies one level down at most: <dir>/data or <dir>/<anything>/data.
	var elsewhere []string
	for _, pattern := range []string{"data", "*/data"} {
		found, err := filepath.Glob(filepath.Join(globQuote(dir), pattern))
		if err != nil {
			return fmt.Errorf("look for data: %w", err)
		}
		for _, data := range found {
			real, err := filepath.EvalSymlinks(data)
			if err != nil {
				continue // a link whose target is gone already
			}
			if _, err := os.Stat(filepath.Join(real, "PG_VERSION")); err != nil {
				continue
			}
			if err := stopOrphan(real); err != nil {
				return err
			}
			if base := filepath.Dir(real); filepath.Dir(base) == elsewhereDir {
				elsewhere = append(elsewhere, base)
			}
		}
	}
	for _, base := range elsewhere {
		if _, err := os.Stat(filepath.Join(base, markerName)); err != nil {
			return fmt.Errorf("%s is not ours: %w", base, err)
		}
		if err := os.RemoveAll(base); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == markerName || e.Name() == lockName {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// globQuote makes a path match itself only.
func globQuote(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}
