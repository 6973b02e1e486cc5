package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cornjacket/platform-services/event"
)

// account is a ledger and what it was drawn up from.
type account struct {
	Ledger
	log       *logView
	consumers []consumerView
	published perTopic
	// doubt holds the topics of each consumer of which it is not known which events it has handled.
	doubt map[string][]string
}

// newAccount draws up what the log says. Of consumers it says what does not need a further look.
func newAccount(at time.Time, log *logView, consumers []consumerView) *account {
	a := &account{log: log, consumers: consumers, published: log.published(consumers), doubt: map[string][]string{}}
	a.Ledger = Ledger{
		At: at, Duplicates: log.duplicates,
		Applied: map[string]int64{}, DeadLettered: log.letters, Pending: map[string]int64{}, Lag: map[string]Lag{},
		Missing: []Missing{}, Topics: []TopicCounts{}, Consumers: []ConsumerCounts{},
	}
	var onTheWay int64
	for _, t := range event.Topics() {
		c := TopicCounts{
			Topic: t, Sequenced: log.passed[t] + log.tail[t], Published: a.published[t],
			DeadLettered: log.deadPassed[t] + log.deadTail[t],
		}
		a.Sequenced += c.Sequenced
		a.Published += c.Published
		onTheWay += c.Sequenced - c.Published - c.DeadLettered
		a.Topics = append(a.Topics, c)
	}
	a.Accepted = a.Sequenced + a.Duplicates + log.outbox + log.setAside
	a.Pending[StageOutbox], a.Pending[StageRelay] = log.outbox, onTheWay
	a.miss(StageOutbox, log.outbox, "accepted and not in the event log yet")
	a.miss(StageRelay, onTheWay, "in the event log and not acknowledged by the bus yet")
	return a
}

// miss notes what keeps the ledger from being balanced, if it is anything.
func (a *account) miss(stage string, events int64, detail string) {
	if events != 0 {
		a.Missing = append(a.Missing, Missing{Stage: stage, Events: events, Detail: detail})
	}
}

// published counts what the bus has, per topic. The cursor is saved some time after it has moved, so what a consumer has
// is on the bus as well, as far as the log has it; more than that is a fault, to be seen as one.
func (v *logView) published(consumers []consumerView) perTopic {
	published := perTopic{}
	for _, t := range event.Topics() {
		published[t] = v.passed[t] - v.deadPassed[t]
		most := published[t] + v.tail[t] - v.deadTail[t]
		for _, c := range consumers {
			published[t] = max(published[t], min(c.handled[t], most))
		}
	}
	return published
}

// look adds the consumers, and how long the oldest event of each stage has been waiting.
func (a *account) look(ctx context.Context, tx pgx.Tx) error {
	if err := a.lookAtRelay(ctx, tx); err != nil {
		return err
	}
	var types []string // read if a consumer is behind
	for i := range a.consumers {
		v := &a.consumers[i]
		if v.err != nil {
			a.Missing = append(a.Missing, Missing{Stage: v.Name, Detail: "its database can't be read now: where its events are is not known"})
			continue
		}
		if types == nil && a.published.of(v.Topics...) != v.handled.of(v.Topics...) {
			var err error
			if types, err = typesOf(ctx, tx); err != nil {
				return err
			}
		}
		if err := a.addConsumer(ctx, tx, v, types); err != nil {
			return err
		}
	}
	a.Balanced = len(a.Missing) == 0
	return nil
}

// addConsumer compares what is published on each topic of a consumer with what it has handled. What one topic has too
// much does not make up for what another lacks.
func (a *account) addConsumer(ctx context.Context, tx pgx.Tx, v *consumerView, types []string) error {
	c := ConsumerCounts{
		Consumer: v.Name, Topics: v.Topics, Published: a.published.of(v.Topics...) - v.skipped.of(v.Topics...),
		DeadLettered: v.dead.of(v.Topics...), Applied: v.handled.of(v.Topics...) - v.dead.of(v.Topics...) - v.skipped.of(v.Topics...),
	}
	var waits, lost, surplus int64
	var oldest *time.Time
	for _, t := range v.Topics {
		open := a.published[t] - v.handled[t]
		c.Pending += open
		switch {
		case open < 0:
			surplus += open
		case open > 0:
			at, err := a.waiting(ctx, tx, v, t, types)
			if err != nil {
				return err
			}
			if at != nil {
				waits += open
				oldest = earlier(oldest, at)
				continue
			}
			lost += open
		default:
			continue
		}
		a.doubt[v.Name] = append(a.doubt[v.Name], t)
	}
	on := "published on " + strings.Join(v.Topics, ", ")
	a.miss(v.Name, waits, on+", and neither applied nor a dead letter yet")
	a.miss(v.Name, lost, on+", neither applied nor a dead letter, and not found waiting: lost, or stuck in a partition that gets few events")
	a.miss(v.Name, surplus, "more applied or dead letters than were published: something was applied twice, or is gone from the log")
	a.Applied[v.Name], a.DeadLettered[v.Name], a.Pending[v.Name] = c.Applied, v.letters, c.Pending
	a.Lag[v.Name] = Lag{Events: max(0, c.Pending), Seconds: a.age(oldest)}
	a.Consumers = append(a.Consumers, c)
	return nil
}

