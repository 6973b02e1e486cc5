package ledger_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/ledger"
)

// fakeBus knows one record.
type fakeBus struct {
	place ledger.BusPlace
	err   error
}

func (f fakeBus) Find(context.Context, uuid.UUID, string, string, time.Time) (ledger.BusPlace, error) {
	return f.place, f.err
}

func (f *fixture) journey(eventID uuid.UUID, bus fakeBus) ledger.Journey {
	f.t.Helper()
	j, err := f.reader(bus).Journey(f.t.Context(), eventID)
	require.NoError(f.t, err)
	return j
}

func steps(j ledger.Journey) string {
	var all []string
	for _, s := range j.Steps {
		all = append(all, s.Stage+" "+s.Status)
	}
	return strings.Join(all, ", ")
}

func TestAJourney(t *testing.T) {
	eachDatabase(t, func(t *testing.T, f *fixture, c *consumer) {
		at := time.Now().UTC().Truncate(time.Millisecond)
		found := fakeBus{place: ledger.BusPlace{Topic: event.TopicSensor, Partition: 3, Offset: 7, At: at}}
		f.log("sensor.reading", "a", 2)
		f.log("sensor.reading", "b", 1)
		f.log("system.alert", "a", 1)

		j := f.journey(id(1), found)
		require.Equal(t, "received done, stored done, published waiting, applied waiting", steps(j))
		require.Equal(t, "relay", j.WaitingAt)
		require.NotNil(t, j.Steps[1].At)
		f.publish(4)
		c.run(4, 1) // the other partition is ahead
		j = f.journey(id(1), found)
		require.Equal(t, "received done, stored done, published done, applied waiting", steps(j))
		require.Equal(t, []string{"waiting", eventhandler}, []string{j.Status, j.WaitingAt})
		require.Equal(t, []any{int32(3), int64(7), at}, []any{*j.Steps[2].Partition, *j.Steps[2].Offset, *j.Steps[2].At})
		require.Equal(t, ledger.StepDone, f.journey(id(3), found).Status, "while another partition waits")
		require.Equal(t, ledger.StepWaiting, f.journey(id(1), found).Status)

		c.run(4)
		j = f.journey(id(1), found)
		require.Equal(t, ledger.StepDone, j.Status)
		require.True(t, j.Steps[3].AtLatest, "a later event was handled since")
		j = f.journey(id(2), found)
		require.False(t, j.Steps[3].AtLatest)
		require.WithinDuration(t, time.Now(), *j.Steps[3].At, time.Minute)

		c.handles(event.TopicSensor, 0, 0, 0, 1)
		f.refuse(c.Pool, eventhandler, id(2), 2, "pending")
		j = f.journey(id(2), found)
		require.Equal(t, "received done, stored done, published done, applied dead_lettered", steps(j))
		require.Equal(t, ledger.StepDeadLettered, j.Status)
		require.Len(t, j.DeadLetters, 1)
		f.do(c.Pool, `UPDATE dlq SET status = 'replayed'`)
		c.handles(event.TopicSensor, -1, 0, 0, -1)
		require.Equal(t, ledger.StepDone, f.journey(id(2), found).Status)

		j = f.journey(id(4), found)
		require.Equal(t, "received done, stored done, published done, applied skipped", steps(j))
		require.Contains(t, j.Steps[3].Detail, event.TopicSystem)
		require.Equal(t, ledger.StepDone, j.Status)

		j = f.journey(id(1), fakeBus{err: errors.New("away")})
		require.Equal(t, "received done, stored done, published unknown, applied done", steps(j))
		require.Equal(t, ledger.StepDone, j.Status)
		j = f.journey(id(1), fakeBus{place: ledger.BusPlace{Partition: 3, Offset: -1, Expired: true}})
		require.Nil(t, j.Steps[2].Offset)
		require.Contains(t, j.Steps[2].Detail, "retention")
	})
}

// An event that a consumer has passed is not said to be applied if the counts say that some were not.
func TestAJourneyPastALoss(t *testing.T) {
	for name, spoil := range map[string]func(c *consumer){
		"lost":          func(c *consumer) { c.handles(event.TopicSensor, 0, 0, -1, 0) },
		"applied twice": func(c *consumer) { c.handles(event.TopicSensor, 0, 0, 1, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			eachDatabase(t, func(t *testing.T, f *fixture, c *consumer) {
				f.log("sensor.reading", "a", 5)
				f.log("user.login", "a", 1)
				f.publish(6)
				c.run(6)
				require.Equal(t, ledger.StepDone, f.journey(id(3), fakeBus{}).Status)
				spoil(c)
				j := f.journey(id(3), fakeBus{})
				require.Equal(t, ledger.StepUnknown, j.Status)
				require.Contains(t, j.Steps[3].Detail, "ledger")
				require.Equal(t, ledger.StepDone, f.journey(id(6), fakeBus{}).Status, "another topic")
			})
		})
	}
}

