package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// root returns the folder of go.mod and the path of its module.
func root(t *testing.T) (dir, module string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}\n{{.Path}}").Output()
	require.NoError(t, err, "find the module")
	dir, module, ok := strings.Cut(strings.TrimSpace(string(out)), "\n")
	require.True(t, ok, "%q", out)
	return dir, module
}

func list(t *testing.T, dir string) []pkg {
	t.Helper()
	// -e: a package that does not compile is the compiler's to report; its imports count all the same.
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = dir
	out, err := cmd.Output()
	require.NoError(t, err, "list the packages")
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return pkgs
		}
		require.NoError(t, err)
		pkgs = append(pkgs, p)
	}
}

func TestImports(t *testing.T) {
	t.Parallel()
	dir, module := root(t)
	pkgs := list(t, dir)
	require.NotEmpty(t, pkgs)
	for _, line := range checkImports(module, pkgs) {
		t.Error(line)
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	dir, _ := root(t)
	seen := 0
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if skipped(filepath.ToSlash(rel)) {
				return fs.SkipDir
			}
			return nil
		}
		if filepath.Ext(name) != ".go" {
			return nil
		}
		src, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		seen++
		broken, err := checkFile(filepath.ToSlash(rel), src)
		if err != nil {
			t.Errorf("%s: %v", rel, err)
		}
		for _, line := range broken {
			t.Error(line)
		}
		return nil
	})
	require.NoError(t, err)
	require.Greater(t, seen, 10)
}

// A module built wrong in every way that the rules name, and right where they allow it.
func TestTheCheckerCanFail(t *testing.T) {
	t.Parallel()
	pkgs := []pkg{
		{ImportPath: "m/event", Imports: []string{"time", "os", "net/http", "github.com/google/uuid", "github.com/jackc/pgx/v5", "m/store"}},
		{ImportPath: "m/handlers/sensor", Imports: []string{"m/event", "m/handlers", "m/handlers/user", "log/slog", "m/routers"}},
		{ImportPath: "m/pubsub/kafka", Imports: []string{"m/event", "m/pubsub/batch", "m/pubsub/mqtt", "m/internal/health"},
			TestImports: []string{"m/pubsub/outbox", "m/internal/pgtest", "m/pubsub/batch"}, XTestImports: []string{"m/pubsub/kafka", "m/pubsub/mochi"}},
		{ImportPath: "m/pubsub/outbox", Imports: []string{"github.com/jackc/pgx/v5/pgxpool", "github.com/twmb/franz-go/pkg/kgo"}},
		{ImportPath: "m/pubsub/mqtt", Imports: []string{"github.com/eclipse/paho.golang/paho"}, XTestImports: []string{"github.com/mochi-mqtt/server/v2"}},
		{ImportPath: "m/pubsub/batch", Imports: []string{"m/event", "m/pubsub/kafka", "github.com/jackc/pgx/v5"}},
		{ImportPath: "m/store", Imports: []string{"m/event", "github.com/jackc/pgx/v5", "m/api", "github.com/eclipse/paho.golang/paho"}, TestImports: []string{"m/internal/pgtest"}},
		{ImportPath: "m/api", Imports: []string{"m/event", "m/store", "m/routers", "github.com/danielgtaylor/huma/v2", "net/http"}},
		{ImportPath: "m/routers", Imports: []string{"m/event", "m/handlers/sensor", "m/pubsub/kafka", "m/internal/health", "m/store", "m/api", "m/internal/config"}},
		{ImportPath: "m/migrations/tsdb", Imports: []string{"embed", "m/store"}},
		{ImportPath: "m/cmd/platform", Imports: []string{"m/internal/app", "m/routers", "m/store"}},
		{ImportPath: "m/internal/app", Imports: []string{"m/api", "m/store", "m/pubsub/kafka", "m/pubsub/mqtt", "golang.org/x/sync/errgroup"}},
		{ImportPath: "m/internal/health", Imports: []string{"m/store"}},
		{ImportPath: "m/e2e", XTestImports: []string{"m/event"}},
		{ImportPath: "m/utils"},
		{ImportPath: "m"},
	}
	want := []string{
		"event imports os: event does no I/O",
		"event imports net/http: event does no I/O",
		"event imports github.com/jackc/pgx/v5: event may import of third parties only",
		"event imports m/store: event may import of this module only []",
		"handlers/sensor imports m/handlers/user: ",
		"handlers/sensor imports log/slog: handlers/... does no I/O and no logging",
		"handlers/sensor imports m/routers: ",
		"pubsub/kafka imports m/pubsub/mqtt: pubsub/* may import of this module only [event internal/fault ledger pubsub/batch]",
		"pubsub/kafka imports m/internal/health: ",
		"pubsub/kafka imports m/pubsub/outbox in a test: a driver never imports a sibling",
		"pubsub/kafka imports m/pubsub/mochi in a test: a driver never imports a sibling",
		"pubsub/outbox uses the drivers of Kafka and Postgres: one driver a folder",
		"pubsub/batch imports m/pubsub/kafka: ",
		"pubsub/batch imports github.com/jackc/pgx/v5: ",
		"store imports m/api: ",
		"store imports github.com/eclipse/paho.golang/paho: ",
		"api imports m/routers: api/... may import of this module only [event store ledger deadletter internal/fault]",
		"routers imports m/api: ",
		"routers imports m/internal/config: ",
		"migrations/tsdb imports m/store: ",
		"cmd/platform imports m/store: ",
		"internal/health imports m/store: ",
		"utils: no rule names this folder",
		": no rule names this folder",
	}
	got := checkImports("m", pkgs)
	require.Len(t, got, len(want), "%s", strings.Join(got, "\n"))
	for i := range want {
		require.True(t, strings.HasPrefix(got[i], want[i]), "%q is not %q", got[i], want[i])
	}
}

