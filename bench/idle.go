package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	idleSettle = 5 * time.Second  // from ready until an idle platform has come to rest
	idleFor    = 10 * time.Second // how long it is watched
	// statsDelay is how long PostgreSQL may keep the counters of an idle session to itself (PGSTAT_IDLE_INTERVAL). A
	// watch that is as long as this sees as many transactions at its beginning as it misses at its end.
	statsDelay = idleFor
)

// measureIdle watches a platform that has nothing to do.
func measureIdle(ctx context.Context, b *bench) error {
	return b.onPlatform(ctx, func(r *rig, p *platform) error {
		ctx, cancel := p.alive(ctx)
		defer cancel(nil)
		return because(ctx, r.watchIdle(ctx, p))
	})
}

func (r *rig) watchIdle(ctx context.Context, p *platform) error {
	// The counters of one database do not see who reads them over another one.
	conn, err := pgx.Connect(ctx, r.b.pg.URL())
	if err != nil {
		return fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	defer closeConn(conn)
	if err := until(ctx, time.Now().Add(idleSettle+statsDelay)); err != nil {
		return err
	}
	before, err := transactions(ctx, conn, r.name)
	if err != nil {
		return err
	}
	meter, err := r.meter("platform", p.child)
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := until(ctx, begin.Add(idleFor)); err != nil {
		return err
	}
	span := time.Since(begin).Seconds()
	used, err := meter.per100k(100_000) // seconds as they are
	if err != nil {
		return err
	}
	after, err := transactions(ctx, conn, r.name)
	if err != nil {
		return err
	}
	res := r.b.results
	res.add("idle.queries", float64(after-before)/span)
	r.b.say("  idle: %.1f transactions/s", float64(after-before)/span)
	if len(used) == 0 {
		return nil
	}
	rss, _, err := memory(p.PID())
	if err != nil {
		return err
	}
	for name, seconds := range used {
		res.add("idle.cpu."+name, 100*seconds/span)
	}
	res.add("idle.rss", rss)
	r.b.say("  idle: %.0f MiB, %.1f %% of a core", rss/mib, 100*used["platform"]/span)
	return nil
}

func transactions(ctx context.Context, conn *pgx.Conn, database string) (n int64, err error) {
	err = conn.QueryRow(ctx, "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = $1", database).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count transactions: %w", err)
	}
	return n, nil
}
