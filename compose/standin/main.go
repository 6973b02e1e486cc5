// Standin takes the place of the programs of container images that can't be pulled, so that the compose files are run
// and not only written: the test of the containers builds images from it and from what the machine has installed. What
// it does is decided by the name it is started under, as the image's own program would be.
//
// It behaves as the real program does as far as the compose files and the tests rely on it, and no further; it is not
// for production.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

// programs are what this binary can stand in for, by the name of the real program.
var programs = map[string]func(ctx context.Context, args []string) error{
	"postgres-entrypoint": postgresEntrypoint,
	"rpk":                 rpk,
	"console":             console,
	"emqx":                emqx,
	"traefik":             traefik,
	"wget":                wget,
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	name := filepath.Base(os.Args[0])
	err := errors.New("standin: no program of this name; it is called by the name of what it stands in for")
	if program, ok := programs[name]; ok {
		err = program(ctx, os.Args[1:])
	}
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}
