package store

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Partitions returns how many partitions of each topic a consumer has taken, and how far it is in each.
func Partitions(ctx context.Context, q Querier, consumer string) (counts map[string]int, at map[Partition]int64, err error) {
	return partitions(ctx, q, consumer, "")
}

// LockPartitions is [Partitions] that lets the consumer write nothing until tx ends.
func LockPartitions(ctx context.Context, tx pgx.Tx, consumer string) (counts map[string]int, at map[Partition]int64, err error) {
	return partitions(ctx, tx, consumer, "ORDER BY topic, partition FOR UPDATE")
}

func partitions(ctx context.Context, q Querier, consumer, lock string) (counts map[string]int, at map[Partition]int64, err error) {
	rows, err := q.Query(ctx, `SELECT topic, partition, position FROM consumer_positions WHERE consumer = $1 AND partition >= 0 `+lock, consumer)
	if err != nil {
		return nil, nil, fmt.Errorf("read positions of %s: %w", consumer, err)
	}
	counts, at = make(map[string]int), make(map[Partition]int64)
	var part Partition
	var position int64
	_, err = pgx.ForEachRow(rows, []any{&part.Topic, &part.Partition, &position}, func() error {
		counts[part.Topic]++
		at[part] = position
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read positions of %s: %w", consumer, err)
	}
	return counts, at, nil
}

// Fence has all members of a consumer claim their partitions anew before they write again.
func Fence(ctx context.Context, tx pgx.Tx, consumer string) error {
	if _, err := tx.Exec(ctx, `UPDATE consumer_positions SET epoch = epoch + 1 WHERE consumer = $1 AND partition >= 0`, consumer); err != nil {
		return fmt.Errorf("fence the members of %s: %w", consumer, err)
	}
	return nil
}

// Retire notes within tx what the active version of a type holds, which is about to become a previous one: everything that
// consumer has handled, but for the dead letters of family that were not replayed.
func Retire(ctx context.Context, tx pgx.Tx, consumer, topic, family string, v *Version) error {
	_, err := tx.Exec(ctx, `INSERT INTO consumer_positions AS p (consumer, topic, partition, position)
		SELECT $2, topic, partition, position FROM consumer_positions WHERE consumer = $1 AND topic = $3 AND partition >= 0
		ON CONFLICT (consumer, topic, partition) DO UPDATE SET position = excluded.position, updated_at = now()`,
		consumer, v.Consumer(), topic)
	if err != nil {
		return fmt.Errorf("note what %s holds: %w", v.Table(), err)
	}
	_, err = tx.Exec(ctx, `INSERT INTO projection_refusals (projection_type, version, event_id, position, reason)
		SELECT DISTINCT ON (event_id) $2, $3, event_id, position, error_message FROM dlq
		WHERE consumer = $1 AND status <> 'replayed' AND position > 0 AND event_id IS NOT NULL AND split_part(event_type, '.', 1) = $4
		ON CONFLICT DO NOTHING`, consumer, v.Type, v.Number, family)
	if err != nil {
		return fmt.Errorf("note what %s lacks: %w", v.Table(), err)
	}
	return nil
}

// ReplayedSince returns how many events that a version lacks were applied by the replay of their dead letters.
func ReplayedSince(ctx context.Context, tx pgx.Tx, consumer string, v *Version) (n int64, err error) {
	err = tx.QueryRow(ctx, `SELECT count(*) FROM projection_refusals r WHERE projection_type = $2 AND version = $3
		AND EXISTS (SELECT FROM dlq d WHERE d.consumer = $1 AND d.event_id = r.event_id AND d.status = 'replayed')`,
		consumer, v.Type, v.Number).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("look for dead letters that were replayed: %w", err)
	}
	return n, nil
}

// Resolve marks within tx the pending dead letters of a consumer that a build of a projection has applied, and returns how
// many. aggregateID restricts it to one aggregate, unless it is empty. It is for projections that share their family with
// no other one.
func Resolve(ctx context.Context, tx pgx.Tx, consumer, topic, family, aggregateID string, v *Version) (n int64, err error) {
	err = tx.QueryRow(ctx, `WITH resolved AS (
			UPDATE dlq d SET status = 'replayed', replayed_at = now(), reason = 'applied by a rebuild of ' || $4
			WHERE consumer = $1 AND status = 'pending' AND position > 0 AND source_topic = $2 AND split_part(event_type, '.', 1) = $3
				AND ($6 = '' OR message_key = $6)
				AND NOT EXISTS (SELECT FROM projection_refusals r WHERE r.projection_type = $4 AND r.version = $5 AND r.event_id = d.event_id)
			RETURNING event_id
		), counted AS (
			INSERT INTO consumer_positions AS p (consumer, topic, partition, dead)
			SELECT $1, $2, -1, -count(DISTINCT event_id) FROM resolved HAVING count(*) > 0
			ON CONFLICT (consumer, topic, partition) DO UPDATE SET dead = p.dead + excluded.dead, updated_at = now()
		) SELECT count(*) FROM resolved`, consumer, topic, family, v.Type, v.Number, aggregateID).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("mark dead letters as applied: %w", err)
	}
	return n, nil
}

