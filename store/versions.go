package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// States of a [Version].
const (
	VersionActive   = "active"   // what queries read, and the event handler writes
	VersionBuilding = "building" // being built from the log
	VersionPrevious = "previous" // was active; kept until it is dropped
)

// Version is one build of all rows of a projection type, in a table of its own. The active one is a partition of the table
// projections.
type Version struct {
	Type       string
	Number     int
	State      string
	CreatedAt  time.Time
	SwitchedAt *time.Time // when it became active, last
}

// Table returns the name of the table.
func (v *Version) Table() string { return fmt.Sprintf("projections_%s_v%d", v.Type, v.Number) }

// Consumer returns the name under which the positions of a version are kept that is not the active one.
func (v *Version) Consumer() string { return fmt.Sprintf("%s@%d", v.Type, v.Number) }

// Querier is a pool, a connection or a transaction.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// Versions returns all versions, by type and number.
func Versions(ctx context.Context, q Querier) ([]Version, error) {
	rows, err := q.Query(ctx, `SELECT projection_type, version, state, created_at, switched_at FROM projection_versions
		ORDER BY projection_type, version`)
	if err != nil {
		return nil, fmt.Errorf("read versions of projections: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (v Version, err error) {
		return v, row.Scan(&v.Type, &v.Number, &v.State, &v.CreatedAt, &v.SwitchedAt)
	})
	if err != nil {
		return nil, fmt.Errorf("read versions of projections: %w", err)
	}
	return list, nil
}

// ActiveTables returns the table of each projection type that has one, which is projections: through it the partition is
// written that is the active version. In a transaction that stays the same one until it ends.
func ActiveTables(ctx context.Context, q Querier) (map[string]string, error) {
	rows, err := q.Query(ctx, `SELECT projection_type FROM projection_versions WHERE state = 'active' FOR SHARE`)
	if err != nil {
		return nil, fmt.Errorf("read the active versions of projections: %w", err)
	}
	tables := make(map[string]string)
	var projectionType string
	_, err = pgx.ForEachRow(rows, []any{&projectionType}, func() error {
		tables[projectionType] = "projections"
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the active versions of projections: %w", err)
	}
	return tables, nil
}

// BuiltWith returns the projection types whose active version was built from the log with an event in it, and has not
// refused it.
func BuiltWith(ctx context.Context, tx pgx.Tx, id uuid.UUID, part Partition, position int64) (map[string]bool, error) {
	rows, err := tx.Query(ctx, `SELECT v.projection_type FROM projection_versions v
		JOIN consumer_positions c ON c.consumer = v.projection_type || '@' || v.version AND c.topic = $2 AND c.partition = $3
		WHERE v.state = 'active' AND c.position >= $4 AND NOT EXISTS (SELECT FROM projection_refusals r
			WHERE r.projection_type = v.projection_type AND r.version = v.version AND r.event_id = $1)`,
		id, part.Topic, part.Partition, position)
	if err != nil {
		return nil, fmt.Errorf("look for builds with event %s: %w", id, err)
	}
	types, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("look for builds with event %s: %w", id, err)
	}
	built := make(map[string]bool, len(types))
	for _, t := range types {
		built[t] = true
	}
	return built, nil
}

// PositionOf returns the position of the newest event that was applied to a row, 0 if there is none, and holds the row until
// tx ends.
func PositionOf(ctx context.Context, tx pgx.Tx, k ProjectionKey) (position int64, err error) {
	err = tx.QueryRow(ctx, `SELECT position FROM projections WHERE projection_type = $1 AND aggregate_id = $2 FOR UPDATE`,
		k.Type, k.AggregateID).Scan(&position)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return 0, fmt.Errorf("read projection %s of %s: %w", k.Type, k.AggregateID, err)
	}
	return position, nil
}

