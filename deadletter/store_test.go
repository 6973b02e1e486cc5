package deadletter_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/deadletter"
)

func letter(consumer string, partition int32, offset int64) deadletter.Entry {
	return deadletter.Entry{
		Consumer: consumer, EventID: id(int(offset)), Payload: []byte(`{"a":1}`), Error: "refused", FailedAt: t0, RetryCount: 3,
		Topic: "sensor-events", Partition: &partition, Offset: &offset, Key: "device-1", CorrelationID: "c-1",
		BusTopic: "sensor-events.dlq",
	}
}

func TestADeadLetterIsKeptAsItCame(t *testing.T) {
	t.Parallel()
	everyByte := make([]byte, 256)
	for i := range everyByte {
		everyByte[i] = byte(i)
	}
	whole := letter("eventhandler", 2, 7)
	bare := deadletter.Entry{Consumer: "eventhandler", Payload: []byte{}, FailedAt: t0, BusTopic: "system-events.dlq"}
	weird := letter("eventhandler", 0, 8)
	weird.Payload = everyByte
	large := letter("eventhandler", 0, 9)
	large.Payload = bytes.Repeat([]byte{0xff, 0}, 1<<20)
	for name, l := range map[string]deadletter.Entry{"whole": whole, "bare": bare, "weird": weird, "large": large} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := deadletter.Writer{DB: database(t)}
			require.NoError(t, d.Add(t.Context(), l))
			list := unpublished(t, d, []string{"eventhandler"})
			require.Len(t, list, 1)
			got := list[0]
			require.NotEqual(t, uuid.Nil, got.ID)
			require.True(t, got.FailedAt.Equal(t0))
			got.ID, got.FailedAt = uuid.Nil, t0
			require.Equal(t, l, got)
		})
	}
}

// Who adds a letter again, because the answer was lost, may have given it an ID.
func TestADeadLetterIsKnownByItsID(t *testing.T) {
	t.Parallel()
	d := deadletter.Writer{DB: database(t)}
	l := letter("ingestion", 0, 1)
	l.Partition, l.Offset, l.EventID, l.ID = nil, nil, uuid.Nil, uuid.New()
	require.NoError(t, d.Add(t.Context(), l))
	require.NoError(t, d.Add(t.Context(), l))
	list := unpublished(t, d, []string{"ingestion"})
	require.Len(t, list, 1)
	require.Equal(t, l.ID, list[0].ID)
}

// Texts about a message come from outside too; what the database can't hold of them is replaced.
func TestADeadLetterWithUnstorableTextsIsStored(t *testing.T) {
	t.Parallel()
	d := deadletter.Writer{DB: database(t)}
	l := letter("ingestion", 0, 1)
	l.Error, l.Topic, l.Key, l.CorrelationID = "a\x00b", "devices/\xff/events/x.y", "\xed\xa0\x80", "c\x00"
	require.NoError(t, d.Add(t.Context(), l))
	list := unpublished(t, d, []string{"ingestion"})
	require.Len(t, list, 1)
	require.Equal(t, "a\uFFFDb", list[0].Error)
	require.Equal(t, "devices/\uFFFD/events/x.y", list[0].Topic)
	require.Equal(t, "c\uFFFD", list[0].CorrelationID)
}

func TestAddIsIdempotent(t *testing.T) {
	t.Parallel()
	unpartitioned := letter("relay", 0, 1)
	unpartitioned.Topic, unpartitioned.Partition = "outbox", nil
	unknown := letter("ingestion", 0, 1)
	unknown.Topic, unknown.Partition, unknown.Offset = "devices/d/events/sensor.reading", nil, nil
	unnamed := unknown
	unnamed.EventID = uuid.Nil
	otherPartition, otherOffset := letter("eventhandler", 1, 1), letter("eventhandler", 0, 2)
	otherConsumer, otherBytes := letter("tsdb", 0, 1), letter("eventhandler", 0, 1)
	otherBytes.Payload = []byte("of a topic that was made anew")
	otherTopic := letter("eventhandler", 0, 1)
	otherTopic.Topic = "user-actions"
	base := letter("eventhandler", 0, 1)
	for name, tc := range map[string]struct {
		first, second deadletter.Entry
		rows          int
	}{
		"the same":                      {base, base, 1},
		"the same without partitions":   {unpartitioned, unpartitioned, 1},
		"the same without an offset":    {unknown, unknown, 1}, // its event tells
		"the same, or another one":      {unnamed, unnamed, 2}, // without an event nothing does
		"another partition":             {base, otherPartition, 2},
		"another offset":                {base, otherOffset, 2},
		"another topic":                 {base, otherTopic, 2},
		"another consumer":              {base, otherConsumer, 2},
		"other bytes at the same place": {base, otherBytes, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := deadletter.Writer{DB: database(t)}
			require.NoError(t, d.Add(t.Context(), tc.first))
			tc.second.Error, tc.second.RetryCount = "another reason", 9
			require.NoError(t, d.Add(t.Context(), tc.second))
			list := unpublished(t, d, []string{tc.first.Consumer, tc.second.Consumer})
			require.Len(t, list, tc.rows)
			require.Contains(t, []string{list[0].Error, list[len(list)-1].Error}, "refused", "the first is kept as it is")
		})
	}
}