// AddRefusal notes within tx that a version could not be built with an event.
func AddRefusal(ctx context.Context, tx pgx.Tx, v *Version, id any, position int64, reason string) error {
	_, err := tx.Exec(ctx, `INSERT INTO projection_refusals (projection_type, version, event_id, position, reason)
		VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING`, v.Type, v.Number, id, position, reason)
	if err != nil {
		return fmt.Errorf("note that event %v was refused: %w", id, err)
	}
	return nil
}

// Refusals returns how many events a version was built without.
func Refusals(ctx context.Context, pool *pgxpool.Pool, v *Version) (n int64, err error) {
	err = pool.QueryRow(ctx, `SELECT count(*) FROM projection_refusals WHERE projection_type = $1 AND version = $2`, v.Type, v.Number).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count what %s lacks: %w", v.Table(), err)
	}
	return n, nil
}

// DropVersion deletes a version that is not active, with its table and all that is known of it.
func DropVersion(ctx context.Context, pool *pgxpool.Pool, v *Version) error {
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `DELETE FROM projection_versions WHERE projection_type = $1 AND version = $2 AND state <> 'active'`, v.Type, v.Number)
		if err != nil || tag.RowsAffected() == 0 {
			return err
		}
		if _, err := tx.Exec(ctx, `DROP TABLE IF EXISTS `+v.Table()); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM projection_refusals WHERE projection_type = $1 AND version = $2`, v.Type, v.Number); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `DELETE FROM consumer_positions WHERE consumer = $1`, v.Consumer())
		return err
	})
	if err != nil {
		return fmt.Errorf("drop version %d of %s: %w", v.Number, v.Type, err)
	}
	return nil
}

// Difference is a row that two versions have not alike; a state is empty where there is no row.
type Difference struct {
	AggregateID string `json:"aggregate_id"`
	Active      string `json:"active_state"`
	Other       string `json:"built_state"`
	ActiveAt    int64  `json:"active_position"`
	OtherAt     int64  `json:"built_position"`
	ActiveCount int64  `json:"active_event_count"`
	OtherCount  int64  `json:"built_event_count"`
}

// Comparison is what [Compare] has found.
type Comparison struct {
	Rows, OtherRows int64
	Differ          int64
	First           []Difference // the first of those, by aggregate
}

// Compare compares the rows of two versions, but for those of which comparable says that one version is behind the other
// there; it is given the positions of both, 0 where there is no row. It returns up to limit rows that differ.
func Compare(ctx context.Context, tx pgx.Tx, active, other *Version, limit int, comparable func(aggregateID string, position, otherPosition int64) bool) (*Comparison, error) {
	c := &Comparison{First: []Difference{}}
	err := tx.QueryRow(ctx, fmt.Sprintf(`SELECT (SELECT count(*) FROM %s), (SELECT count(*) FROM %s)`, active.Table(), other.Table())).Scan(&c.Rows, &c.OtherRows)
	if err != nil {
		return nil, fmt.Errorf("count rows: %w", err)
	}
	rows, err := tx.Query(ctx, fmt.Sprintf(`
		SELECT coalesce(a.aggregate_id, b.aggregate_id), coalesce(a.state::text, ''), coalesce(b.state::text, ''),
			coalesce(a.position, 0), coalesce(b.position, 0), coalesce(a.event_count, 0), coalesce(b.event_count, 0)
		FROM %s a FULL JOIN %s b ON b.projection_type = a.projection_type AND b.aggregate_id = a.aggregate_id
		WHERE (a.state, a.last_event_id, a.last_event_timestamp, a.position, a.event_count)
			IS DISTINCT FROM (b.state, b.last_event_id, b.last_event_timestamp, b.position, b.event_count)
		ORDER BY 1`, active.Table(), other.Table()))
	if err != nil {
		return nil, fmt.Errorf("compare rows: %w", err)
	}
	var d Difference
	_, err = pgx.ForEachRow(rows, []any{&d.AggregateID, &d.Active, &d.Other, &d.ActiveAt, &d.OtherAt, &d.ActiveCount, &d.OtherCount}, func() error {
		if !comparable(d.AggregateID, d.ActiveAt, d.OtherAt) {
			return nil
		}
		if c.Differ++; len(c.First) < limit {
			c.First = append(c.First, d)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("compare rows: %w", err)
	}
	return c, nil
}

// ReplaceProjection writes the row of a key within tx, whatever it was; nil deletes it.
func ReplaceProjection(ctx context.Context, tx pgx.Tx, v *Version, k ProjectionKey, row *Projection) error {
	_, err := tx.Exec(ctx, `DELETE FROM `+v.Table()+` WHERE projection_type = $1 AND aggregate_id = $2`, k.Type, k.AggregateID)
	if err == nil && row != nil {
		_, err = tx.Exec(ctx, `INSERT INTO `+v.Table()+` (projection_type, aggregate_id, state, last_event_id, last_event_timestamp, position, event_count)
			VALUES ($1, $2, $3::text::jsonb, $4, $5, $6, $7)`, k.Type, k.AggregateID, string(row.State), row.LastEventID, row.LastEventTimestamp, row.Position, row.EventCount)
	}
	if err != nil {
		return fmt.Errorf("write projection %s of %s: %w", k.Type, k.AggregateID, err)
	}
	return nil
}
