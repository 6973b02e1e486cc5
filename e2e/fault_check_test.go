package e2e

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
)

// logged is an event of the event log.
type logged struct {
	EventID     string
	AggregateID string
	EventType   string
	Position    int64
	Seq         int
}

// proven shows that the platform has kept its promises for all of the traffic, which has ended: each acknowledged event
// is in the log once and on its topic in order, projections are what the log makes of them with each event counted
// once, and dead letters are those that had to be. poison are the event IDs of records that were put on the bus.
func (r *rig) proven(t *testing.T, l *traffic, poison ...string) {
	t.Helper()
	for _, i := range r.instances {
		i.ready(t)
	}
	require.Empty(t, l.wrong, "mistakes that were accepted over HTTP")
	log := r.stored(t, l)
	r.projected(t)
	r.onTheBus(t, log)
	r.deadLetters(t, l, poison)
	r.note(t, "proven: %d acknowledged events (%d offers were not), %d in the log, %d dead letters", len(l.acked), l.refused.Load(), len(log), len(l.bad)+len(poison))
	for _, i := range r.instances {
		require.NotContains(t, i.p.process.stderr.String(), "panic")
	}
}

// stored shows that the event log is what was acknowledged, each event once, in the order of its sender.
func (r *rig) stored(t *testing.T, l *traffic) (log []logged) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		var left int
		require.NoError(c, r.db.QueryRow(t.Context(), `SELECT count(*) FROM outbox`).Scan(&left))
		require.Zero(c, left, "waiting in the outbox")
		var err error
		log, err = rows[logged](t.Context(), r.db, `SELECT event_id::text, aggregate_id, event_type, position, (payload->>'seq')::int AS seq
			FROM event_store ORDER BY position`)
		require.NoError(c, err)
		require.GreaterOrEqual(c, len(log), len(l.acked))
	}, 2*wait, 4*tick, "%d acknowledged events are stored", len(l.acked))
	byID := map[string]logged{}
	for _, e := range log {
		byID[e.EventID] = e // the table's key is the event ID
	}
	order := map[string]sent{}
	for _, e := range l.acked {
		s, ok := byID[e.id]
		require.True(t, ok, "event %s, %d of %s, was acknowledged and is not stored", e.id, e.seq, e.aggregate)
		require.Equal(t, []any{e.aggregate, e.kind, e.seq}, []any{s.AggregateID, s.EventType, s.Seq})
		last := order[e.aggregate] // a client notes its events in their order
		if e.ordered && last.id != "" {
			require.Less(t, byID[last.id].Position, s.Position, "event %d of %s is behind event %d", last.seq, e.aggregate, e.seq)
		}
		order[e.aggregate] = e
	}
	require.Len(t, log, len(l.acked), "nothing else is in the log")
	return log
}

// projected shows that each projection is what its rule makes of the event log, computed here in SQL, and that it has
// counted each event once.
func (r *rig) projected(t *testing.T) {
	t.Helper()
	const query = `
		WITH log AS (
			SELECT CASE split_part(event_type, '.', 1) WHEN 'sensor' THEN 'sensor_state' ELSE 'user_session' END AS kind, *
			FROM event_store e WHERE event_type ~ '^(sensor|user)\.'
			AND NOT EXISTS (SELECT FROM dlq d WHERE d.consumer = 'eventhandler' AND d.event_id = e.event_id)
		), newest AS (
			SELECT DISTINCT ON (kind, aggregate_id) kind, aggregate_id, event_id, event_time, payload
			FROM log ORDER BY kind, aggregate_id, event_time DESC, event_id DESC
		), counted AS (
			SELECT kind, aggregate_id, count(*) AS events, max(position) AS position FROM log GROUP BY 1, 2
		)
		SELECT format('%s of %s: applied %s of %s events, position %s of %s, event %s of %s, state %s of %s', kind, n.aggregate_id,
			p.event_count, c.events, p.position, c.position, p.last_event_id, n.event_id, p.state, n.payload)
		FROM counted c JOIN newest n USING (kind, aggregate_id)
		FULL JOIN projections p ON p.projection_type = kind AND p.aggregate_id = n.aggregate_id
		WHERE (p.event_count, p.position, p.last_event_id, p.last_event_timestamp, p.state)
			IS DISTINCT FROM (c.events, c.position, n.event_id, n.event_time, n.payload)`
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		found, err := r.db.Query(t.Context(), query)
		require.NoError(c, err)
		wrong, err := pgx.CollectRows(found, pgx.RowTo[string])
		require.NoError(c, err)
		require.Empty(c, wrong, "projections that are not what the log makes of them")
	}, 2*wait, 10*tick)
}

