package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cornjacket/platform-services/event"
)

// perTopic counts events by the topic they travel on; see event.Topic.
type perTopic map[string]int64

func (p perTopic) of(topics ...string) (n int64) {
	for _, t := range topics {
		n += p[t]
	}
	return n
}

// progress is how far a consumer is in a partition: position is that of the newest event that it has handled.
type progress struct {
	position int64
	at       time.Time // when it came there
}

// consumerView is what a consumer's database says.
type consumerView struct {
	*Consumer
	err        error // why it could not be read
	handled    perTopic
	dead       perTopic // of these, those that are dead letters and not replayed
	skipped    perTopic // of these, those that do not concern it
	partitions map[string][]progress
	letters    DeadLetterCounts
}

func (v *consumerView) read(ctx context.Context, tx pgx.Tx) error {
	if err := v.readPositions(ctx, tx, v.Topics); err != nil {
		return err
	}
	letters, err := readLetters(ctx, tx, v.Name)
	if err != nil {
		return fmt.Errorf("count dead letters of %s: %w", v.Name, err)
	}
	v.letters = letters[v.Name]
	return nil
}

// readPositions reads what the consumer has counted. The row of a partition that does not exist, -1, corrects counts.
func (v *consumerView) readPositions(ctx context.Context, tx pgx.Tx, topics []string) error {
	v.handled, v.dead, v.skipped, v.partitions = perTopic{}, perTopic{}, perTopic{}, map[string][]progress{}
	rows, err := tx.Query(ctx, `SELECT topic, partition, position, events, dead, skipped, updated_at FROM consumer_positions
		WHERE consumer = $1 AND topic = ANY ($2) ORDER BY topic, partition`, v.Name, topics)
	if err != nil {
		return fmt.Errorf("read positions of %s: %w", v.Name, err)
	}
	var topic string
	var partition int
	var p progress
	var events, dead, skipped int64
	_, err = pgx.ForEachRow(rows, []any{&topic, &partition, &p.position, &events, &dead, &skipped, &p.at}, func() error {
		p.at = p.at.UTC()
		v.handled[topic] += events
		v.dead[topic] += dead
		v.skipped[topic] += skipped
		if partition >= 0 {
			for len(v.partitions[topic]) < partition { // one that was never read has no row
				v.partitions[topic] = append(v.partitions[topic], progress{})
			}
			v.partitions[topic] = append(v.partitions[topic], p)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read positions of %s: %w", v.Name, err)
	}
	return nil
}

// at returns how far the consumer is in the partition in which the events of an aggregate travel.
func (v *consumerView) at(topic, aggregateID string) progress {
	all := v.partitions[topic]
	if len(all) == 0 {
		return progress{}
	}
	return all[v.Partition(aggregateID, len(all))]
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
	position, counted    int64    // of the relay's cursor
	passed               perTopic // up to counted
	tail                 perTopic // behind it
	deadPassed, deadTail perTopic // of these, those that the bus will not get
	duplicates, outbox   int64
	setAside             int64 // accepted, and not in the log because it can't hold them
	letters              map[string]DeadLetterCounts
	oldest               *time.Time // in the outbox
}

func (v *logView) read(ctx context.Context, tx pgx.Tx) (err error) {
	err = tx.QueryRow(ctx, `SELECT position, counted, duplicates, (SELECT count(*) FROM outbox WHERE id > floor),
		(SELECT ingested_at FROM outbox WHERE id > floor ORDER BY id LIMIT 1)
		FROM relay_cursor WHERE name = 'bus'`).Scan(&v.position, &v.counted, &v.duplicates, &v.outbox, &v.oldest)
	if err != nil {
		return fmt.Errorf("read relay cursor: %w", err)
	}
	if v.passed, err = countTopics(ctx, tx, func(topic string) string { return topic }, `SELECT topic, events FROM relay_counts`); err != nil {
		return fmt.Errorf("read relay counts: %w", err)
	}
	// Without a plan that is kept: one for any position would read the whole log.
	v.tail, err = countTopics(ctx, tx, event.Topic, `SELECT event_type, count(*) FROM event_store WHERE position > $1 GROUP BY 1`,
		pgx.QueryExecModeExec, v.counted)
	if err != nil {
		return fmt.Errorf("count the end of the log: %w", err)
	}
	if v.letters, err = readLetters(ctx, tx, "ingestion", "relay"); err != nil {
		return fmt.Errorf("count dead letters: %w", err)
	}
	return v.readDead(ctx, tx)
}

// countTopics adds up counts by topic; topic returns that of the first column.
func countTopics(ctx context.Context, tx pgx.Tx, topic func(string) string, query string, args ...any) (perTopic, error) {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	counts := perTopic{}
	var of string
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&of, &n}, func() error {
		counts[topic(of)] += n
		return nil
	})
	return counts, err
}

// readDead tells the dead letters of the relay apart: events that the log holds and the bus refuses, whose offset is their position,
// and events that the log can't hold. Each letter is looked up by itself, lest a plan for many reads the whole log.
func (v *logView) readDead(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, `
		SELECT coalesce(e.event_type, ''), e.event_type IS NOT NULL, d.source_offset <= $1, count(*)
		FROM (SELECT event_id, source_offset FROM dlq WHERE consumer = 'relay'
			GROUP BY event_id, source_offset HAVING NOT bool_or(status = 'replayed')) AS d
		LEFT JOIN LATERAL (SELECT event_type FROM event_store
			WHERE event_id = d.event_id AND position = d.source_offset LIMIT 1) AS e ON true
		GROUP BY 1, 2, 3`, v.counted)
	if err != nil {
		return fmt.Errorf("read dead letters of the relay: %w", err)
	}
	v.deadPassed, v.deadTail = perTopic{}, perTopic{}
	var eventType string
	var logged bool
	var passed *bool
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&eventType, &logged, &passed, &n}, func() error {
		switch {
		case !logged:
			v.setAside += n
		case *passed:
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
