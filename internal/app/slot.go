package app

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// maxSlots is the most instances of one service on one database.
const maxSlots = 256

// slot is the component that gives this process a number which no other instance of a service on the same database
// has, the lowest that is free, for as long as it runs. A process that is started again after a crash gets the number of
// the one that crashed: the advisory lock went with its connection. The bus knows consumers by this number, so that such
// a process has its partitions back at once.
type slot struct {
	loop
	platform *platform
	pool     *pgxpool.Pool
	service  string
	class    int32 // of the advisory locks
	number   int
}

func (p *platform) slot(pool *pgxpool.Pool, service string) *slot {
	return &slot{platform: p, pool: pool, service: service, class: int32(crc32.ChecksumIEEE([]byte("cornjacket " + service)))}
}

// Start takes a number.
func (s *slot) Start(ctx context.Context) error {
	conn, err := connect(ctx, s.pool)
	if err != nil {
		return err
	}
	for s.number = range maxSlots {
		taken, err := tryLock(ctx, conn, s.class, s.number)
		if err != nil {
			return errors.Join(err, closeSlot(conn))
		}
		if taken {
			s.run = func(ctx context.Context) { s.keep(ctx, conn) }
			return s.loop.Start(ctx)
		}
	}
	return errors.Join(fmt.Errorf("%s: more than %d instances on one database", s.service, maxSlots), closeSlot(conn))
}

// keep watches the connection that holds the lock, and takes the lock again after the database was away. The server may
// need a while to notice that the old connection is gone, so only a lock that stays taken is another's.
func (s *slot) keep(stop context.Context, conn *pgx.Conn) {
	const every, patience = 5 * time.Second, 12
	refused := 0
	for {
		select {
		case <-time.After(every):
		case <-stop.Done():
			if conn != nil {
				_ = closeSlot(conn) // the lock ends with the process at the latest
			}
			return
		}
		ctx, cancel := context.WithTimeout(stop, every)
		if conn != nil && conn.Ping(ctx) != nil {
			_ = closeSlot(conn) // it is broken already
			conn = nil
		}
		if conn == nil {
			var taken bool
			if conn, taken = lockAgain(ctx, s.pool, s.class, s.number); taken {
				refused++
			} else {
				refused = 0
			}
		}
		cancel()
		if refused == patience {
			s.platform.fail(fmt.Errorf("%s: another instance took slot %d while the database was away; this one must start anew", s.service, s.number))
		}
	}
}

// lockAgain returns a connection that holds the lock, nil without one; taken says that another holds it.
func lockAgain(ctx context.Context, pool *pgxpool.Pool, class int32, slot int) (conn *pgx.Conn, taken bool) {
	conn, err := connect(ctx, pool)
	if err != nil {
		return nil, false // health tells that the database is away
	}
	locked, err := tryLock(ctx, conn, class, slot)
	if err == nil && locked {
		return conn, false
	}
	_ = closeSlot(conn) // nothing is lost with it
	return nil, err == nil
}

func connect(ctx context.Context, pool *pgxpool.Pool) (*pgx.Conn, error) {
	conn, err := pgx.ConnectConfig(ctx, pool.Config().ConnConfig)
	if err != nil {
		return nil, fmt.Errorf("connect for a slot: %w", err)
	}
	return conn, nil
}

func tryLock(ctx context.Context, conn *pgx.Conn, class int32, slot int) (bool, error) {
	var taken bool
	if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1, $2)`, class, int32(slot)).Scan(&taken); err != nil {
		return false, fmt.Errorf("take slot %d: %w", slot, err)
	}
	return taken, nil
}

func closeSlot(conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return conn.Close(ctx)
}
