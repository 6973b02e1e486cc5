// Package migrations holds the SQL of each service's tables and applies it with goose. Services may share a database
// or have one each; every service keeps a version table of its own.
package migrations

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"
	"github.com/pressly/goose/v3/lock"
)

//go:embed */*.sql
var files embed.FS

// Services returns the services that own tables, each with a folder of its name.
func Services() []string {
	folders, err := fs.Glob(files, "*")
	if err != nil {
		panic(err) // the pattern is malformed
	}
	return folders
}

// provider returns goose for one service. The lock is one for all services and instances: several may create the same
// table IF NOT EXISTS, which PostgreSQL does not make safe by itself.
func provider(db *sql.DB, service string) (*goose.Provider, error) {
	dir, err := fs.Sub(files, service)
	if err != nil {
		return nil, fmt.Errorf("open migrations of %s: %w", service, err)
	}
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 60))
	if err != nil {
		return nil, fmt.Errorf("create migration lock: %w", err)
	}
	store, err := database.NewStore(goose.DialectPostgres, "goose_"+service)
	if err != nil {
		return nil, fmt.Errorf("open version table of %s: %w", service, err)
	}
	p, err := goose.NewProvider("", db, dir, goose.WithStore(store), goose.WithSessionLocker(locker))
	if err != nil {
		return nil, fmt.Errorf("load migrations of %s: %w", service, err)
	}
	return p, nil
}

// Up applies what a service's database lacks, and returns how many migrations that was. It is safe to call from
// several instances at once.
func Up(ctx context.Context, db *sql.DB, service string) (int, error) {
	p, err := provider(db, service)
	if err != nil {
		return 0, err
	}
	done, err := p.Up(ctx)
	if err != nil {
		return 0, fmt.Errorf("migrate %s: %w", service, err)
	}
	return len(done), nil
}

// UpTo is Up to a version and no further, for tests of what the versions behind it do.
func UpTo(ctx context.Context, db *sql.DB, service string, version int64) (int, error) {
	p, err := provider(db, service)
	if err != nil {
		return 0, err
	}
	done, err := p.UpTo(ctx, version)
	if err != nil {
		return 0, fmt.Errorf("migrate %s to version %d: %w", service, version, err)
	}
	return len(done), nil
}

// Reset undoes all of a service's migrations: its tables and their rows are gone.
func Reset(ctx context.Context, db *sql.DB, service string) (int, error) {
	p, err := provider(db, service)
	if err != nil {
		return 0, err
	}
	done, err := p.DownTo(ctx, 0)
	if err != nil && !errors.Is(err, goose.ErrNoNextVersion) {
		return 0, fmt.Errorf("reset %s: %w", service, err)
	}
	return len(done), nil
}

// Newest returns the version of a service's newest migration.
func Newest(service string) (int64, error) {
	names, err := fs.Glob(files, service+"/*.sql")
	if err != nil {
		return 0, fmt.Errorf("list migrations of %s: %w", service, err)
	}
	var newest int64
	for _, name := range names {
		version, err := goose.NumericComponent(name)
		if err != nil {
			return 0, fmt.Errorf("read version of migration %s: %w", name, err)
		}
		newest = max(newest, version)
	}
	return newest, nil
}

// Status is one migration of a service.
type Status struct {
	Service, Name string
	Applied       bool
}

// List returns the migrations of a service in order.
func List(ctx context.Context, db *sql.DB, service string) ([]Status, error) {
	p, err := provider(db, service)
	if err != nil {
		return nil, err
	}
	all, err := p.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("read migration status of %s: %w", service, err)
	}
	list := make([]Status, 0, len(all))
	for _, m := range all {
		list = append(list, Status{Service: service, Name: m.Source.Path, Applied: m.State == goose.StateApplied})
	}
	return list, nil
}
