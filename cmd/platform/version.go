package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
)

// Set by the linker; see the Makefile.
var (
	version string
	commit  string
)

// printVersion prints the version of this build, its commit, and what it was built with.
func printVersion(w io.Writer) error {
	v, c := stamp()
	if _, err := fmt.Fprintf(w, "platform %s (commit %s, %s, %s/%s)\n", v, c, runtime.Version(), runtime.GOOS, runtime.GOARCH); err != nil {
		return fmt.Errorf("print the version: %w", err)
	}
	return nil
}

// stamp returns version and commit, from the module where the linker was given none, as with `go install`.
func stamp() (v, c string) {
	v, c = version, commit
	info, ok := debug.ReadBuildInfo()
	if ok && v == "" {
		v = info.Main.Version
	}
	if ok && c == "" {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				c = s.Value
			}
		}
	}
	if v == "" || v == "(devel)" {
		v = "devel"
	}
	if c == "" {
		c = "unknown"
	}
	return v, c
}
