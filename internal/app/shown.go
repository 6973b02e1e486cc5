package app

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/cornjacket/platform-services/internal/health"
)

// shownCheck is a check whose errors are fit for GET /health, which everyone may ask: what PostgreSQL says of statements
// names tables and columns, and belongs in the log.
func shownCheck(c health.Check) health.Check {
	probe := c.Probe
	c.Probe = func(ctx context.Context) (health.Details, error) {
		details, err := probe(ctx)
		return details, shown(err)
	}
	return c
}

func shown(err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return err
	}
	switch pg.Code[:min(2, len(pg.Code))] {
	case "08", "28", "3D", "53", "55", "57", "58": // connection, credentials, database, resources, locks, operators, system
		return fmt.Errorf("postgres: %s", pg.Message)
	default:
		return fmt.Errorf("postgres refuses what it is asked (code %s); the log has more", pg.Code)
	}
}