func earlier(a, b *time.Time) *time.Time {
	if a == nil || b != nil && b.Before(*a) {
		return b
	}
	return a
}

func (a *account) age(t *time.Time) float64 {
	if t == nil {
		return 0
	}
	return max(0, a.At.Sub(*t).Round(time.Millisecond).Seconds())
}

func (a *account) lookAtRelay(ctx context.Context, tx pgx.Tx) error {
	lag := Lag{Events: a.Pending[StageOutbox] + a.Pending[StageRelay]}
	if a.Pending[StageRelay] > 0 {
		var at *time.Time
		err := tx.QueryRow(ctx, `SELECT ingested_at FROM event_store WHERE position > $1 ORDER BY position LIMIT 1`,
			pgx.QueryExecModeExec, a.seen()).Scan(&at)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("read the oldest event that waits for the bus: %w", err)
		}
		lag.Seconds = a.age(at)
	}
	if a.Pending[StageOutbox] > 0 {
		lag.Seconds = max(lag.Seconds, a.age(a.log.oldest))
	}
	a.Lag[StageRelay] = lag
	return nil
}

// seen returns up to which position the bus is known to have the log: as the relay says, or as consumers have had it.
func (a *account) seen() int64 {
	position := a.log.position
	for _, v := range a.consumers {
		for _, topic := range v.partitions {
			for _, p := range topic {
				position = max(position, p.position)
			}
		}
	}
	return position
}

// Bounds of a look for what waits.
const (
	maxTypes  = 200    // event types of the log
	maxLooked = 10_000 // events that are looked at for one topic of a consumer, or one at each place if that is more
)

// typesOf returns the event types of the log, going from one to the next in its index.
func typesOf(ctx context.Context, tx pgx.Tx) ([]string, error) {
	rows, err := tx.Query(ctx, `
		WITH RECURSIVE types AS (
			(SELECT event_type FROM event_store ORDER BY event_type LIMIT 1)
			UNION ALL
			SELECT (SELECT e.event_type FROM event_store e WHERE e.event_type > t.event_type ORDER BY e.event_type LIMIT 1)
			FROM types t WHERE t.event_type IS NOT NULL
		)
		SELECT event_type FROM types WHERE event_type IS NOT NULL LIMIT $1`, maxTypes)
	if err != nil {
		return nil, fmt.Errorf("read event types: %w", err)
	}
	types, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read event types: %w", err)
	}
	return types, nil
}

// waiting looks for events of a topic that stand behind the place that the consumer has come to in their partition, and
// returns when the oldest of them came in; nil if none is found. It looks behind each of these places, and at the end
// of the log for the partitions that get events seldom. Pairs are compared because one index alone serves that: with
// others, a topic that gets events seldom would be looked for in the whole log.
func (a *account) waiting(ctx context.Context, tx pgx.Tx, v *consumerView, topic string, types []string) (*time.Time, error) {
	from := []int64{0}
	if len(v.partitions[topic]) > 0 {
		from = nil
	}
	for _, p := range v.partitions[topic] {
		from = append(from, p.position)
	}
	slices.Sort(from)
	from = slices.Compact(from)
	types = slices.DeleteFunc(slices.Clone(types), func(t string) bool { return event.Topic(t) != topic })
	seen := a.seen()
	each := max(1, maxLooked/max(1, len(types)*(len(from)+1)))
	rows, err := tx.Query(ctx, `
		SELECT position, aggregate_id, ingested_at FROM (
			SELECT e.* FROM unnest($1::text[]) AS t (event_type), unnest($2::bigint[]) AS f (position)
			CROSS JOIN LATERAL (SELECT position, aggregate_id, ingested_at FROM event_store
				WHERE (event_type, position) > (t.event_type, f.position) AND (event_type, position) <= (t.event_type, $3)
				ORDER BY event_type, position LIMIT $4) AS e
			UNION ALL
			SELECT e.* FROM unnest($1::text[]) AS t (event_type)
			CROSS JOIN LATERAL (SELECT position, aggregate_id, ingested_at FROM event_store
				WHERE (event_type, position) > (t.event_type, 0) AND (event_type, position) <= (t.event_type, $3)
				ORDER BY event_type DESC, position DESC LIMIT $4) AS e
		) AS found
		WHERE position NOT IN (SELECT position FROM dlq WHERE consumer = 'relay' AND status <> 'replayed' AND position IS NOT NULL)`,
		types, from, seen, each)
	if err != nil {
		return nil, fmt.Errorf("look for what waits for %s: %w", v.Name, err)
	}
	var oldest *time.Time
	var position, first int64
	var aggregate string
	var at time.Time
	_, err = pgx.ForEachRow(rows, []any{&position, &aggregate, &at}, func() error {
		if position > v.at(topic, aggregate).position && (oldest == nil || position < first) {
			found := at
			oldest, first = &found, position
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for what waits for %s: %w", v.Name, err)
	}
	return oldest, nil
}
