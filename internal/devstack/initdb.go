package devstack

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
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

	"github.com/cornjacket/platform-services/internal/proc"
)

// elsewhereDir is where data goes when the user that the server runs as can't reach the folder it was meant for.
const elsewhereDir = "/var/lib/cornjacket"

// dataFolder returns the absolute path, free of links, of the server's data folder, which need not exist yet.
//
// It is base/data, unless this process is root, base lies below a folder that only root may enter, such as /root, and
// the server runs as another user. Then base/data is a link to /var/lib/cornjacket/<name>-<hash of base>/data. What a
// base folder of the same name, deleted since, has left there is moved aside and not taken for its own.
func (c *PostgresConfig) dataFolder(id identity) (string, error) {
	base, err := filepath.EvalSymlinks(c.Dir)
	if err != nil {
		return "", err
	}
	if base, err = filepath.Abs(base); err != nil {
		return "", err
	}
	link := filepath.Join(base, "data")
	if id.reaches(base) {
		return link, nil
	}
	sum := sha256.Sum256([]byte(base))
	dir := filepath.Join(elsewhereDir, filepath.Base(base)+"-"+hex.EncodeToString(sum[:6]))
	data := filepath.Join(dir, "data")
	if to, err := os.Readlink(link); err == nil && to == data {
		return data, nil
	}
	if _, err := os.Lstat(link); err == nil {
		return "", fmt.Errorf("user %s can't reach %s, which was made by another user: move it, or start with --fresh", id.name, link)
	}
	if _, err := os.Stat(dir); err == nil {
		old := dir + ".old-" + strconv.FormatInt(time.Now().Unix(), 10)
		c.Log.Warn("data of a deleted folder moved aside; delete it when nobody misses it", "folder", base, "data", old)
		if err := os.Rename(dir, old); err != nil {
			return "", err
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, markerName), []byte("Belongs to "+base+"\n"), 0o644); err != nil {
		return "", err
	}
	c.Log.Info("PostgreSQL does not run as root: its data is elsewhere", "user", id.name, "data", data, "instead_of", link)
	return data, os.Symlink(data, link)
}

// dataMajor returns the major version that wrote a data folder, 0 if there is none.
func dataMajor(data string) (int, error) {
	text, err := os.ReadFile(filepath.Join(data, "PG_VERSION"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read version of data: %w", err)
	}
	major, _, _ := strings.Cut(strings.TrimSpace(string(text)), ".")
	n, err := strconv.Atoi(major)
	if err != nil {
		return 0, fmt.Errorf("read version of data in %s: %w", data, err)
	}
	return n, nil
}

// createData makes a data folder, all of it or nothing: with a template from a copy of that, else with initdb.
func (c *PostgresConfig) createData(ctx context.Context, id identity, bin binaries, data string) error {
	if c.Template == "" {
		return c.initdb(ctx, id, bin, data)
	}
	sum := sha256.Sum256([]byte(c.User + "\x00" + c.Password + "\x00" + id.name))
	template := filepath.Join(c.Template, "postgresql-"+bin.version+"-"+hex.EncodeToString(sum[:6]))
	if err := os.MkdirAll(c.Template, 0o755); err != nil {
		return err
	}
	lock, err := waitLock(ctx, template+".lock")
	if err != nil {
		return err
	}
	if _, err = os.Stat(template); err != nil {
		err = c.initdb(ctx, id, bin, template)
	}
	if err = errors.Join(err, lock.Close()); err != nil {
		return err
	}
	part := data + ".part"
	if err := errors.Join(os.RemoveAll(part), copyTree(id, template, part)); err != nil {
		return fmt.Errorf("copy %s: %w", template, err)
	}
	return os.Rename(part, data)
}

// initdb makes a data folder: passwords by SCRAM on every way in, UTF-8, and the order of bytes, which does not change
// with the system's libraries.
func (c *PostgresConfig) initdb(ctx context.Context, id identity, bin binaries, data string) error {
	part := data + ".part"
	if err := os.RemoveAll(part); err != nil {
		return err
	}
	if err := os.Mkdir(part, 0o700); err != nil {
		return err
	}
	pwfile := data + ".password"
	if err := os.WriteFile(pwfile, []byte(c.Password+"\n"), 0o600); err != nil {
		return err
	}
	defer func() { _ = os.Remove(pwfile) }() // it is rewritten next time, and nobody else may read it
	if err := errors.Join(id.own(part), id.own(pwfile)); err != nil {
		return err
	}
	args := []string{
		"--pgdata", part, "--username", c.User, "--pwfile", pwfile, "--auth", "scram-sha-256",
		"--encoding", "UTF8", "--no-locale",
	}
	if c.NoSync {
		args = append(args, "--no-sync")
	}
	cmd := exec.CommandContext(ctx, bin.path("initdb"), args...)
	cmd.Dir = "/" // the current folder may be one that the identity can't enter
	cmd.SysProcAttr = id.attr()
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) } // initdb cleans up after itself
	cmd.WaitDelay = 5 * time.Second
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := proc.Run(cmd, syscall.SIGINT); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, tail(out.String(), 5))
	}
	return os.Rename(part, data)
}

// copyTree copies a folder for an identity.
func copyTree(id identity, from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		dst := filepath.Join(to, rel)
		if d.IsDir() {
			if err := os.Mkdir(dst, 0o700); err != nil {
				return err
			}
			return id.own(dst)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.WriteFile(dst, content, 0o600); err != nil {
			return err
		}
		return id.own(dst)
	})
}

// waitLock is lockFile that waits for another process to be done.
func waitLock(ctx context.Context, path string) (*Lock, error) {
	for {
		lock, err := lockFile(path)
		if !errors.Is(err, ErrLocked) {
			return lock, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for %s: %w", path, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// tail returns the last lines of a text that are not empty.
func tail(text string, lines int) string {
	all := strings.FieldsFunc(text, func(r rune) bool { return r == '\n' })
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
