package e2e

import (
	"fmt"
	"testing"
	"time"
)

// raising makes every write to a table fail as PostgreSQL fails for want of disk space; when narrows it down.
func raising(table, when string) []string {
	return []string{
		fmt.Sprintf(`CREATE OR REPLACE FUNCTION fault_%[1]s() RETURNS trigger LANGUAGE plpgsql AS
			$$ BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$`, table),
		fmt.Sprintf(`CREATE TRIGGER fault BEFORE INSERT OR UPDATE ON %[1]s FOR EACH ROW %[2]s EXECUTE FUNCTION fault_%[1]s()`, table, when),
	}
}

// sleeping makes every write of a row to a table take time.
func sleeping(table string, d time.Duration) []string {
	return []string{
		fmt.Sprintf(`CREATE OR REPLACE FUNCTION fault_%[1]s() RETURNS trigger LANGUAGE plpgsql AS
			$$ BEGIN PERFORM pg_sleep(%f); RETURN NEW; END $$`, table, d.Seconds()),
		fmt.Sprintf(`CREATE TRIGGER fault BEFORE INSERT OR UPDATE ON %[1]s FOR EACH ROW EXECUTE FUNCTION fault_%[1]s()`, table),
	}
}

func mended(table string) string { return "DROP TRIGGER fault ON " + table }

// written are the tables that the flow writes to, against the flow: what fails behind is to be seen before what fails
// in front keeps everything from it. Each is to turn one check red.
var written = []struct{ table, service, check string }{
	{"projections", "eventhandler", "projections"}, {"event_store", "relay", "postgres"}, {"outbox", "ingestion", "outbox"},
}

// Everything that happens to a database: it is stopped, it hangs, it is out of reach, it has no space left, others
// hold locks, it is slow.
func TestFaultsOfPostgres(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	i := r.instance(t)
	l := startTraffic(t, r)
	r.moves(t, time.Now())

	away := longer(time.Second, 20*time.Second)
	r.suffer(t, i, fault{
		name: "postgres stopped", hold: longer(time.Second, 2*time.Minute), heal: func() { r.startPostgres(t) },
		steps: []step{{func() { r.stopPostgres(t) }, everywhere}},
	})
	r.suffer(t, i, fault{
		name: "postgres frozen", hold: longer(6*time.Second, 20*time.Second), heal: func() { r.thawPostgres(t) },
		steps: []step{{func() { r.freezePostgres(t) }, everywhere}},
	})
	r.suffer(t, i, fault{
		name: "postgres out of reach", hold: away, heal: r.postgresNet.allow,
		steps: []step{{r.postgresNet.refuse, everywhere}},
	})
	for range longer(1, 5) {
		r.suffer(t, i, fault{name: "postgres connections cut", heal: func() {}, steps: []step{{r.postgresNet.cut, nil}}})
	}
	r.suffer(t, i, r.diskFull(t))
	r.suffer(t, i, r.locked(t, "locks held", ""))
	r.suffer(t, i, r.locked(t, "lock timeout", "500ms"))
	r.suffer(t, i, fault{
		name: "slow database", hold: longer(2*time.Second, 20*time.Second),
		steps: []step{{func() {
			r.execute(t, sleeping("event_store", 5*time.Millisecond)...)
			r.execute(t, sleeping("projections", 5*time.Millisecond)...)
		}, nil}},
		heal: func() { r.execute(t, mended("event_store"), mended("projections")) },
	})

	if full {
		r.suffer(t, i, fault{
			name: "silent network to postgres", hold: 20 * time.Second, heal: r.postgresNet.thaw,
			steps: []step{{r.postgresNet.freeze, everywhere}},
		})
		r.suffer(t, i, fault{
			name: "slow network to postgres", hold: 20 * time.Second, heal: func() { r.postgresNet.slow(0) },
			steps: []step{{func() { r.postgresNet.slow(50 * time.Millisecond) }, nil}},
		})
	}
	l.finish(t)
	r.proven(t, l)
	i.p.stop(t)
	r.report(t)
}

func (r *rig) diskFull(t *testing.T) fault {
	f := fault{name: "disk full", hold: longer(time.Second, 20*time.Second), heal: func() {
		for _, w := range written {
			r.execute(t, mended(w.table))
		}
	}}
	for _, w := range written {
		f.steps = append(f.steps, step{func() { r.execute(t, raising(w.table, "")...) }, map[string]string{w.service: w.check}})
	}
	return f
}

// locked holds the tables in another session, which writers wait for: without a lock_timeout as long as they do.
func (r *rig) locked(t *testing.T, name, timeout string) fault {
	holder, err := r.db.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(holder.Release)
	hold := func(sql string) {
		if _, err := holder.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	f := fault{name: name, hold: longer(time.Second, 20*time.Second), heal: func() {
		hold("ROLLBACK")
		r.execute(t, `ALTER ROLE cornjacket RESET lock_timeout`)
	}}
	begin := func() {
		if timeout != "" { // for new sessions
			r.execute(t, `ALTER ROLE cornjacket SET lock_timeout = '`+timeout+`'`)
			r.postgresNet.cut()
		}
		hold("BEGIN")
		hold("LOCK TABLE projections IN EXCLUSIVE MODE")
	}
	f.steps = []step{
		{begin, map[string]string{"eventhandler": "projections"}},
		{func() { hold("LOCK TABLE outbox IN EXCLUSIVE MODE") }, map[string]string{"ingestion": "outbox", "relay": "postgres"}},
	}
	return f
}
