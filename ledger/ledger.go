package ledger

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cornjacket/platform-services/internal/fault"
)

// Consumer is one reader of the bus and the database in which it notes what it has handled. Its functions may be called
// concurrently.
type Consumer struct {
	Name   string        // as in its tables
	Topics []string      // all of whose events it handles, those too that have no effect
	Pool   *pgxpool.Pool // of its database, which may be any; the pool stays the caller's
	// Partition returns the partition, of so many, in which the events of an aggregate travel.
	Partition func(aggregateID string, partitions int) int32
	// Skips returns why events of a type have no effect, or nothing if they have one. All have if it is nil.
	Skips func(eventType string) string
	// Changed returns when the state of an aggregate was last written for events of a type, and the position of the
	// newest event in it; zeros if there is none. It may be nil.
	Changed func(ctx context.Context, eventType, aggregateID string) (position int64, at time.Time, err error)
}

// Config configures a [Reader].
type Config struct {
	Events    *pgxpool.Pool // of the database of the event log; stays the caller's
	Consumers []Consumer
	Bus       Bus // for journeys
	Now       func() time.Time
	// Timeout bounds what is read from one consumer's database; 2 s if zero.
	Timeout time.Duration
	// Log receives which consumers can't be read; nothing if nil.
	Log *slog.Logger
}

// Reader counts events, and follows single ones, from what is durable. What it reads does not grow with the log: the
// relay and each consumer count the events that pass them. It may be used concurrently.
type Reader struct {
	cfg Config

	reading chan struct{} // held by the reader
	last    *account
	until   time.Time       // as long as last is given out
	away    map[string]bool // consumers that could not be read the last time
}

// NewReader returns the ledger of an event log and its consumers.
func NewReader(cfg Config) *Reader {
	if cfg.Timeout == 0 {
		cfg.Timeout = 2 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Reader{cfg: cfg, reading: make(chan struct{}, 1), away: map[string]bool{}}
}

// Ledger returns the ledger, at most a second old, or ten times as old as reading it took: a caller in a loop costs
// the database no more than a tenth of one connection. A consumer whose database can't be read is missing from it, and
// is named; without that of the log the error wraps [fault.ErrUnavailable].
func (r *Reader) Ledger(ctx context.Context) (Ledger, error) {
	a, err := r.account(ctx)
	if err != nil {
		return Ledger{}, err
	}
	return a.Ledger, nil
}

func (r *Reader) account(ctx context.Context) (*account, error) {
	select {
	case r.reading <- struct{}{}:
		defer func() { <-r.reading }()
	case <-ctx.Done():
		return nil, fmt.Errorf("read ledger: %w: %w", fault.ErrUnavailable, ctx.Err())
	}
	if time.Now().Before(r.until) {
		return r.last, nil
	}
	began := time.Now()
	fresh, whole, err := r.read(ctx)
	if err != nil {
		return nil, fmt.Errorf("read ledger: %w", fault.Unavailable(err))
	}
	keep := time.Second
	if took := time.Since(began); whole { // what took long for want of an answer is soon asked for again
		keep = max(keep, 10*took)
	}
	r.last, r.until = fresh, time.Now().Add(keep)
	return fresh, nil
}

// read reads consumers first and the log then: what a consumer has handled is in a log that is read later, so that a
// system that moves never has more handled than sequenced. Whole reports whether all consumers could be read.
func (r *Reader) read(ctx context.Context) (a *account, whole bool, err error) {
	views := make([]consumerView, len(r.cfg.Consumers))
	var all sync.WaitGroup
	for i := range views {
		views[i].Consumer = &r.cfg.Consumers[i]
		all.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
			defer cancel()
			views[i].err = snapshot(ctx, views[i].Pool, func(tx pgx.Tx) error { return views[i].read(ctx, tx) })
		})
	}
	all.Wait()
	whole = true
	for i := range views {
		v := &views[i]
		whole = whole && v.err == nil
		if v.err != nil && !r.away[v.Name] {
			r.cfg.Log.Warn("the ledger can't read a consumer's database", "consumer", v.Name, "error", v.err)
		}
		r.away[v.Name] = v.err != nil
	}
	err = snapshot(ctx, r.cfg.Events, func(tx pgx.Tx) error {
		var log logView
		if err := log.read(ctx, tx); err != nil {
			return err
		}
		a = newAccount(r.cfg.Now().UTC().Truncate(time.Microsecond), &log, views)
		return a.look(ctx, tx)
	})
	if err != nil {
		return nil, false, fmt.Errorf("count events of the log: %w", err)
	}
	return a, whole, nil
}

// snapshot reads with one view of a database, which may be a replica.
func snapshot(ctx context.Context, pool *pgxpool.Pool, read func(tx pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, read)
}