// EnsureVersions gives each of types that has none a first version, which is active, if consumer has not handled any
// event yet. Otherwise it returns the types that are to be built from the log.
func EnsureVersions(ctx context.Context, pool *pgxpool.Pool, consumer string, types []string) (missing []string, err error) {
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		missing = nil
		if _, err := tx.Exec(ctx, `LOCK TABLE projection_versions IN SHARE ROW EXCLUSIVE MODE`); err != nil {
			return err
		}
		versions, err := Versions(ctx, tx)
		if err != nil {
			return err
		}
		known := make(map[string]bool)
		for _, v := range versions {
			known[v.Type] = known[v.Type] || v.State == VersionActive
		}
		var begun bool
		err = tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM consumer_positions WHERE consumer = $1 AND position > 0)`, consumer).Scan(&begun)
		if err != nil {
			return err
		}
		for _, t := range types {
			switch {
			case known[t]:
			case begun:
				missing = append(missing, t)
			default:
				v, err := CreateVersion(ctx, tx, t)
				if err != nil {
					return err
				}
				if err := Activate(ctx, tx, &v); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("prepare projections: %w", err)
	}
	return missing, nil
}

// CreateVersion creates the next version of a type, with a table of its own that is empty. It is being built from then on.
func CreateVersion(ctx context.Context, tx pgx.Tx, projectionType string) (Version, error) {
	v := Version{Type: projectionType, State: VersionBuilding}
	err := tx.QueryRow(ctx, `INSERT INTO projection_versions (projection_type, version, state)
		SELECT $1, coalesce(max(version), 0) + 1, 'building' FROM projection_versions WHERE projection_type = $1
		RETURNING version, created_at`, projectionType).Scan(&v.Number, &v.CreatedAt)
	if err != nil {
		return v, fmt.Errorf("create a version of %s: %w", projectionType, err)
	}
	// The constraint says what the partition will hold, so that attaching it reads no rows. A row that moves to another page
	// finds room there for its next versions.
	_, err = tx.Exec(ctx, fmt.Sprintf(`CREATE TABLE %[1]s (LIKE projections INCLUDING DEFAULTS INCLUDING CONSTRAINTS,
			CONSTRAINT %[1]s_type CHECK (projection_type = '%[2]s'), PRIMARY KEY (projection_type, aggregate_id)
		) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0.05)`, v.Table(), v.Type))
	if err != nil {
		return v, fmt.Errorf("create table %s: %w", v.Table(), err)
	}
	return v, nil
}

// Activate makes a version the active one of its type within tx, in place of the one that is, which is kept.
func Activate(ctx context.Context, tx pgx.Tx, v *Version) error {
	var before int
	err := tx.QueryRow(ctx, `UPDATE projection_versions SET state = 'previous' WHERE projection_type = $1 AND state = 'active'
		RETURNING version`, v.Type).Scan(&before)
	switch {
	case err == nil:
		old := Version{Type: v.Type, Number: before}
		if _, err := tx.Exec(ctx, `ALTER TABLE projections DETACH PARTITION `+old.Table()); err != nil {
			return fmt.Errorf("take %s out of use: %w", old.Table(), err)
		}
	case !errors.Is(err, pgx.ErrNoRows):
		return fmt.Errorf("find the active version of %s: %w", v.Type, err)
	}
	if _, err := tx.Exec(ctx, fmt.Sprintf(`ALTER TABLE projections ATTACH PARTITION %s FOR VALUES IN ('%s')`, v.Table(), v.Type)); err != nil {
		return fmt.Errorf("take %s into use: %w", v.Table(), err)
	}
	err = tx.QueryRow(ctx, `UPDATE projection_versions SET state = 'active', switched_at = now()
		WHERE projection_type = $1 AND version = $2 RETURNING switched_at`, v.Type, v.Number).Scan(&v.SwitchedAt)
	if err != nil {
		return fmt.Errorf("note that %s is in use: %w", v.Table(), err)
	}
	v.State = VersionActive
	return nil
}
