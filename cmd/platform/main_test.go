package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/internal/config"
)

// call runs the command in this process with work in place of the platform.
func call(t *testing.T, w work, env map[string]string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	p := &program{
		env:    func(name string) (string, bool) { v, ok := env[name]; return v, ok },
		stdout: &out, stderr: &errs, work: w,
	}
	code = p.main(t.Context(), args)
	return code, out.String(), errs.String()
}

func TestUsage(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		args   []string
		env    map[string]string
		code   int
		stdout string
		stderr string
	}{
		{name: "nothing", code: exitUsage, stderr: "Usage: platform <command>"},
		{name: "help", args: []string{"--help"}, stdout: "Usage: platform <command>"},
		{name: "help of a command", args: []string{"migrate", "--help"}, stdout: "Usage: platform migrate <action>"},
		{name: "unknown command", args: []string{"walk"}, code: exitUsage, stderr: "platform: unexpected argument walk"},
		{name: "unknown flag", args: []string{"run", "--walk"}, code: exitUsage, stderr: "platform: unknown flag --walk"},
		{name: "further argument", args: []string{"run", "walk"}, code: exitUsage, stderr: "platform: unexpected argument walk"},
		{name: "missing argument", args: []string{"migrate"}, code: exitUsage, stderr: `platform: expected "<action>"`},
		{
			name: "bad variable", args: []string{"run"}, env: map[string]string{"WINDOW": "x"}, code: exitError,
			stderr: `platform: WINDOW (--window): "x" is not a number; takes`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			code, stdout, stderr := call(t, work{}, c.env, c.args...)
			require.Equal(t, c.code, code)
			require.True(t, strings.HasPrefix(stdout, c.stdout) && (stdout == "") == (c.stdout == ""), stdout)
			require.True(t, strings.HasPrefix(stderr, c.stderr) && (stderr == "") == (c.stderr == ""), stderr)
			if strings.HasPrefix(stderr, "platform: ") {
				require.Equal(t, 1, strings.Count(stderr, "\n"), "one line: %s", stderr)
			}
		})
	}
}

func TestHelpNamesVariableAndDefault(t *testing.T) {
	t.Parallel()
	code, help, _ := call(t, work{}, nil, "run", "--help")
	require.Equal(t, exitOK, code)
	help = strings.Join(strings.Fields(help), " ")
	for _, want := range []string{
		"--ingestion-addr=HOST:PORT Ingestion: HTTP API and health (INGESTION_ADDR, default 127.0.0.1:8080).",
		"(TOPIC_PARTITIONS, default 8 partitions).",
		"(SHUTDOWN_TIMEOUT, default 15s).",
		"(LOG_FORMAT, default json).",
		"Default: cornjacket-ingestion-<hostname> (MQTT_CLIENT_ID).",
		"(EMBEDDED_MQTT).",
	} {
		require.Contains(t, help, want)
	}
}

func TestCommandsGetTheirSettings(t *testing.T) {
	t.Parallel()
	var got []string
	w := work{
		run: func(_ context.Context, c config.Run, log *slog.Logger) error {
			log.Debug("not shown")
			log.Info("shown")
			got = append(got, "run "+strings.Join(c.Services, "+"))
			return nil
		},
		dev: func(_ context.Context, c config.Dev, out io.Writer, log *slog.Logger) error {
			log.Debug("shown")
			got = append(got, "dev "+c.DataDir)
			_, err := io.WriteString(out, "banner\n")
			return err
		},
		migrate: func(_ context.Context, c config.Migrate, _ io.Writer) error {
			got = append(got, "migrate "+c.Action)
			return errors.Join(errors.New("one"), errors.New("two"))
		},
		simulate: func(_ context.Context, c config.Simulate, _ io.Writer) error {
			got = append(got, "simulate "+c.URL)
			return nil
		},
		routes: func(io.Writer) error { return nil },
	}
	code, stdout, stderr := call(t, w, nil, "run", "--services=relay")
	require.Equal(t, exitOK, code)
	require.Empty(t, stdout)
	require.Contains(t, stderr, `"msg":"shown"`)
	require.NotContains(t, stderr, "not shown")

	code, stdout, stderr = call(t, w, map[string]string{"LOG_LEVEL": "debug"}, "dev", "--data-dir=/d")
	require.Equal(t, exitOK, code)
	require.Equal(t, "banner\n", stdout)
	require.Contains(t, stderr, "level=DEBUG msg=shown")

	code, _, stderr = call(t, w, nil, "migrate", "status")
	require.Equal(t, exitError, code)
	require.Equal(t, "platform: one; two\n", stderr, "one line, once")

	code, _, _ = call(t, w, nil, "simulate", "--url=mqtt://x")
	require.Equal(t, exitOK, code)
	require.Equal(t, []string{"run relay", "dev /d", "migrate status", "simulate mqtt://x:1883"}, got)
}

func TestHealth(t *testing.T) {
	t.Parallel()
	serve := func(status int, body string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/health" {
				status = http.StatusNotFound
			}
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}))
		t.Cleanup(s.Close)
		return s.Listener.Addr().String()
	}
	good := serve(200, `{"status":"ok","service":"query","uptime_seconds":3,"checks":{"postgres":{"status":"ok","latency_ms":1}}}`)
	bad := serve(503, `{"status":"failing","service":"relay","checks":{"bus":{"status":"failing","error":"no answer\nsince 5 s"},"postgres":{"status":"ok"},"router":{"status":"stopped"}}}`)
	odd := serve(200, `<html>`)
	env := map[string]string{"QUERY_ADDR": good, "RELAY_HEALTH_ADDR": bad, "INGESTION_ADDR": odd}

	code, stdout, stderr := call(t, work{}, env, "health", "--services=query")
	require.Equal(t, exitOK, code, stderr)
	require.Equal(t, []string{"query", good, "ok"}, strings.Fields(stdout))
	require.Empty(t, stderr)

	code, stdout, stderr = call(t, work{}, env, "health", "--services=query,relay,ingestion")
	require.Equal(t, exitError, code)
	require.Equal(t, "platform: 2 of 3 not ok: ingestion, relay\n", stderr)
	require.Contains(t, stdout, "bus: no answer; since 5 s; router: stopped\n")
	require.Contains(t, stdout, "answered 200, which is no health answer")
	require.Equal(t, 3, strings.Count(stdout, "\n"), "one line each: %s", stdout)

	code, stdout, _ = call(t, work{}, nil, "health", "--json", "--addr", good+","+bad)
	require.Equal(t, exitError, code)
	require.Contains(t, stdout, `"ok":true,"answer":{"status":"ok","service":"query"`)
	require.Contains(t, stdout, `"ok":false,"error":"bus: no answer; since 5 s; router: stopped"`)
}

func TestHealthDoesNotHang(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	t.Cleanup(s.Close)
	t.Cleanup(func() { close(release) })
	start := time.Now()
	code, stdout, _ := call(t, work{}, nil, "health", "--timeout=50ms", "--addr", s.Listener.Addr().String())
	require.Equal(t, exitError, code)
	require.Contains(t, stdout, "no answer")
	require.Less(t, time.Since(start), 10*time.Second)
}
