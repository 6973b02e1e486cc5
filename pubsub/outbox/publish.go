package outbox

import (
	"context"
	"fmt"

	"github.com/cornjacket/platform-services/pubsub/batch"
)

// publish hands out what has been sequenced, and what a predecessor has left, until ctx ends. It goes on while another
// leadership begins: what is in flight then is waited for, and does not count.
func (s *Subscriber) publish(ctx context.Context, sender *batch.Sender) {
	var w work
	sender.Again = func(rest []batch.Record) []batch.Record {
		if !s.feed.during(w.term, func() {}) {
			return nil
		}
		return rest
	}
	for {
		var ok bool
		if w, ok = s.feed.take(ctx); !ok {
			return
		}
		p, err := s.prepare(ctx, w)
		if err != nil {
			if ctx.Err() == nil {
				s.cfg.Log.Warn("reading events to publish failed, trying again", "error", err)
			}
			batch.Sleep(ctx, s.cfg.Poll)
			continue
		}
		position := p.last
		if done := sender.Send(ctx, p.records).Done; done < len(p.records) {
			s.cfg.Log.Warn("events were still in flight at the end; they will be published again", "events", len(p.records)-done)
			if done == 0 {
				return
			}
			position = p.records[done-1].Offset
		}
		if s.feed.during(w.term, func() { s.published.Store(position) }) {
			signal(s.dirty)
		}
	}
}

// prepare returns the page that is to be published, from the log if the feed has not kept it.
func (s *Subscriber) prepare(ctx context.Context, w work) (page, error) {
	p := w.page
	if w.behind {
		var err error
		if p, err = s.behind(ctx, w.after, w.upTo); err != nil {
			return page{}, err
		}
	}
	for { // a page comes once
		err := s.report(ctx, p.unreadable)
		if err == nil {
			break
		}
		s.cfg.Log.Warn("storing a dead letter failed, trying again", "error", err)
		if !batch.Sleep(ctx, s.cfg.Poll) {
			return page{}, err
		}
	}
	if w.behind {
		s.feed.passed(w.term, p.last)
	}
	return p, nil
}

// behind reads stored events between two positions, as many as may be handed out together.
func (s *Subscriber) behind(ctx context.Context, after, upTo int64) (page, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	rows, err := s.pool.Query(ctx, readBehind, after, upTo, s.cfg.MaxBatch, maxBatchBytes)
	if err != nil {
		return page{}, fmt.Errorf("read unpublished events: %w", err)
	}
	p, err := collect(rows)
	if err == nil && p.taken == 0 {
		p.last = upTo
	}
	return p, err
}

// readBehind is bounded by bytes too, and its first row always passes.
const readBehind = `
SELECT position, event_id, event_type, aggregate_id, event_time, ingested_at, payload::text, metadata::text, true
FROM (
	SELECT *, sum(size) OVER (ORDER BY position ROWS UNBOUNDED PRECEDING) - size AS before
	FROM (
		SELECT *, pg_column_size(payload) AS size FROM event_store WHERE position > $1 AND position <= $2 ORDER BY position LIMIT $3
	) AS head
) AS sized WHERE before < $4 ORDER BY position`
