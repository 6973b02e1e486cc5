package devstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

// minMajor is the oldest PostgreSQL that is used; older ones get no fixes any more.
const minMajor = 14

// fetched is the version that is fetched where the machine has none.
const fetched = embeddedpostgres.V18

// systemCache is where fetched binaries go when the user that the server runs as can't reach the usual place.
const systemCache = "/var/cache/cornjacket"

// binaryFolders are where packages put the server's programs; most are not in the PATH.
var binaryFolders = []string{
	"/usr/lib/postgresql/*/bin",                               // Debian, Ubuntu
	"/usr/pgsql-*/bin",                                        // PGDG packages for RHEL and Fedora
	"/usr/libexec/postgresql*",                                // Alpine
	"/usr/lib/postgresql*/bin",                                // openSUSE, Gentoo
	"/usr/local/pgsql/bin",                                    // from source
	"/opt/homebrew/opt/postgresql*/bin",                       // Homebrew on Apple silicon
	"/usr/local/opt/postgresql*/bin",                          // Homebrew on Intel
	"/home/linuxbrew/.linuxbrew/opt/postgresql*/bin",          // Homebrew on Linux
	"/opt/local/lib/postgresql*/bin",                          // MacPorts
	"/Applications/Postgres.app/Contents/Versions/[0-9]*/bin", // Postgres.app
}

// binaries are the programs of one PostgreSQL installation.
type binaries struct {
	dir     string
	version string // such as 15.13
	major   int
}

func (b binaries) path(program string) string { return filepath.Join(b.dir, program) }

// findBinaries returns the newest installation, or the newest of one major version if that is not 0. It prefers what
// is on the machine and else fetches it.
func findBinaries(ctx context.Context, id identity, cacheDir string, major int, log *slog.Logger) (binaries, error) {
	installed := installedBinaries(ctx, id)
	if best, ok := pick(installed, major); ok {
		return best, nil
	}
	if major != 0 && major != majorOf(string(fetched)) {
		here := "has none"
		if best, ok := pick(installed, 0); ok {
			here = "has " + best.version
		}
		return binaries{}, fmt.Errorf("the data was written by PostgreSQL %d and this machine %s: install PostgreSQL %d, or start with --fresh to delete the data",
			major, here, major)
	}
	cacheDir, err := cacheFolder(id, cacheDir)
	if err != nil {
		return binaries{}, err
	}
	into := filepath.Join(cacheDir, "postgresql-"+string(fetched))
	if b, err := probe(ctx, filepath.Join(into, "bin"), id); err == nil {
		return b, nil
	}
	log.Info("no PostgreSQL found on this machine, fetching it from Maven Central (once)",
		"version", string(fetched), "into", into)
	if err := fetch(ctx, cacheDir, into); err != nil {
		return binaries{}, fmt.Errorf("fetch PostgreSQL %s (or install it with your package manager): %w", fetched, err)
	}
	b, err := probe(ctx, filepath.Join(into, "bin"), id)
	if err != nil {
		return binaries{}, fmt.Errorf("fetched PostgreSQL %s does not run on this machine, install it with your package manager: %w", fetched, err)
	}
	return b, nil
}

// majorOf returns the first number of a version that starts with one.
func majorOf(version string) int {
	major, _, _ := strings.Cut(version, ".")
	n, err := strconv.Atoi(major)
	if err != nil {
		panic(fmt.Sprintf("version %q does not start with a number", version))
	}
	return n
}

// pick returns the newest of some installations; of one major version if that is not 0.
func pick(all []binaries, major int) (best binaries, ok bool) {
	for _, b := range all {
		if (major == 0 || b.major == major) && (!ok || newer(b.version, best.version)) {
			best, ok = b, true
		}
	}
	return best, ok
}

// newer compares versions such as 15.13 and 9.6.24 number by number.
func newer(a, b string) bool {
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i := range min(len(as), len(bs)) {
		x, _ := strconv.Atoi(as[i]) // both match versionPattern
		y, _ := strconv.Atoi(bs[i])
		if x != y {
			return x > y
		}
	}
	return len(as) > len(bs)
}

