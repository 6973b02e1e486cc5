package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
)

// Consumer is who applies events of some topics, and the database it keeps what it has applied in.
type Consumer struct {
	Name   string   // as in the dlq table
	Topics []string // each of whose events it applies to one projection
	// Projections names the projections that events of a type are applied to.
	Projections func(eventType string) []string
	Pool        *pgxpool.Pool
}

// Reader counts events from what is durable. What it reads does not grow with the log: the relay's cursor knows how
// many events it has passed, and a projection how many it is made of. It may be used concurrently.
type Reader struct {
	events    *pgxpool.Pool
	consumers []Consumer
	now       func() time.Time

	reading chan struct{} // held by the one who reads
	last    Ledger
	until   time.Time // as long as last is given out
}

// NewReader returns the ledger of the event log in the database of events and of consumers; the pools stay the caller's.
func NewReader(events *pgxpool.Pool, consumers []Consumer, now func() time.Time) *Reader {
	return &Reader{events: events, consumers: consumers, now: now, reading: make(chan struct{}, 1)}
}

// Ledger returns the ledger, at most a second old, or ten times as old as reading it took: whoever asks in a loop costs
// the database no more than a tenth of one connection. Its error wraps [fault.ErrUnavailable].
func (l *Reader) Ledger(ctx context.Context) (Ledger, error) {
	select {
	case l.reading <- struct{}{}:
		defer func() { <-l.reading }()
	case <-ctx.Done():
		return Ledger{}, fmt.Errorf("read ledger: %w: %w", fault.ErrUnavailable, ctx.Err())
	}
	if time.Now().Before(l.until) {
		return l.last, nil
	}
	began := time.Now()
	fresh, err := l.read(ctx)
	if err != nil {
		return Ledger{}, fmt.Errorf("read ledger: %w", fault.Unavailable(err))
	}
	took := time.Since(began)
	l.last, l.until = fresh, began.Add(took+max(time.Second, 10*took))
	return fresh, nil
}

// read reads consumers first and the log then: what a consumer has applied is in a log that is read later, so that a
// system that moves never has more applied than sequenced.
func (l *Reader) read(ctx context.Context) (Ledger, error) {
	views := make([]consumerView, len(l.consumers))
	for i, c := range l.consumers {
		if err := snapshot(ctx, c.Pool, func(tx pgx.Tx) error { return views[i].read(ctx, tx, c) }); err != nil {
			return Ledger{}, fmt.Errorf("count what %s has applied: %w", c.Name, err)
		}
	}
	var log logView
	var result Ledger
	err := snapshot(ctx, l.events, func(tx pgx.Tx) error {
		if err := log.read(ctx, tx); err != nil {
			return err
		}
		for i := range views {
			if err := views[i].match(ctx, tx); err != nil {
				return err
			}
		}
		result = balance(l.now().UTC().Truncate(time.Microsecond), log, views)
		return log.ages(ctx, tx, &result)
	})
	if err != nil {
		return Ledger{}, fmt.Errorf("count events of the log: %w", err)
	}
	return result, nil
}

// snapshot reads with one view of a database, which may be a replica.
func snapshot(ctx context.Context, pool *pgxpool.Pool, read func(tx pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, read)
}

// perTopic counts events by the topic they travel on; see event.Topic.
type perTopic map[string]int64

func (p perTopic) of(topics ...string) (n int64) {
	for _, t := range topics {
		n += p[t]
	}
	return n
}

// consumerView is what a consumer's database says.
type consumerView struct {
	Consumer
	applied  int64
	complete bool
	letters  DeadLetterCounts
	dead     []uuid.UUID // events that are dead letters and not replayed
	lost     int64       // of these, those that the log knows: others put the rest on the bus
}

func (v *consumerView) read(ctx context.Context, tx pgx.Tx, c Consumer) error {
	v.Consumer = c
	err := tx.QueryRow(ctx, `SELECT (SELECT coalesce(sum(event_count), 0)::bigint FROM projections),
		coalesce((SELECT complete FROM consumer_counts WHERE consumer = $1), false)`, c.Name).Scan(&v.applied, &v.complete)
	if err != nil {
		return err
	}
	letters, err := readLetters(ctx, tx, c.Name)
	if err != nil {
		return err
	}
	v.letters = letters[c.Name]
	rows, err := tx.Query(ctx, `SELECT event_id FROM dlq WHERE consumer = $1 AND event_id IS NOT NULL
		GROUP BY event_id HAVING NOT bool_or(status = 'replayed')`, c.Name)
	if err != nil {
		return err
	}
	v.dead, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (id uuid.UUID, err error) {
		return id, row.Scan((*[16]byte)(&id))
	})
	return err
}

// match counts the dead letters that are events of the log.
func (v *consumerView) match(ctx context.Context, tx pgx.Tx) error {
	const chunk = 10_000
	for ids := range slices.Chunk(v.dead, chunk) {
		var n int64
		err := tx.QueryRow(ctx, `SELECT count(*) FROM event_store WHERE event_id = ANY ($1)`, ids).Scan(&n)
		if err != nil {
			return fmt.Errorf("look for dead letters of %s: %w", v.Name, err)
		}
		v.lost += n
	}
	return nil
}

