package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cornjacket/platform-services/internal/proc"
)

const (
	wait    = 60 * time.Second // for what must happen; far more than it takes
	tick    = 25 * time.Millisecond
	answers = 10 * time.Second // for one HTTP request
)

var (
	live   = os.Getenv("E2E_LIVE") == "1"
	root   string // folder of this run, deleted at its end
	binary string // the built command
	guard  *proc.Guard
	run    = strconv.FormatInt(time.Now().UnixMilli(), 36) + strconv.Itoa(os.Getpid())
)

func TestMain(m *testing.M) {
	if os.Getenv(busListen) != "" {
		if err := serveBus(); err != nil {
			fmt.Fprintln(os.Stderr, "e2e: bus:", err)
			os.Exit(1)
		}
		return
	}
	code, err := testMain(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func testMain(m *testing.M) (code int, err error) {
	if root, err = os.MkdirTemp("", "cornjacket-e2e-"); err != nil {
		return 0, fmt.Errorf("create folder of this run: %w", err)
	}
	if err := os.Chmod(root, 0o755); err != nil { // PostgreSQL runs as another user when this is root
		return 0, fmt.Errorf("open folder of this run: %w", err)
	}
	if guard, err = proc.StartGuard(root, ""); err != nil {
		return 0, errors.Join(err, os.RemoveAll(root))
	}
	defer func() { err = errors.Join(err, guard.Close()) }()
	binary = filepath.Join(root, "platform")
	build := exec.Command("go", "build", "-trimpath", "-o", binary, "./cmd/platform")
	build.Dir = ".."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build the command: %w\n%s", err, out)
	}
	code = m.Run()
	if !sharedStarted.Load() {
		return code, nil
	}
	return code, stopShared()
}

var (
	sharedOnce    sync.Once
	sharedStarted atomic.Bool
	sharedUp      *platform
	sharedErr     error
)

// shared returns the platform for tests that only talk to one: the running one with E2E_LIVE=1, else one that this
// process starts with the first of them.
func shared(t testing.TB) *platform {
	t.Helper()
	if live {
		return livePlatform()
	}
	sharedOnce.Do(func() {
		sharedStarted.Store(true)
		dir, err := folder("shared")
		if err == nil {
			sharedUp, err = startDev(context.Background(), dir)
		}
		sharedErr = err
	})
	if sharedErr != nil {
		t.Fatalf("start the shared platform: %v", sharedErr)
	}
	return sharedUp
}

// stopShared is the last test: after all the others the platform still stops cleanly.
func stopShared() error {
	if sharedErr != nil {
		return nil // its tests have said so
	}
	code, err := sharedUp.process.stop()
	if err != nil || code != 0 {
		return fmt.Errorf("the shared platform ended with exit code %d, error %w\n%s", code, err, sharedUp.process.stderr.tail())
	}
	if log := sharedUp.process.stderr.String(); strings.Contains(log, "panic") {
		return fmt.Errorf("the shared platform has logged a panic:\n%s", log)
	}
	return nil
}

func livePlatform() *platform {
	const database = "postgres://cornjacket:cornjacket@localhost:5432/cornjacket?sslmode=disable"
	env := func(name, fallback string) string { return strings.TrimSuffix(cmp.Or(os.Getenv(name), fallback), "/") }
	return &platform{
		ingestion:     env("E2E_INGESTION_URL", "http://127.0.0.1:8080"),
		query:         env("E2E_QUERY_URL", "http://127.0.0.1:8081"),
		eventhandler:  env("E2E_EVENTHANDLER_URL", "http://127.0.0.1:8084"),
		relay:         env("E2E_RELAY_URL", "http://127.0.0.1:8086"),
		gateway:       env("E2E_GATEWAY_URL", ""),
		mqtt:          env("E2E_MQTT_ADDR", "127.0.0.1:1883"),
		kafka:         env("REDPANDA_BROKERS", "localhost:9092"),
		database:      env("INGESTION_DATABASE_URL", database),
		projectionsDB: env("EVENTHANDLER_DATABASE_URL", database),
	}
}

// own skips a test that starts and stops platforms of its own where only the running one is to be tested, and in short
// runs.
func own(t testing.TB) {
	t.Helper()
	if live {
		t.Skip("E2E_LIVE=1 tests the platform that is running; this test starts its own")
	}
	if testing.Short() {
		t.Skip("starts a platform of its own")
	}
}

var serial atomic.Int64

// unique returns a name that no other test and no other run uses.
func unique(label string) string { return fmt.Sprintf("e2e-%s-%s-%d", label, run, serial.Add(1)) }

// folder makes a folder that the user postgres can pass through.
func folder(label string) (string, error) {
	dir := filepath.Join(root, unique(label))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("create data folder: %w", err)
	}
	return dir, nil
}

func newFolder(t testing.TB) string {
	t.Helper()
	dir, err := folder("data")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}