func TestTheFileCheckerCanFail(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("\n", maxLines)
	for _, tt := range []struct {
		name, src string
		want      []string
	}{
		{"a.go", "package a\n", nil},
		{"a.go", "package a\n" + long[1:], nil},
		{"a.go", "package a\n" + long, []string{"a.go: 551 lines, at most 550"}},
		{"a.go", "// Code generated by sqlc. DO NOT EDIT.\npackage a\n" + long, nil},
		{"a.go", "package a\nimport \"time\"\nfunc f() { time.Sleep(1) }\n", nil},
		{"a_test.go", "package a\nimport \"time\"\nfunc f() { time.Sleep(1) }\n", []string{"a_test.go:3: time.Sleep"}},
		{"a_test.go", "package a\nimport t \"time\"\nvar nap = t.Sleep\n", []string{"a_test.go:3: time.Sleep"}},
		{"a_test.go", "package a\nimport . \"time\"\nfunc f() { Sleep(1) }\n", []string{"a_test.go:3: time.Sleep"}},
		{"a_test.go", "package a\nimport \"time\"\nvar v = run(func() { time.Sleep(1) }).err\n", []string{"a_test.go:3: time.Sleep"}},
		{"a_test.go", "package a\nimport . \"time\"\nvar v = clock.Sleep(Second)\n", nil},
		{"a_test.go", "package a\nimport \"time\"\n// time.Sleep(1)\nvar s, d = \"time.Sleep(1)\", time.Second\n", nil},
		{"a_test.go", "package a\nvar time clock\nfunc f() { time.Sleep(1) }\n", nil},
	} {
		got, err := checkFile(tt.name, []byte(tt.src))
		require.NoError(t, err)
		require.Len(t, got, len(tt.want), "%q", tt.src)
		for i := range tt.want {
			require.Contains(t, got[i], tt.want[i])
		}
	}
	_, err := checkFile("a.go", []byte("package"))
	require.Error(t, err)
}
