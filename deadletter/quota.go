package deadletter

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	rowBytes    = 512    // about what a letter takes beside its payload
	shares      = 100    // of a quota; a source has one of them for sure
	mostSources = 10_000 // whose use is remembered, those that use most
	sayDropped  = time.Minute
)

// QuotaConfig configures a [Quota].
type QuotaConfig struct {
	DB       Querier
	Consumer string
	MaxBytes int64 // zero is no limit
	Dropped  func(n int)
	Log      *slog.Logger
	Now      func() time.Time
}

// Quota stores the dead letters of a consumer whose messages come from outside, and bounds how much of the database they
// fill. Once they fill it, a source that has more than a hundredth of it gets no further letter stored: what it sends is
// counted and logged. Others still do, so that one broken device hides nobody else's. It may be used concurrently.
type Quota struct {
	cfg QuotaConfig

	mu       sync.Mutex
	known    bool
	bytes    int64
	bySource map[string]int64
	oldest   time.Time
	dropped  int64
	said     time.Time
}

// Usage says how much a consumer's dead letters fill.
type Usage struct {
	Bytes   int64
	Oldest  time.Time // of those that are pending; zero if none is
	Dropped int64     // that were not stored, since the process began
}

// NewQuota returns a quota that stores everything until [Quota.Measure] has succeeded once.
func NewQuota(cfg QuotaConfig) *Quota { return &Quota{cfg: cfg} }

// Measure reads how much is stored. It costs a pass over the consumer's letters, without their payloads.
func (q *Quota) Measure(ctx context.Context) error {
	rows, err := q.cfg.DB.Query(ctx, `SELECT coalesce(message_key, ''), sum(octet_length(event_payload) + $2::bigint)::bigint AS bytes,
			(sum(sum(octet_length(event_payload) + $2::bigint)) OVER ())::bigint, min(min(failed_at) FILTER (WHERE status = 'pending')) OVER ()
		FROM dlq WHERE consumer = $1 GROUP BY 1 ORDER BY 2 DESC LIMIT $3`, q.cfg.Consumer, int64(rowBytes), mostSources)
	if err != nil {
		return fmt.Errorf("measure dead letters: %w", err)
	}
	var source string
	var bytes, total int64
	var oldest *time.Time
	bySource := make(map[string]int64)
	if _, err := pgx.ForEachRow(rows, []any{&source, &bytes, &total, &oldest}, func() error {
		bySource[source] = bytes
		return nil
	}); err != nil {
		return fmt.Errorf("measure dead letters: %w", err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.known, q.bytes, q.bySource, q.oldest = true, total, bySource, time.Time{}
	if oldest != nil {
		q.oldest = *oldest
	}
	return nil
}

// Usage returns what was measured, with what was stored since.
func (q *Quota) Usage() Usage {
	q.mu.Lock()
	defer q.mu.Unlock()
	return Usage{Bytes: q.bytes, Oldest: q.oldest, Dropped: q.dropped}
}

// Add stores dead letters, but those that the quota has no room for.
func (q *Quota) Add(ctx context.Context, entries ...Entry) error {
	room, over := q.split(entries)
	if len(room) > 0 {
		if err := Add(ctx, q.cfg.DB, room...); err != nil {
			return err
		}
	}
	q.note(room, over)
	return nil
}

// split tells letters that there is room for from those that there is none for.
func (q *Quota) split(entries []Entry) (room, over []Entry) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.known || q.cfg.MaxBytes <= 0 {
		return entries, nil
	}
	total, added := q.bytes, make(map[string]int64)
	for i := range entries {
		size, source := sizeOf(&entries[i]), text(entries[i].Key)
		if total+size > q.cfg.MaxBytes && q.bySource[source]+added[source]+size > q.cfg.MaxBytes/shares {
			over = append(over, entries[i])
			continue
		}
		total += size
		added[source] += size
		room = append(room, entries[i])
	}
	return room, over
}

// note counts what was stored and what was not, once that is certain.
func (q *Quota) note(room, over []Entry) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.known {
		for i := range room {
			size := sizeOf(&room[i])
			q.bytes += size
			q.bySource[text(room[i].Key)] += size
		}
	}
	if len(over) == 0 {
		return
	}
	q.dropped += int64(len(over))
	if q.cfg.Dropped != nil {
		q.cfg.Dropped(len(over))
	}
	if now := q.cfg.Now(); now.Sub(q.said) >= sayDropped {
		q.said = now
		e := &over[0]
		q.cfg.Log.Error("refused messages are not kept as dead letters: their quota is full (DLQ_MAX_BYTES)", "consumer", q.cfg.Consumer,
			"source", e.Key, "topic", e.Topic, "reason", e.Error, "bytes", len(e.Payload), "not_kept", q.dropped, "stored_bytes", q.bytes)
	}
}

func sizeOf(e *Entry) int64 { return int64(len(e.Payload)) + rowBytes }
