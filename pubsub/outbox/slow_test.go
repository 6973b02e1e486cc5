package outbox_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/outbox"
)

// trigger makes each row that is written to a table run some PL/pgSQL.
func (s *store) trigger(table, body string) {
	s.t.Helper()
	s.exec(`CREATE OR REPLACE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN ` + body + ` RETURN NEW; END $$`)
	s.exec(`CREATE TRIGGER fault BEFORE INSERT ON ` + table + ` FOR EACH ROW EXECUTE FUNCTION fault()`)
}

// However much has gathered: a database that is too slow for a whole batch gets it done in smaller ones.
func TestASlowDatabaseGetsThereWithSmallerBatches(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("a slow database takes ten seconds")
	}
	const events, timeout = 200, 400 * time.Millisecond
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{})
	var batch []event.Envelope
	for i := range events {
		batch = append(batch, newEvent("a", i))
	}
	require.NoError(t, p.Ingest(t.Context(), batch))
	s.trigger("event_store", `PERFORM pg_sleep(0.01);`) // all of it takes five times what a statement may
	_, out := s.subscribe(outbox.SubscriberConfig{Timeout: timeout})
	require.Equal(t, values(0, events), payloads(nextAcked(t, out, events)))
}

// A relay that fails again and again does not publish the same events each time that it begins anew: what was published
// before the failure is remembered.
func TestFailuresRepeatLittle(t *testing.T) {
	t.Parallel()
	s := newStore(t, "")
	p := s.publisher(outbox.PublisherConfig{})
	s.trigger("event_store", `IF NEW.payload->>'value' <> '0' THEN RAISE EXCEPTION 'no space left' USING ERRCODE = '53100'; END IF;`)
	sub, out := s.subscribe(outbox.SubscriberConfig{Poll: 10 * time.Millisecond})
	require.NoError(t, p.Ingest(t.Context(), []event.Envelope{newEvent("a", 0)}))
	times := map[string]int{}
	first := nextAcked(t, out, 1)[0]
	times[first.msg.UUID]++
	require.NoError(t, p.Ingest(t.Context(), []event.Envelope{newEvent("a", 1)}))
	for failures, last := 0, error(nil); failures < 4; {
		select {
		case m := <-out:
			times[m.UUID]++
			m.Ack()
		case <-time.After(time.Millisecond):
		}
		if err := sub.State().Err; err != nil && last == nil {
			failures++
			last = err
		} else if err == nil {
			last = nil
		}
	}
	require.LessOrEqual(t, times[first.msg.UUID], 2)
	s.exec(`DROP TRIGGER fault ON event_store`)
	for {
		if r := nextAcked(t, out, 1)[0]; value(r.Envelope) == "1" {
			return
		}
	}
}