func readLetters(ctx context.Context, tx pgx.Tx, consumers ...string) (map[string]DeadLetterCounts, error) {
	rows, err := tx.Query(ctx, `SELECT consumer, count(*) FILTER (WHERE status = 'pending'), count(*) FILTER (WHERE status = 'replayed'),
		count(*) FILTER (WHERE status = 'discarded') FROM dlq WHERE consumer = ANY ($1) GROUP BY consumer`, consumers)
	if err != nil {
		return nil, err
	}
	letters := make(map[string]DeadLetterCounts, len(consumers))
	for _, c := range consumers {
		letters[c] = DeadLetterCounts{}
	}
	var name string
	var n DeadLetterCounts
	_, err = pgx.ForEachRow(rows, []any{&name, &n.Pending, &n.Replayed, &n.Discarded}, func() error {
		letters[name] = n
		return nil
	})
	return letters, err
}

// logView is what the database of ingestion and the relay says.
type logView struct {
	position, counted, newest int64
	passed                    perTopic // up to counted
	tail                      perTopic // behind it
	deadPassed, deadTail      perTopic // of these, those that the bus will not get
	duplicates, outbox        int64
	setAside                  int64 // accepted, and not in the log because it can't hold them
	letters                   map[string]DeadLetterCounts
	oldest                    *time.Time // in the outbox
}

func (v *logView) read(ctx context.Context, tx pgx.Tx) error {
	var sensor, user, system int64
	err := tx.QueryRow(ctx, `SELECT position, counted, sensor_events, user_actions, system_events, duplicates,
		coalesce((SELECT max(position) FROM event_store), 0), (SELECT count(*) FROM outbox WHERE id > floor),
		(SELECT ingested_at FROM outbox WHERE id > floor ORDER BY id LIMIT 1)
		FROM relay_cursor WHERE name = 'bus'`).
		Scan(&v.position, &v.counted, &sensor, &user, &system, &v.duplicates, &v.newest, &v.outbox, &v.oldest)
	if err != nil {
		return fmt.Errorf("read relay cursor: %w", err)
	}
	v.passed = perTopic{event.TopicSensor: sensor, event.TopicUser: user, event.TopicSystem: system}
	// Without a plan that is kept: one for any position would read the whole log.
	err = tx.QueryRow(ctx, `SELECT count(*) FILTER (WHERE event_type LIKE 'sensor.%'), count(*) FILTER (WHERE event_type LIKE 'user.%'),
		count(*) FROM event_store WHERE position > $1`, pgx.QueryExecModeExec, v.counted).Scan(&sensor, &user, &system)
	if err != nil {
		return fmt.Errorf("count the end of the log: %w", err)
	}
	v.tail = perTopic{event.TopicSensor: sensor, event.TopicUser: user, event.TopicSystem: system - sensor - user}
	if v.letters, err = readLetters(ctx, tx, "ingestion", "relay"); err != nil {
		return fmt.Errorf("count dead letters: %w", err)
	}
	return v.readDead(ctx, tx)
}

// readDead tells the dead letters of the relay apart: events that the log holds and the bus refuses, whose offset is their position,
// and events that the log can't hold.
func (v *logView) readDead(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, `
		SELECT coalesce(e.event_type, ''), e.position IS NOT NULL, coalesce(e.position, 0) <= $1, count(*)
		FROM (SELECT event_id, source_offset FROM dlq WHERE consumer = 'relay'
			GROUP BY event_id, source_offset HAVING NOT bool_or(status = 'replayed')) AS d
		LEFT JOIN event_store e ON e.event_id = d.event_id AND e.position = d.source_offset
		GROUP BY 1, 2, 3`, v.counted)
	if err != nil {
		return fmt.Errorf("read dead letters of the relay: %w", err)
	}
	v.deadPassed, v.deadTail = perTopic{}, perTopic{}
	var eventType string
	var logged, passed bool
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&eventType, &logged, &passed, &n}, func() error {
		switch {
		case !logged:
			v.setAside += n
		case passed:
			v.deadPassed[event.Topic(eventType)] += n
		default:
			v.deadTail[event.Topic(eventType)] += n
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read dead letters of the relay: %w", err)
	}
	return nil
}

// ages adds how long the oldest event of each stage has been waiting. Which event a consumer has not applied is not
// known without reading the log: it is taken for the one that stands as far before the end as events are pending. The
// true one may be older, when one partition waits and the others go on.
func (v *logView) ages(ctx context.Context, tx pgx.Tx, l *Ledger) error {
	age := func(t *time.Time) float64 {
		if t == nil {
			return 0
		}
		return max(0, l.At.Sub(*t).Round(time.Millisecond).Seconds())
	}
	after := func(position int64) (*time.Time, error) {
		var t *time.Time
		err := tx.QueryRow(ctx, `SELECT ingested_at FROM event_store WHERE position > $1 ORDER BY position LIMIT 1`,
			pgx.QueryExecModeExec, position).Scan(&t)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return nil, fmt.Errorf("read the oldest event that waits: %w", err)
		}
		return t, nil
	}
	relay := Lag{Events: l.Pending[StageOutbox] + l.Pending[StageRelay]}
	if l.Pending[StageRelay] > 0 {
		t, err := after(max(v.position, v.newest-v.tail.of(event.Topics()...)))
		if err != nil {
			return err
		}
		relay.Seconds = age(t)
	}
	if l.Pending[StageOutbox] > 0 {
		relay.Seconds = max(relay.Seconds, age(v.oldest))
	}
	l.Lag[StageRelay] = relay
	for _, c := range l.Consumers {
		if !c.Complete {
			continue
		}
		lag := Lag{Events: max(0, c.Pending)}
		if lag.Events > 0 {
			t, err := after(max(0, v.newest-lag.Events))
			if err != nil {
				return err
			}
			lag.Seconds = age(t)
		}
		l.Lag[c.Consumer] = lag
	}
	return nil
}
