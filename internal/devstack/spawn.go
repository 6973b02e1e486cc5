package devstack

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
)

// identity is whom the server runs as.
type identity struct {
	name     string
	uid, gid int
	drop     bool // from root
}

// serverIdentity returns the user to run PostgreSQL as: this one, or postgres or nobody when this one is root, whom
// PostgreSQL refuses.
func serverIdentity() (identity, error) {
	if os.Getuid() != 0 {
		return identity{name: strconv.Itoa(os.Getuid()), uid: os.Getuid(), gid: os.Getgid()}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.Atoi(u.Uid)
		if err != nil {
			return identity{}, fmt.Errorf("read user ID of %s: %w", name, err)
		}
		gid, err := strconv.Atoi(u.Gid)
		if err != nil {
			return identity{}, fmt.Errorf("read group ID of %s: %w", name, err)
		}
		return identity{name: name, uid: uid, gid: gid, drop: true}, nil
	}
	return identity{}, errors.New("PostgreSQL does not run as root, and there is neither a user postgres nor nobody to run it as")
}

// attr returns how to start a process of this identity. It gets a process group of its own, so that a Ctrl-C in the
// terminal reaches only the platform, which stops the server when it no longer needs it.
func (id identity) attr() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true}
	if id.drop {
		attr.Credential = &syscall.Credential{Uid: uint32(id.uid), Gid: uint32(id.gid)}
	}
	dieWithParent(attr, syscall.SIGINT)
	return attr
}

// own gives a file or folder to the identity.
func (id identity) own(path string) error {
	if !id.drop {
		return nil
	}
	if err := os.Lchown(path, id.uid, id.gid); err != nil {
		return fmt.Errorf("give %s to user %s: %w", path, id.name, err)
	}
	return nil
}

// reaches tells whether the identity can get to a path: whether it may pass all folders above it that exist.
func (id identity) reaches(path string) bool {
	if !id.drop {
		return true
	}
	for dir := path; ; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err == nil && info.IsDir() && !id.passes(info) {
			return false
		}
		if dir == filepath.Dir(dir) {
			return true
		}
	}
}

func (id identity) passes(info os.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return false
	}
	switch mode := info.Mode().Perm(); {
	case int(st.Uid) == id.uid:
		return mode&0o100 != 0
	case int(st.Gid) == id.gid:
		return mode&0o010 != 0
	default:
		return mode&0o001 != 0
	}
}

// spawn starts a command and calls onEnd with the outcome of its Wait. The command is started and waited for on one
// thread that is kept meanwhile, since the death signal is tied to the thread.
func spawn(cmd *exec.Cmd, onEnd func(error)) error {
	started := make(chan error, 1)
	go waitOn(cmd, started, onEnd)
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return nil
}

func waitOn(cmd *exec.Cmd, started chan<- error, onEnd func(error)) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := cmd.Start()
	started <- err
	if err == nil {
		onEnd(cmd.Wait())
	}
}

// run runs a command to its end.
func run(cmd *exec.Cmd) error {
	ended := make(chan error, 1)
	if err := spawn(cmd, func(err error) { ended <- err }); err != nil {
		return err
	}
	return <-ended
}