// Each consumer has a stage of its own, and says itself what it has nothing to do with and when it wrote.
func TestAJourneyToManyConsumers(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	first := f.consumer(eventhandler, nil, event.TopicSensor)
	written := time.Now().UTC().Add(-time.Hour)
	first.Changed = func(_ context.Context, eventType, aggregateID string) (int64, time.Time, error) {
		require.Equal(t, "sensor.reading a", eventType+" "+aggregateID)
		return 2, written, nil
	}
	second := f.consumer("second", database(t), event.TopicSensor)
	third := f.consumer("third", nil, event.TopicSensor)
	third.Skips = func(eventType string) string { return "does nothing with " + eventType }
	f.log("sensor.reading", "a", 3)
	f.publish(3)
	first.run(3)
	second.run(1)
	third.run(3)
	j := f.journey(id(2), fakeBus{})
	require.Equal(t, "received done, stored done, published done, applied done, applied waiting, applied skipped", steps(j))
	require.Equal(t, []string{"waiting", "second"}, []string{j.Status, j.WaitingAt})
	require.Equal(t, written, *j.Steps[3].At)
	require.False(t, j.Steps[3].AtLatest)
	require.Equal(t, "does nothing with sensor.reading", j.Steps[5].Detail)
	third.Skips = func(string) string { return "" }
	require.Equal(t, ledger.StepDone, f.journey(id(2), fakeBus{}).Steps[5].Status)
	j = f.journey(id(3), fakeBus{})
	require.NotEqual(t, written, *j.Steps[3].At, "what was written before has nothing to do with it")
}

func TestJourneysThatEndEarly(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := f.consumer(eventhandler, database(t), event.TopicUser)
	f.log("user.login", "a", 2)
	f.refuse(f.events, "relay", id(1), 1, "pending")
	f.publish(2)
	c.handles(event.TopicUser, 0, 2, 1, 0) // has passed its place
	require.Equal(t, "received done, stored done, published dead_lettered, applied waiting", steps(f.journey(id(1), fakeBus{})))

	f.accept(1)
	var waiting uuid.UUID
	require.NoError(t, f.events.QueryRow(t.Context(), `SELECT event_id FROM outbox`).Scan((*[16]byte)(&waiting)))
	j := f.journey(waiting, fakeBus{})
	require.Equal(t, "received done, stored waiting", steps(j))
	require.Equal(t, "outbox", j.WaitingAt)

	refused, setAside := uuid.New(), uuid.New()
	f.refuse(f.events, "ingestion", refused, 1, "pending")
	j = f.journey(refused, fakeBus{})
	require.Equal(t, "received dead_lettered", steps(j))
	require.Equal(t, ledger.StepDeadLettered, j.Status)
	f.refuse(f.events, "relay", setAside, 9, "pending")
	require.Equal(t, "stored dead_lettered", steps(f.journey(setAside, fakeBus{})))

	_, err := f.reader(fakeBus{}).Journey(t.Context(), uuid.New())
	require.ErrorIs(t, err, fault.ErrNotFound)
}

// A dead letter of the relay that is about another event with the same event_id is no matter of the one in the log.
func TestAJourneyWhoseEventIDWasUsedAgain(t *testing.T) {
	eachDatabase(t, func(t *testing.T, f *fixture, c *consumer) {
		f.log("sensor.reading", "a", 2)
		f.publish(2)
		c.run(2)
		f.do(f.events, `UPDATE relay_cursor SET duplicates = 1`) // beside the letter
		f.refuse(f.events, "relay", id(1), 3, "pending")
		j := f.journey(id(1), fakeBus{})
		require.Equal(t, "received done, stored done, published done, applied done", steps(j))
		require.Len(t, j.DeadLetters, 1, "it is shown")
		l := f.balanced()
		require.Equal(t, []int64{4, 2, 1, 2}, []int64{l.Accepted, l.Sequenced, l.Duplicates, l.Published})
	})
}
