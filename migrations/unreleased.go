package migrations

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/pressly/goose/v3/lock"
)

// ErrUnreleased says that a database has tables from before the first release, which nothing brings up to date.
var ErrUnreleased = errors.New("the tables are of an unreleased version: start with --fresh (platform dev), " +
	"or platform migrate reset --yes, which deletes all data")

// unreleasedTables are all tables of that version. Its services kept the tables in common each for itself, so that a
// version of one of them without one of those in common gives it away.
const unreleasedTables = `outbox, event_store, relay_cursor, projections, consumer_counts, dlq, dlq_replay_items, dlq_replays,
	goose_ingestion, goose_eventhandler, goose_common`

// queryer is a database, or a transaction of it.
type queryer interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// released returns ErrUnreleased for the database of an unreleased version. The tables in common are looked for last:
// whoever migrates at this moment creates them first.
func released(ctx context.Context, db queryer) error {
	owned := false
	for _, owner := range Services() {
		n, err := versions(ctx, db, owner)
		if err != nil {
			return err
		}
		owned = owned || n > 0
	}
	if !owned {
		return nil
	}
	n, err := versions(ctx, db, Common)
	if err == nil && n == 0 {
		return ErrUnreleased
	}
	return err
}

// versions returns how many migrations of a folder are applied.
func versions(ctx context.Context, db queryer, folder string) (n int, err error) {
	table := "goose_" + folder
	var exists bool
	if err := db.QueryRowContext(ctx, `SELECT to_regclass($1) IS NOT NULL`, table).Scan(&exists); err != nil {
		return 0, fmt.Errorf("look for table %s: %w", table, err)
	}
	if !exists {
		return 0, nil
	}
	if err := db.QueryRowContext(ctx, `SELECT count(*) FROM `+table+` WHERE version_id > 0`).Scan(&n); err != nil {
		return 0, fmt.Errorf("read table %s: %w", table, err)
	}
	return n, nil
}

// dropUnreleased drops all tables of an unreleased version, if the database has them, and returns how many migrations
// had made them.
func dropUnreleased(ctx context.Context, db *sql.DB) (undone int, err error) {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return 0, fmt.Errorf("look for tables of an unreleased version: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // without effect after the commit
	// No other instance migrates or resets meanwhile.
	if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock($1)`, lock.DefaultLockID); err != nil {
		return 0, fmt.Errorf("lock the migrations: %w", err)
	}
	if err := released(ctx, tx); !errors.Is(err, ErrUnreleased) {
		return 0, err
	}
	for _, service := range Services() {
		n, err := versions(ctx, tx, service)
		if err != nil {
			return 0, err
		}
		undone += n
	}
	if _, err := tx.ExecContext(ctx, `DROP TABLE IF EXISTS `+unreleasedTables); err != nil {
		return 0, fmt.Errorf("drop the tables of an unreleased version: %w", err)
	}
	if err := tx.Commit(); err != nil {
		return 0, fmt.Errorf("drop the tables of an unreleased version: %w", err)
	}
	return undone, nil
}
