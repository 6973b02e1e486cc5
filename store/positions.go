package store

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Partition is one partition of a topic of the bus.
type Partition struct {
	Topic     string
	Partition int32
}

// Place is how far a consumer is in a partition.
type Place struct {
	Partition
	Position int64 // of the newest event that was handled, in the log
	Offset   int64 // behind the newest record that was read; -1 if none was, or if the topic is another one by now
}

// Move is what a batch does to the place of a consumer in a partition.
type Move struct {
	Partition
	Position int64 // the new one; not below the old
	Offset   int64 // the new one; -1 leaves it as it is
	Events   int64 // events of the log that were handled
	Dead     int64 // of these, those that are dead letters
	Skipped  int64 // of these, those that do not concern the consumer
}

// Errors of [Positions].
var (
	// ErrFenced says that another member has taken a partition since this one did, or that what the consumer writes to
	// has been exchanged. Nothing was written; the partitions have to be claimed again.
	ErrFenced = errors.New("partition was taken by another member of the group")
	// ErrConflict says that a row was not what it was taken for. Nothing is to be committed; the batch can be tried again
	// at once.
	ErrConflict = errors.New("a row was changed by another writer")
)

// Positions keeps how far a consumer is, in the database that it writes to. A partition is the member's that has claimed
// it last; what an earlier one writes is refused. It remembers what it has written, and where the rows are: they are
// rewritten many times a second, and an old transaction of another session may keep all their dead versions. It may be
// used concurrently.
type Positions struct {
	pool     *pgxpool.Pool
	consumer string

	mu     sync.Mutex
	claims map[Partition]*claim
	staged []staged // of the transaction that is being written
	unsure bool     // whether the last one was committed is not known
	taken  int      // how often partitions were claimed
	begun  int      // as often as Begun knows
	seen   int      // as often as Fresh has said
}

type claim struct {
	epoch    int64
	position int64
	at       pgtype.TID // where the row is
}

type staged struct {
	Partition
	position int64
	at       pgtype.TID
}

// NewPositions returns the positions of a consumer in the database of pool, which stays the caller's.
func NewPositions(pool *pgxpool.Pool, consumer string) *Positions {
	return &Positions{pool: pool, consumer: consumer, claims: make(map[Partition]*claim)}
}

// Claim makes partitions this member's, whichever member had them, and returns how far the consumer is in each. A topic whose ID
// is not the one that was known is another topic: its offsets begin anew.
func (p *Positions) Claim(ctx context.Context, ids map[string]uuid.UUID, parts []Partition) ([]Place, error) {
	topics, numbers, topicIDs := make([]string, len(parts)), make([]int32, len(parts)), make([]pgtype.UUID, len(parts))
	for i, part := range parts {
		topics[i], numbers[i] = part.Topic, part.Partition
		id, known := ids[part.Topic]
		topicIDs[i] = pgtype.UUID{Bytes: id, Valid: known}
	}
	rows, err := p.pool.Query(ctx, `
		INSERT INTO consumer_positions AS p (consumer, topic, partition, topic_id, epoch)
		SELECT $1, topic, partition, id, 1 FROM unnest($2::text[], $3::int[], $4::uuid[]) AS n (topic, partition, id)
		ORDER BY topic, partition
		ON CONFLICT (consumer, topic, partition) DO UPDATE SET epoch = p.epoch + 1, topic_id = excluded.topic_id, updated_at = now(),
			next_offset = CASE WHEN p.topic_id IS NOT DISTINCT FROM excluded.topic_id THEN p.next_offset ELSE -1 END
		RETURNING topic, partition, position, next_offset, epoch, ctid`, p.consumer, topics, numbers, topicIDs)
	if err != nil {
		return nil, fmt.Errorf("claim partitions for %s: %w", p.consumer, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	places, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (place Place, err error) {
		c := &claim{}
		if err := row.Scan(&place.Topic, &place.Partition.Partition, &place.Position, &place.Offset, &c.epoch, &c.at); err != nil {
			return place, err
		}
		c.position = place.Position
		p.claims[place.Partition] = c
		return place, nil
	})
	if err != nil {
		return nil, fmt.Errorf("claim partitions for %s: %w", p.consumer, err)
	}
	p.taken++
	return places, nil
}

// Fresh reports whether partitions were claimed since the last [Positions.Begun].
func (p *Positions) Fresh() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = p.taken
	return p.taken > p.begun
}

// Begun says that the claims of the last [Positions.Fresh] are known to the writer.
func (p *Positions) Begun() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.begun = p.seen
}

// Claimed reports whether a partition was claimed and not lost since.
func (p *Positions) Claimed(part Partition) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.claims[part] != nil
}

// Position returns the log position of the newest event of a partition that was handled. The error is [ErrFenced] if the
// partition is not claimed.
func (p *Positions) Position(part Partition) (int64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.claims[part]
	if c == nil {
		return 0, fmt.Errorf("%s, partition %d of %s: %w", p.consumer, part.Partition, part.Topic, ErrFenced)
	}
	return c.position, nil
}

