package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// errPooled says that the relay can't have a session of its own.
var errPooled = errors.New("INGESTION_DATABASE_URL leads to a pooler that shares sessions, such as pgbouncer in transaction mode; " +
	"the relay's lock needs a session of its own: name PostgreSQL itself, or a pooler in session mode")

// dedicated returns an error if statements of a connection may run in sessions that others use too. Behind a pooler the
// process that the connection was told of is not the one that answers; then it is seen whether another connection gets the
// same one.
func dedicated(ctx context.Context, pool *pgxpool.Pool, conn *pgx.Conn, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	before, err := backend(ctx, conn)
	if err != nil || before == conn.PgConn().PID() {
		return err
	}
	other, err := dial(ctx, pool, timeout)
	if err != nil {
		return err
	}
	defer closeConn(other)
	if _, err := other.Exec(ctx, "BEGIN", pgx.QueryExecModeSimpleProtocol); err != nil { // the session is its own until the end
		return fmt.Errorf("look for a pooler: %w", err)
	}
	its, err := backend(ctx, other)
	if err != nil {
		return err
	}
	now, err := backend(ctx, conn)
	if err != nil {
		return err
	}
	if its == before || now != before {
		return errPooled
	}
	return nil
}

// backend returns the process of the server that answers.
func backend(ctx context.Context, conn *pgx.Conn) (pid uint32, err error) {
	if err := conn.QueryRow(ctx, `SELECT pg_backend_pid()`, pgx.QueryExecModeSimpleProtocol).Scan(&pid); err != nil {
		return 0, fmt.Errorf("ask for the process of the server: %w", err)
	}
	return pid, nil
}

// unsupported reports whether a pooler has refused the settings of our sessions.
func unsupported(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && strings.HasPrefix(pg.Message, "unsupported startup parameter")
}