// onTheBus shows that every event of the log is on the topic of its type under its position, and that the first time
// each comes it is behind all earlier ones of its aggregate. What a crash repeats has the same position.
func (r *rig) onTheBus(t *testing.T, log []logged) {
	t.Helper()
	want := map[string]logged{}
	for _, e := range log {
		want[e.EventID] = e
	}
	last, at, seen := map[string]int64{}, map[string]int32{}, map[string]bool{}
	done, repeated := 0, 0
	look := func(rec *kgo.Record) {
		var e storedEvent
		if json.Unmarshal(rec.Value, &e) != nil || e.Metadata.Position == 0 {
			return // poison that a test has put there
		}
		stored, ok := want[e.EventID]
		require.True(t, ok, "event %s on the bus is not in the log", e.EventID)
		require.Equal(t, stored.Position, e.Metadata.Position, "position of event %s", e.EventID)
		require.Equal(t, stored.AggregateID, string(rec.Key))
		topic := map[bool]string{true: "sensor-events", false: "user-actions"}[stored.EventType == "sensor.reading"]
		require.Equal(t, topic, rec.Topic, "topic of %s", stored.EventType)
		key := rec.Topic + " " + string(rec.Key)
		if p, ok := at[key]; ok {
			require.Equal(t, p, rec.Partition, "partition of %s", key)
		}
		at[key] = rec.Partition
		if seen[e.EventID] {
			repeated++
			return
		}
		seen[e.EventID] = true
		require.Greater(t, stored.Position, last[key], "event %s of %s", e.EventID, key)
		last[key] = stored.Position
	}
	p := r.instances[0].p
	p.listen(t, time.Time{}, "sensor-events", "user-actions").until(t, func(records []*kgo.Record) bool {
		for _, rec := range records[done:] {
			look(rec)
		}
		done = len(records)
		return len(seen) == len(log)
	}, "all %d events", len(log))
	r.note(t, "%d events on the bus, %d of them again", len(seen), repeated)
}

// deadLetters shows that there is one for each message that can't succeed, as a row with its bytes and as a record, and
// no other.
func (r *rig) deadLetters(t *testing.T, l *traffic, poison []string) {
	t.Helper()
	want := slices.Clone(poison)
	for id := range l.bad {
		want = append(want, id)
	}
	type row struct {
		DlqID    string
		EventID  string
		Consumer string
		Body     string
		Error    string
		Status   string
	}
	var found []row
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		var err error
		found, err = rows[row](t.Context(), r.db, `SELECT dlq_id::text, coalesce(event_id::text, '') AS event_id, consumer,
			encode(event_payload, 'escape') AS body, error_message AS error, status FROM dlq WHERE published_at IS NOT NULL`)
		require.NoError(c, err)
		require.GreaterOrEqual(c, len(found), len(want), "dead letters that are on the bus, too")
	}, 2*wait, 10*tick)
	times := map[string]int{}
	for _, d := range found {
		times[d.EventID]++
		require.Equal(t, 1, times[d.EventID], "it is there more than once: %+v", d)
		if body, ok := l.bad[d.EventID]; ok {
			require.Equal(t, []string{"ingestion", body, "pending"}, []string{d.Consumer, d.Body, d.Status})
			continue
		}
		require.Contains(t, poison, d.EventID, "nothing was wrong with it: %+v", d)
		require.Equal(t, "eventhandler", d.Consumer)
	}
	require.Empty(t, slices.DeleteFunc(want, func(id string) bool { return times[id] == 1 }), "not there")
	if len(found) == 0 {
		return
	}
	r.instances[0].p.listen(t, time.Time{}, "sensor-events.dlq").until(t, func(records []*kgo.Record) bool {
		seen := map[string]bool{}
		for _, rec := range records {
			seen[header(rec, "dlq_id")] = true
		}
		return !slices.ContainsFunc(found, func(d row) bool { return !seen[d.DlqID] })
	}, "%d dead letters", len(found))
}