// A consumer adds the letters of a batch at once, within its own transaction.
func TestAddOfManyInATransaction(t *testing.T) {
	t.Parallel()
	pool := database(t)
	d := deadletter.Writer{DB: pool}
	require.NoError(t, deadletter.Add(t.Context(), pool), "of none")
	first, second, third := letter("eventhandler", 0, 1), letter("eventhandler", 0, 2), letter("eventhandler", 1, 1)
	second.Properties, second.Payload = map[string]string{"event_time": "x\x00"}, nil
	third.Position, third.EventType, third.EventID = 7, "sensor.reading", uuid.Nil
	undone := errors.New("undone")
	for _, want := range []error{undone, nil} {
		err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			require.NoError(t, deadletter.Add(t.Context(), tx, first, second, first, third)) // the same twice in one batch
			return want
		})
		require.Equal(t, want, err)
		if want != nil {
			require.Empty(t, unpublished(t, d, []string{"eventhandler"}))
		}
	}
	require.NoError(t, deadletter.Add(t.Context(), pool, third, second))
	require.Len(t, unpublished(t, d, []string{"eventhandler"}), 3)
	list, err := deadletter.NewStore(pool, "eventhandler", map[string]deadletter.Apply{"eventhandler": counting}).List(t.Context(), deadletter.Filter{Limit: 9})
	require.NoError(t, err)
	byPlace := map[string]deadletter.Letter{}
	for _, l := range list {
		byPlace[fmt.Sprint(*l.Partition, *l.Offset)] = l
	}
	require.Nil(t, byPlace["0 1"].Properties)
	require.Equal(t, map[string]string{"event_time": "x\uFFFD"}, byPlace["0 2"].Properties)
	require.Empty(t, byPlace["0 2"].Payload)
	require.Equal(t, second.EventID, byPlace["0 2"].EventID)
	require.Equal(t, uuid.Nil, byPlace["1 1"].EventID)
	require.Equal(t, int64(7), byPlace["1 1"].Position)
	require.Equal(t, "sensor.reading", byPlace["1 1"].EventType)
	require.Zero(t, byPlace["0 1"].Position)
}

func TestUnpublished(t *testing.T) {
	t.Parallel()
	pool := database(t)
	d := deadletter.Writer{DB: pool}
	var entries []deadletter.Entry
	for i := range 6 {
		l := letter([]string{"ingestion", "relay", "eventhandler"}[i%3], 0, int64(i))
		l.FailedAt = t0.Add(-time.Duration(i) * time.Minute)
		l.Payload = make([]byte, 100*(i+1))
		entries = append(entries, l)
	}
	require.NoError(t, deadletter.Add(t.Context(), pool, entries...))
	offsets := func(consumers []string, limit int, bytes int64) (offsets []int64) {
		list, err := deadletter.Unpublished(t.Context(), pool, consumers, limit, bytes)
		require.NoError(t, err)
		for _, l := range list {
			offsets = append(offsets, *l.Offset)
		}
		return offsets
	}
	both := []string{"ingestion", "relay"}
	require.Equal(t, []int64{4, 3, 1, 0}, offsets(both, 10, 1<<20), "the oldest first, of these consumers only")
	require.Equal(t, []int64{4, 3}, offsets(both, 2, 1<<20))
	require.Equal(t, []int64{4}, offsets(both, 10, 1), "at least one")
	require.Equal(t, []int64{4, 3}, offsets(both, 10, 900), "as many as have so many bytes")
	require.Equal(t, []int64{4, 3}, offsets(both, 10, 1099))
	require.Equal(t, []int64{4, 3, 1}, offsets(both, 10, 1100))
	require.Empty(t, unpublished(t, d, nil))
	_, err := pool.Exec(t.Context(), `UPDATE dlq SET published_at = now() WHERE source_offset = 4`)
	require.NoError(t, err)
	_, err = pool.Exec(t.Context(), `UPDATE dlq SET publish_at = now() + interval '1 hour' WHERE source_offset = 3`)
	require.NoError(t, err)
	require.Equal(t, []int64{1, 0}, offsets(both, 10, 1<<20))
}

func unpublished(t *testing.T, d deadletter.Writer, consumers []string) []deadletter.Entry {
	t.Helper()
	list, err := deadletter.Unpublished(t.Context(), d.DB, consumers, 100, 1<<30)
	require.NoError(t, err)
	return list
}
