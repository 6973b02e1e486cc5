package outbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Partitions is what the log remembers of how the keys of each topic are spread over its partitions.
type Partitions struct{ Pool *pgxpool.Pool }

// Remember returns the number of partitions that the keys of a topic are spread over: how many it had when it was first
// asked about, whatever it has now. One that was made anew with fewer is empty, and has the smaller number from now on.
func (p Partitions) Remember(ctx context.Context, topic string, now int) (partitions int, err error) {
	err = p.Pool.QueryRow(ctx, `INSERT INTO topic_partitions AS t (topic, partitions) VALUES ($1, $2)
		ON CONFLICT (topic) DO UPDATE SET partitions = least(t.partitions, excluded.partitions) RETURNING partitions`, topic, now).Scan(&partitions)
	if err != nil {
		return 0, fmt.Errorf("remember the partitions of %s: %w", topic, err)
	}
	return partitions, nil
}

// Spread is Remember that changes nothing. A database in which there is no log yet remembers nothing.
func (p Partitions) Spread(ctx context.Context, topic string, now int) (partitions int, err error) {
	err = p.Pool.QueryRow(ctx, `SELECT least(partitions, $2) FROM topic_partitions WHERE topic = $1`, topic, now).Scan(&partitions)
	var pg *pgconn.PgError
	switch {
	case errors.Is(err, pgx.ErrNoRows), errors.As(err, &pg) && pg.Code == "42P01": // undefined_table
		return now, nil
	case err != nil:
		return 0, fmt.Errorf("read the partitions of %s: %w", topic, err)
	}
	return partitions, nil
}
