package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

const postgresBin = "/usr/lib/postgresql/bin"

// postgresEntrypoint does what the entrypoint of the official image does for the variables that the compose file uses:
// it makes the data directory at the first start, with user, password and database, and becomes the server that the
// arguments ask for, as the user postgres.
func postgresEntrypoint(ctx context.Context, args []string) error {
	if len(args) == 0 || args[0] != "postgres" {
		return fmt.Errorf("only the command postgres is known, not %q", args)
	}
	data := cmp.Or(os.Getenv("PGDATA"), "/var/lib/postgresql/data")
	owner, err := owned(data)
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(data, "PG_VERSION")); errors.Is(err, os.ErrNotExist) {
		if err := initialise(ctx, data, owner); err != nil {
			return fmt.Errorf("create the database: %w", err)
		}
	} else if err != nil {
		return fmt.Errorf("look into the data directory: %w", err)
	}
	if err := become(owner); err != nil {
		return err
	}
	program := filepath.Join(postgresBin, "postgres")
	server := append([]string{program, "-D", data, "-c", "listen_addresses=*", "-c", "unix_socket_directories=/tmp"}, args[1:]...)
	if err := syscall.Exec(program, server, os.Environ()); err != nil {
		return fmt.Errorf("start the server: %w", err)
	}
	return nil
}

// owned makes a directory of the user postgres and returns that user.
func owned(dir string) (*syscall.Credential, error) {
	account, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("look up the server's user: %w", err)
	}
	uid, err := strconv.ParseUint(account.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("read the server's user: %w", err)
	}
	gid, err := strconv.ParseUint(account.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("read the server's group: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the data directory: %w", err)
	}
	if err := errors.Join(os.Chmod(dir, 0o700), os.Chown(dir, int(uid), int(gid))); err != nil {
		return nil, fmt.Errorf("own the data directory: %w", err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

// initialise makes the data directory. As in the official image connections from elsewhere need the password, those
// from inside the container do not.
func initialise(ctx context.Context, data string, owner *syscall.Credential) error {
	name := cmp.Or(os.Getenv("POSTGRES_USER"), "postgres")
	password := os.Getenv("POSTGRES_PASSWORD")
	if password == "" {
		return errors.New("POSTGRES_PASSWORD is not set")
	}
	run := func(stdin, program string, args ...string) error {
		cmd := exec.CommandContext(ctx, filepath.Join(postgresBin, program), args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: owner}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), os.Stdout, os.Stderr
		cmd.Dir = "/"
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("run %s: %w", program, err)
		}
		return nil
	}
	secret := "/tmp/password" // initdb takes it from a file only; root's standard input is closed to its user
	if err := errors.Join(os.WriteFile(secret, []byte(password+"\n"), 0o600), os.Chown(secret, int(owner.Uid), int(owner.Gid))); err != nil {
		return fmt.Errorf("hand over the password: %w", err)
	}
	initdb := append(strings.Fields(os.Getenv("POSTGRES_INITDB_ARGS")),
		"--pgdata", data, "--username", name, "--pwfile", secret, "--encoding", "UTF8", "--locale", "C.UTF-8",
		"--auth-local", "trust", "--auth-host", "trust", "--no-instructions")
	if err := errors.Join(run("", "initdb", initdb...), os.Remove(secret)); err != nil {
		return err
	}
	access, err := os.OpenFile(filepath.Join(data, "pg_hba.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("let clients in: %w", err)
	}
	_, err = access.WriteString("\nhost all all all scram-sha-256\n")
	if err = errors.Join(err, access.Close()); err != nil {
		return fmt.Errorf("let clients in: %w", err)
	}
	// A single-user server takes the statement without listening to anyone.
	if database := cmp.Or(os.Getenv("POSTGRES_DB"), name); database != "postgres" {
		statement := fmt.Sprintf("CREATE DATABASE %q;\n", database)
		return run(statement, "postgres", "--single", "-j", "-D", data, "postgres")
	}
	return nil
}

// become gives up root for good.
func become(owner *syscall.Credential) error {
	err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(int(owner.Gid)), syscall.Setuid(int(owner.Uid)))
	if err != nil {
		return fmt.Errorf("become the server's user: %w", err)
	}
	return nil
}
