package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/internal/config"
)

// asProgram is the variable by which the test binary is told to act as the command, with services that do nothing
// but stop, or refuse to.
const asProgram = "PLATFORM_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	kind := os.Getenv(asProgram)
	if kind == "" {
		os.Exit(m.Run())
	}
	ctx, stop := untilSignal(context.Background(), os.Stderr, os.Exit)
	code := (&program{env: os.LookupEnv, stdout: os.Stdout, stderr: os.Stderr, work: work{
		run: func(ctx context.Context, _ config.Run, _ *slog.Logger) error {
			fmt.Println("started")
			<-ctx.Done()
			fmt.Println("stopping")
			if kind == "hang" {
				select {}
			}
			return nil
		},
	}}).main(ctx, []string{"run"})
	stop()
	os.Exit(code)
}

func TestSignals(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, kind string
		signal     syscall.Signal
		again      bool
		code       int
		stderr     string
	}{
		{"SIGTERM stops cleanly", "stop", syscall.SIGTERM, false, exitOK, ""},
		{"SIGINT stops cleanly", "stop", syscall.SIGINT, false, exitOK, ""},
		{"a second one ends what hangs", "hang", syscall.SIGTERM, true, exitError, "platform: terminated again, stopping at once\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, os.Args[0])
			cmd.Env = append(os.Environ(), asProgram+"="+c.kind)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			stdout, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			readLine(t, stdout, "started\n")
			require.NoError(t, cmd.Process.Signal(c.signal))
			readLine(t, stdout, "stopping\n")
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			if c.again { // until it is late enough not to be one with the first
				require.Eventually(t, func() bool {
					err = cmd.Process.Signal(c.signal)
					return err != nil
				}, time.Minute, burst/4)
				require.ErrorIs(t, err, os.ErrProcessDone)
			}
			require.Equal(t, c.code, exitCode(t, <-ended))
			require.Equal(t, c.stderr, stderr.String())
		})
	}
}

func readLine(t *testing.T, r io.Reader, want string) {
	t.Helper()
	line := make([]byte, len(want))
	_, err := io.ReadFull(r, line)
	require.NoError(t, err)
	require.Equal(t, want, string(line))
}

func exitCode(t *testing.T, err error) int {
	t.Helper()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	require.NoError(t, err)
	return 0
}

// TestBinary builds the command as the Makefile does and calls it as a user does.
func TestBinary(t *testing.T) {
	t.Parallel()
	binary := filepath.Join(t.TempDir(), "platform")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-X main.version=v1.2.3 -X main.commit=abc1234", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)

	for _, c := range []struct {
		name           string
		env            string
		args           []string
		code           int
		stdout, stderr string
	}{
		{name: "version", args: []string{"version"}, stdout: "platform v1.2.3 (commit abc1234, go1."},
		{name: "routes", args: []string{"routes"}, stdout: "outbox"},
		{name: "no arguments", code: exitUsage, stderr: "Usage: platform <command>"},
		{name: "unknown flag", args: []string{"run", "--no-such"}, code: exitUsage, stderr: "platform: unknown flag --no-such"},
		{
			name: "malformed variable", env: "TOPIC_PARTITIONS=abc", args: []string{"run"}, code: exitError,
			stderr: "platform: TOPIC_PARTITIONS (--topic-partitions): \"abc\" is not a number; takes a number of partitions, at least 1\n",
		},
		{
			name: "health of nothing", args: []string{"health", "--addr=127.0.0.1:1"}, code: exitError,
			stdout: "connection refused", stderr: "platform: 1 of 1 not ok: 127.0.0.1:1\n",
		},
		{
			name: "no database", env: "INGESTION_DATABASE_URL=postgres://u:geheim@127.0.0.1:1/d",
			args: []string{"migrate", "status", "--services=ingestion", "--startup-timeout=100ms"}, code: exitError, stderr: "platform: ",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, binary, c.args...)
			cmd.Env = append(os.Environ(), c.env)
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			require.Equal(t, c.code, exitCode(t, cmd.Run()), "%s", &stderr)
			require.Contains(t, stdout.String(), c.stdout)
			require.True(t, strings.HasPrefix(stderr.String(), c.stderr) && (stderr.Len() == 0) == (c.stderr == ""), &stderr)
			require.NotContains(t, stderr.String(), "geheim")
		})
	}
}
