package deadletter

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
)

const (
	pageLetters = 100
	pageBytes   = 8 << 20 // of payloads that are held in memory at once
	// retryAfter is how long a letter that did not get through lets others go first.
	retryAfter = 2 * time.Second
	// statementTimeout is for reading and marking; publishing, in between, takes as long as the bus does.
	statementTimeout = 10 * time.Second
)

// PublisherConfig configures a [Publisher].
type PublisherConfig struct {
	DB        *pgxpool.Pool
	Consumers []string // whose letters are published
	// Bus publishes to a topic. Its error, if it is not marked with [fault.Permanent], is taken for one that passes.
	Bus  message.Publisher
	Log  *slog.Logger
	Poll time.Duration // how often to look without a call of Wake, since other processes write too; 15 s if zero
}

// Publisher publishes dead letters on the bus, each at least once.
type Publisher struct {
	cfg  PublisherConfig
	wake chan struct{}
}

// NewPublisher returns a publisher that does nothing until [Publisher.Run]. Database and bus stay the caller's.
func NewPublisher(cfg PublisherConfig) *Publisher {
	if cfg.Poll == 0 {
		cfg.Poll = 15 * time.Second
	}
	return &Publisher{cfg: cfg, wake: make(chan struct{}, 1)}
}

// Wake makes Run look now. It never blocks.
func (p *Publisher) Wake() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Run publishes until ctx ends.
func (p *Publisher) Run(ctx context.Context) {
	failing := false
	var retry time.Time // when what did not get through comes up again
	for ctx.Err() == nil {
		done, err := p.publish(ctx)
		if err != nil && ctx.Err() == nil {
			if !failing {
				p.cfg.Log.Error("dead letters can't be published yet, trying again", "error", err)
			}
			failing, retry = true, time.Now().Add(retryAfter)
		}
		if done > 0 {
			continue
		}
		wait := p.cfg.Poll
		if failing {
			wait = time.Until(retry)
			if failing = wait > 0; !failing {
				wait = p.cfg.Poll
			}
		}
		select {
		case <-p.wake:
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// publish publishes a page, and returns how many letters of it are done with. The error is the first of those that did
// not get through: others go before they are tried again.
func (p *Publisher) publish(ctx context.Context) (int, error) {
	letters, err := p.page(ctx)
	if err != nil {
		return 0, err
	}
	var done, held []uuid.UUID
	for i := range letters {
		l := &letters[i]
		m := record(l)
		m.SetContext(ctx)
		failed := p.cfg.Bus.Publish(l.BusTopic, m)
		switch {
		case failed == nil:
			done = append(done, l.ID)
		case fault.IsPermanent(failed): // the bus will never take it; the row in the dlq table is what remains
			p.cfg.Log.Warn("the bus refuses a dead letter; it stays in the dlq table", "dlq_id", l.ID, "error", failed)
			done = append(done, l.ID)
		default:
			held = append(held, l.ID)
			if err == nil {
				err = fmt.Errorf("publish dead letter %s: %w", l.ID, failed)
			}
		}
		if ctx.Err() != nil {
			break
		}
	}
	// Also when the program stops: what is published need not be published again.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), statementTimeout)
	defer cancel()
	if marked := mark(ctx, p.cfg.DB, done, held); marked != nil {
		return 0, fmt.Errorf("dead letters were published and will be again: %w", marked)
	}
	return len(done), err
}

func (p *Publisher) page(ctx context.Context) ([]Entry, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	return Unpublished(ctx, p.cfg.DB, p.cfg.Consumers, pageLetters, pageBytes)
}

// Unpublished returns up to limit dead letters of consumers that are to be published now, those that have waited longest
// first: as many as have bytes of payload together, and at least one.
func Unpublished(ctx context.Context, q Querier, consumers []string, limit int, bytes int64) ([]Entry, error) {
	// One index scan for each consumer, each of which ends after a page, and no payload is read that is not returned.
	rows, err := q.Query(ctx, `
		WITH page AS (
			SELECT dlq_id, row_number() OVER oldest AS place, sum(size) OVER oldest AS bytes
			FROM (SELECT DISTINCT unnest($1::text[])) AS c (name) CROSS JOIN LATERAL (
				SELECT dlq_id, publish_at, failed_at, octet_length(event_payload) AS size
				FROM dlq WHERE consumer = c.name AND published_at IS NULL AND publish_at <= now()
				ORDER BY publish_at, failed_at, dlq_id LIMIT $2
			) AS l WINDOW oldest AS (ORDER BY publish_at, failed_at, dlq_id)
		)
		SELECT dlq_id, consumer, event_id, event_payload, error_message, failed_at, retry_count, source_topic,
			source_partition, source_offset, coalesce(message_key, ''), coalesce(correlation_id, ''), bus_topic
		FROM page JOIN dlq USING (dlq_id) WHERE place <= $2 AND (place = 1 OR bytes <= $3) ORDER BY place`, consumers, limit, bytes)
	if err != nil {
		return nil, fmt.Errorf("read dead letters: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Entry, error) {
		var e Entry
		var eventID pgtype.UUID
		err := row.Scan((*[16]byte)(&e.ID), &e.Consumer, &eventID, &e.Payload, &e.Error, &e.FailedAt, &e.RetryCount, &e.Topic,
			&e.Partition, &e.Offset, &e.Key, &e.CorrelationID, &e.BusTopic)
		e.EventID = eventID.Bytes
		return e, err
	})
	if err != nil {
		return nil, fmt.Errorf("read dead letters: %w", err)
	}
	return list, nil
}

// mark notes which letters are published, and which ones are to be tried again after others. Rows are locked in one
// order: several instances may publish the same ones.
func mark(ctx context.Context, q Querier, done, held []uuid.UUID) error {
	if len(done)+len(held) == 0 {
		return nil
	}
	_, err := q.Exec(ctx, `
		UPDATE dlq SET published_at = CASE WHEN dlq_id = ANY ($1) THEN now() ELSE published_at END, publish_at = now() + $3::interval
		WHERE dlq_id IN (SELECT dlq_id FROM dlq WHERE dlq_id = ANY ($1) OR dlq_id = ANY ($2) ORDER BY dlq_id FOR UPDATE)`,
		done, held, retryAfter)
	if err != nil {
		return fmt.Errorf("mark dead letters as published: %w", err)
	}
	return nil
}

// record is a dead letter as it is published: the bytes as they came, and in headers what went wrong and where.
func record(e *Entry) *message.Message {
	m := message.NewMessage("", e.Payload)
	if e.EventID != uuid.Nil {
		m.UUID = e.EventID.String()
	}
	m.Metadata = message.Metadata{
		"dlq_id":                e.ID.String(),
		"consumer":              e.Consumer,
		"error_message":         e.Error,
		"failed_at":             e.FailedAt.UTC().Format(time.RFC3339Nano),
		"retry_count":           strconv.Itoa(e.RetryCount),
		"source_topic":          e.Topic,
		event.MetaCorrelationID: e.CorrelationID,
	}
	if e.Partition != nil {
		m.Metadata["source_partition"] = strconv.Itoa(int(*e.Partition))
	}
	if e.Offset != nil {
		m.Metadata["source_offset"] = strconv.FormatInt(*e.Offset, 10)
	}
	if e.Key != "" {
		m.Metadata[event.MetaAggregateID] = e.Key
	}
	return m
}
