package outbox

import (
	"context"
	"fmt"
	"time"
)

// lookout watches from the standby whether the leader does its work. It may be frozen, or have the database and not the
// bus: its session, and with it the lock, would last for ever.
type lookout struct{ outbox, bus idle }

// idle is a queue of which nothing may be done.
type idle struct {
	head  int64 // what is next in it
	since time.Time
}

// look returns for how long nothing was done of what waits. What is added is no progress.
func (i *idle) look(now time.Time, waits bool, head int64) time.Duration {
	if !waits || head != i.head || i.since.IsZero() {
		i.head, i.since = head, now
	}
	return now.Sub(i.since)
}

// progress is what a leader moves: the oldest row of the outbox, 0 if there is none, and the cursor up to the end of the log.
type progress struct{ oldest, cursor, newest int64 }

// look returns for how long the leader has not done one of its two works.
func (l *lookout) look(now time.Time, p progress) time.Duration {
	return max(l.outbox.look(now, p.oldest > 0, p.oldest), l.bus.look(now, p.cursor < p.newest, p.cursor))
}

// progress reads how far the leader is.
func (q *sequencer) progress(ctx context.Context) (p progress, err error) {
	ctx, cancel := context.WithTimeout(ctx, q.timeout)
	defer cancel()
	err = q.conn.QueryRow(ctx, `SELECT coalesce((SELECT id FROM outbox WHERE id > c.floor ORDER BY id LIMIT 1), 0), c.position,
		coalesce((SELECT position FROM event_store ORDER BY position DESC LIMIT 1), 0) FROM relay_cursor c WHERE name = 'bus'`).
		Scan(&p.oldest, &p.cursor, &p.newest)
	if err != nil {
		return p, fmt.Errorf("look what the leading relay does: %w", err)
	}
	return p, nil
}

// watch looks at the leader, and ends its session when it has done nothing for too long and the bus can be reached from
// here: the next attempt at the lock will do. The statements of the leader run on that session, so that none of them
// can take effect afterwards.
func (s *Subscriber) watch(ctx context.Context, q *sequencer, l *lookout) error {
	p, err := q.progress(ctx)
	if err != nil {
		return err
	}
	idle := l.look(time.Now(), p)
	if idle < s.cfg.Idle {
		s.update(func(st *State) { st.Idle = 0 })
		return nil
	}
	s.update(func(st *State) { st.Idle = idle })
	if idle < 2*s.cfg.Idle {
		return nil
	}
	*l = lookout{} // whoever leads then has as long
	if s.cfg.Bus != nil {
		if _, err := s.newest(ctx); err != nil {
			s.cfg.Log.Error("the relay that leads does nothing, and the bus can't be reached from here either", "for", idle.Round(time.Second), "error", err)
			return nil
		}
	}
	ended, err := q.endLeader(ctx)
	if err != nil {
		return err
	}
	s.cfg.Log.Error("the relay that leads has done nothing for too long, ended its session", "for", idle.Round(time.Second), "ended", ended)
	return nil
}

const endLeader = `SELECT coalesce(bool_or(pg_terminate_backend(pid)), false) FROM pg_locks
	WHERE locktype = 'advisory' AND granted AND objsubid = 2 AND classid = $1::bigint::oid AND objid = 'outbox'::regclass::oid
	AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`

// endLeader ends the session that holds the lock, and reports whether there was one.
func (q *sequencer) endLeader(ctx context.Context) (ended bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, q.timeout)
	defer cancel()
	if err = q.conn.QueryRow(ctx, endLeader, int64(lockClass)).Scan(&ended); err != nil {
		return false, fmt.Errorf("end the session of the leading relay: %w", err)
	}
	return ended, nil
}