// Settle finds out what has become of a transaction whose outcome was not known. Call it before a batch is looked at.
func (p *Positions) Settle(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.unsure {
		return nil
	}
	rows, err := p.pool.Query(ctx, `SELECT topic, partition, position, epoch, ctid FROM consumer_positions WHERE consumer = $1`, p.consumer)
	if err != nil {
		return fmt.Errorf("read positions of %s: %w", p.consumer, err)
	}
	found := make(map[Partition]claim)
	var part Partition
	var c claim
	_, err = pgx.ForEachRow(rows, []any{&part.Topic, &part.Partition, &c.position, &c.epoch, &c.at}, func() error {
		found[part] = c
		return nil
	})
	if err != nil {
		return fmt.Errorf("read positions of %s: %w", p.consumer, err)
	}
	for part, known := range p.claims {
		if now, ok := found[part]; ok && now.epoch == known.epoch {
			*known = now
		} else {
			delete(p.claims, part)
		}
	}
	p.unsure = false
	return nil
}

// move fails to find a row that is not where it was, or whose epoch is another one. The position is looked at too: a
// PostgreSQL before the releases of November 2025 follows a row that moves while it is waited for.
const move = `
UPDATE consumer_positions p SET position = n.position, next_offset = CASE WHEN n.next < 0 THEN p.next_offset ELSE n.next END,
	events = p.events + n.events, dead = p.dead + n.dead, skipped = p.skipped + n.skipped, updated_at = now()
FROM unnest($2::tid[], $3::text[], $4::int[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[])
	AS n (place, topic, partition, epoch, before, position, next, events, dead, skipped)
WHERE p.ctid = n.place AND p.consumer = $1 AND p.topic = n.topic AND p.partition = n.partition AND p.epoch = n.epoch AND p.position = n.before
RETURNING p.topic, p.partition, p.position, p.ctid`

// Advance writes the moves of a batch within tx. [Positions.Done] has to be told of the outcome. Errors: [ErrFenced];
// any other is one of the database. Whatever happens to these rows until tx ends waits for it.
func (p *Positions) Advance(ctx context.Context, tx pgx.Tx, moves []Move) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(moves)
	places, topics, parts := make([]pgtype.TID, n), make([]string, n), make([]int32, n)
	epochs, positions, offsets := make([]int64, n), make([]int64, n), make([]int64, n)
	before, events, dead, skipped := make([]int64, n), make([]int64, n), make([]int64, n), make([]int64, n)
	for i, m := range moves {
		c := p.claims[m.Partition]
		if c == nil {
			return fmt.Errorf("%s, partition %d of %s: %w", p.consumer, m.Partition.Partition, m.Topic, ErrFenced)
		}
		places[i], topics[i], parts[i], epochs[i] = c.at, m.Topic, m.Partition.Partition, c.epoch
		before[i] = c.position
		positions[i], offsets[i], events[i], dead[i], skipped[i] = m.Position, m.Offset, m.Events, m.Dead, m.Skipped
	}
	rows, err := tx.Query(ctx, move, p.consumer, places, topics, parts, epochs, before, positions, offsets, events, dead, skipped)
	if err != nil {
		return fmt.Errorf("write positions of %s: %w", p.consumer, err)
	}
	p.staged, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (s staged, err error) {
		return s, row.Scan(&s.Topic, &s.Partition.Partition, &s.position, &s.at)
	})
	if err != nil {
		return fmt.Errorf("write positions of %s: %w", p.consumer, err)
	}
	if len(p.staged) == n {
		return nil
	}
	p.staged, p.unsure = nil, true // another member has written: Settle finds out whether we are fenced
	return fmt.Errorf("positions of %s: %w", p.consumer, ErrConflict)
}

// Move writes moves in a transaction of their own.
func (p *Positions) Move(ctx context.Context, moves []Move) error {
	if err := p.Settle(ctx); err != nil {
		return err
	}
	err := pgx.BeginFunc(ctx, p.pool, func(tx pgx.Tx) error { return p.Advance(ctx, tx, moves) })
	p.Done(err == nil)
	return err
}

// Done notes whether the transaction of the last [Positions.Advance] was committed; if it was not, or its outcome is unknown, what
// is there is read again.
func (p *Positions) Done(committed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !committed {
		p.staged, p.unsure = nil, true
		return
	}
	for _, s := range p.staged {
		if c := p.claims[s.Partition]; c != nil {
			c.position, c.at = s.position, s.at
		}
	}
	p.staged = nil
}

// Replayed notes within tx that a dead letter of an event of the log has been applied. It has a row of its own, so that
// the rows of the members that read the topic are not touched.
func Replayed(ctx context.Context, tx pgx.Tx, consumer, topic string) error {
	_, err := tx.Exec(ctx, `INSERT INTO consumer_positions AS p (consumer, topic, partition, dead) VALUES ($1, $2, -1, -1)
		ON CONFLICT (consumer, topic, partition) DO UPDATE SET dead = p.dead - 1, updated_at = now()`, consumer, topic)
	if err != nil {
		return fmt.Errorf("count the replay of a dead letter of %s: %w", consumer, err)
	}
	return nil
}

// NewestHandled returns the position of the newest event that a consumer has handled, 0 if it has handled none or has no
// tables yet.
func NewestHandled(ctx context.Context, pool *pgxpool.Pool, consumer string) (position int64, err error) {
	err = pool.QueryRow(ctx, `SELECT coalesce(max(position), 0) FROM consumer_positions WHERE consumer = $1`, consumer).Scan(&position)
	if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) && pg.Code == "42P01" { // undefined_table
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read how far %s is: %w", consumer, err)
	}
	return position, nil
}