// installedBinaries returns all installations that the identity can run.
func installedBinaries(ctx context.Context, id identity) []binaries {
	var dirs []string
	if out, err := exec.CommandContext(ctx, "pg_config", "--bindir").Output(); err == nil {
		dirs = append(dirs, strings.TrimSpace(string(out)))
	}
	if path, err := exec.LookPath("postgres"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			dirs = append(dirs, filepath.Dir(path))
		}
	}
	for _, pattern := range binaryFolders {
		found, err := filepath.Glob(pattern)
		if err != nil {
			panic(err) // the patterns are constants
		}
		dirs = append(dirs, found...)
	}
	var all []binaries
	seen := make(map[string]bool)
	for _, dir := range dirs {
		if seen[dir] {
			continue
		}
		seen[dir] = true
		if b, err := probe(ctx, dir, id); err == nil && b.major >= minMajor {
			all = append(all, b)
		}
	}
	return all
}

var versionPattern = regexp.MustCompile(`\(PostgreSQL\) (\d+(?:\.\d+)*)`)

// probe asks the programs in a folder for their version.
func probe(ctx context.Context, dir string, id identity) (binaries, error) {
	if _, err := os.Stat(filepath.Join(dir, "initdb")); err != nil {
		return binaries{}, err // client programs only
	}
	if !id.reaches(dir) {
		return binaries{}, fmt.Errorf("user %s can't reach %s", id.name, dir)
	}
	out, err := exec.CommandContext(ctx, filepath.Join(dir, "postgres"), "--version").Output()
	if err != nil {
		return binaries{}, fmt.Errorf("ask %s for its version: %w", dir, err)
	}
	m := versionPattern.FindSubmatch(out)
	if m == nil {
		return binaries{}, fmt.Errorf("read version of %s from %q", dir, out)
	}
	version := string(m[1])
	return binaries{dir: dir, version: version, major: majorOf(version)}, nil
}

// cacheFolder returns where fetched binaries go, in a place that the identity reaches.
func cacheFolder(id identity, dir string) (string, error) {
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			base = os.TempDir() // no HOME, as in some containers
		}
		dir = filepath.Join(base, "cornjacket")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find cache folder: %w", err)
	}
	if !id.reaches(dir) {
		return systemCache, nil
	}
	return dir, nil
}

// fetch downloads and unpacks PostgreSQL, all of it or nothing.
//
// The library has no function that only does that. Its Start does it first, and then starts a server on the data
// folder: given one that holds nothing but a version number, which the library takes for initialized and the server
// refuses, it stops right there.
func fetch(ctx context.Context, cacheDir, into string) error {
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
		return err
	}
	lock, err := waitLock(ctx, into+".lock")
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }() // closing is all it takes
	if _, err := os.Stat(into); err == nil {
		return nil // another process was faster
	}
	work, err := os.MkdirTemp(cacheDir, "fetch-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }() // what is left is a few files in a cache
	unpacked, data := filepath.Join(work, "unpacked"), filepath.Join(work, "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		return err
	}
	version := strconv.Itoa(majorOf(string(fetched))) + "\n"
	if err := os.WriteFile(filepath.Join(data, "PG_VERSION"), []byte(version), 0o600); err != nil {
		return err
	}
	db := embeddedpostgres.NewDatabase(embeddedpostgres.DefaultConfig().
		Version(fetched).Port(0).Logger(io.Discard).
		CachePath(work).RuntimePath(filepath.Join(work, "run")).BinariesPath(unpacked).DataPath(data))
	done := make(chan error, 1)
	go func() {
		err := db.Start()
		http.DefaultClient.CloseIdleConnections() // which it has used, and will not again
		done <- err
	}()
	select {
	case err = <-done:
	case <-ctx.Done():
		return ctx.Err() // the library can't be stopped; what it still writes is in a folder of its own
	}
	if err == nil {
		return errors.Join(errors.New("a server started on an empty data folder"), db.Stop())
	}
	if !strings.HasPrefix(err.Error(), "could not start postgres") {
		return err
	}
	if _, err := os.Stat(filepath.Join(unpacked, "bin", "initdb")); err != nil {
		return err
	}
	return os.Rename(unpacked, into)
}
