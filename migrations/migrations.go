// Package migrations holds the SQL of each service's tables and applies it with goose. Services may share a database
// or have one each; every service keeps a version table of its own, and all of a database share the tables in common.
package migrations

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"
	"github.com/pressly/goose/v3/lock"
)

//go:embed */*.sql
var files embed.FS

// Common is the folder of the tables that each owner has in its database. They are applied before the owner's own, and
// stay when it is reset.
const Common = "common"

// Services returns the services that own tables, each with a folder of its name.
func Services() []string {
	folders, err := fs.Glob(files, "*")
	if err != nil {
		panic(err) // the pattern is malformed
	}
	return slices.DeleteFunc(folders, func(name string) bool { return name == Common })
}

// foldersOf returns the folders that a service applies, in their order.
func foldersOf(service string) ([]string, error) {
	if !slices.Contains(Services(), service) {
		return nil, fmt.Errorf("service %q owns no tables", service)
	}
	return []string{Common, service}, nil
}

// provider returns goose for one folder. The lock is one for all folders and instances: the second finds applied
// what the first has applied.
func provider(db *sql.DB, folder string) (*goose.Provider, error) {
	dir, err := fs.Sub(files, folder)
	if err != nil {
		return nil, fmt.Errorf("open migrations of %s: %w", folder, err)
	}
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 60))
	if err != nil {
		return nil, fmt.Errorf("create migration lock: %w", err)
	}
	store, err := database.NewStore(goose.DialectPostgres, "goose_"+folder)
	if err != nil {
		return nil, fmt.Errorf("open version table of %s: %w", folder, err)
	}
	p, err := goose.NewProvider("", db, dir, goose.WithStore(store), goose.WithSessionLocker(locker))
	if err != nil {
		return nil, fmt.Errorf("load migrations of %s: %w", folder, err)
	}
	return p, nil
}

// Up applies what a service's database lacks, and returns how many migrations that was. It is safe to call from
// several instances at once. The error may be [ErrUnreleased].
func Up(ctx context.Context, db *sql.DB, service string) (int, error) {
	folders, err := foldersOf(service)
	if err != nil {
		return 0, err
	}
	if err := released(ctx, db); err != nil {
		return 0, fmt.Errorf("migrate %s: %w", service, err)
	}
	applied := 0
	for _, folder := range folders {
		p, err := provider(db, folder)
		if err != nil {
			return applied, err
		}
		done, err := p.Up(ctx)
		if err != nil {
			return applied, fmt.Errorf("migrate %s: %w", service, err)
		}
		applied += len(done)
	}
	return applied, nil
}

// Reset undoes all of a service's own migrations, and returns how many those were: its tables, and its rows in the
// tables in common, are gone. From a database of an unreleased version the tables of all services go.
func Reset(ctx context.Context, db *sql.DB, service string) (int, error) {
	if _, err := foldersOf(service); err != nil {
		return 0, err
	}
	if undone, err := dropUnreleased(ctx, db); err != nil {
		return 0, fmt.Errorf("reset %s: %w", service, err)
	} else if undone > 0 {
		return undone, nil
	}
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

// Newest returns the version of the newest migration in a folder: that of a service, or [Common].
func Newest(folder string) (int64, error) {
	names, err := fs.Glob(files, folder+"/*.sql")
	if err != nil {
		return 0, fmt.Errorf("list migrations of %s: %w", folder, err)
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

// Status is one migration of a service's database.
type Status struct {
	Service string
	Name    string // with its folder
	Applied bool
}

// List returns the migrations of a service's database in order. The error may be [ErrUnreleased].
func List(ctx context.Context, db *sql.DB, service string) ([]Status, error) {
	folders, err := foldersOf(service)
	if err != nil {
		return nil, err
	}
	if err := released(ctx, db); err != nil {
		return nil, fmt.Errorf("read migration status of %s: %w", service, err)
	}
	var list []Status
	for _, folder := range folders {
		p, err := provider(db, folder)
		if err != nil {
			return nil, err
		}
		all, err := p.Status(ctx)
		if err != nil {
			return nil, fmt.Errorf("read migration status of %s: %w", service, err)
		}
		for _, m := range all {
			list = append(list, Status{Service: service, Name: folder + "/" + m.Source.Path, Applied: m.State == goose.StateApplied})
		}
	}
	return list, nil
}
