package outbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrNotLogged says that the log has not got to a position yet.
var ErrNotLogged = errors.New("is not in the log yet")

// Republish has everything from a position on published again, with the same positions: consumers skip what they have.
// It ends the session of the relay that leads, which then begins anew; without one, the next relay does it. It returns
// how many events that are, and whether a relay leads. The error is [ErrNotLogged] if there is nothing to repeat.
func Republish(ctx context.Context, pool *pgxpool.Pool, from int64) (events int64, leads bool, err error) {
	err = pool.QueryRow(ctx, `SELECT count(*) FROM event_store WHERE position >= $1`, from).Scan(&events)
	if err == nil && events == 0 {
		return 0, false, fmt.Errorf("position %d %w", from, ErrNotLogged)
	}
	if err == nil {
		_, err = pool.Exec(ctx, `UPDATE relay_cursor SET republish = least($1, republish) WHERE name = 'bus'`, from)
	}
	if err != nil {
		return 0, false, fmt.Errorf("set the relay's cursor back to %d: %w", from, err)
	}
	if err := pool.QueryRow(ctx, endLeader, int64(lockClass)).Scan(&leads); err != nil {
		return 0, false, fmt.Errorf("end the session of the leading relay: %w", err)
	}
	return events, leads, nil
}
