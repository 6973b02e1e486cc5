package store_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/store"
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
			d := store.NewDeadLetters(database(t))
			require.NoError(t, d.Add(t.Context(), l))
			list, err := d.Unpublished(t.Context(), []string{"eventhandler"}, 10)
			require.NoError(t, err)
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
	d := store.NewDeadLetters(database(t))
	l := letter("ingestion", 0, 1)
	l.Partition, l.Offset, l.EventID, l.ID = nil, nil, uuid.Nil, uuid.New()
	require.NoError(t, d.Add(t.Context(), l))
	require.NoError(t, d.Add(t.Context(), l))
	list, err := d.Unpublished(t.Context(), []string{"ingestion"}, 10)
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.Equal(t, l.ID, list[0].ID)
}

// Texts about a message come from outside too; what the database can't hold of them is replaced.
func TestADeadLetterWithUnstorableTextsIsStored(t *testing.T) {
	t.Parallel()
	d := store.NewDeadLetters(database(t))
	l := letter("ingestion", 0, 1)
	l.Error, l.Topic, l.Key, l.CorrelationID = "a\x00b", "devices/\xff/events/x.y", "\xed\xa0\x80", "c\x00"
	require.NoError(t, d.Add(t.Context(), l))
	list, err := d.Unpublished(t.Context(), []string{"ingestion"}, 10)
	require.NoError(t, err)
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
			d := store.NewDeadLetters(database(t))
			require.NoError(t, d.Add(t.Context(), tc.first))
			tc.second.Error, tc.second.RetryCount = "another reason", 9
			require.NoError(t, d.Add(t.Context(), tc.second))
			list, err := d.Unpublished(t.Context(), []string{tc.first.Consumer, tc.second.Consumer}, 10)
			require.NoError(t, err)
			require.Len(t, list, tc.rows)
			require.Contains(t, []string{list[0].Error, list[len(list)-1].Error}, "refused", "the first is kept as it is")
		})
	}
}

func TestUnpublishedAndMarkPublished(t *testing.T) {
	t.Parallel()
	d := store.NewDeadLetters(database(t))
	for i := range 6 {
		l := letter([]string{"ingestion", "relay", "eventhandler"}[i%3], 0, int64(i))
		l.FailedAt = t0.Add(-time.Duration(i) * time.Minute) // added newest first
		require.NoError(t, d.Add(t.Context(), l))
	}
	list, err := d.Unpublished(t.Context(), []string{"ingestion", "relay"}, 10)
	require.NoError(t, err)
	var offsets []int64
	for _, l := range list {
		offsets = append(offsets, *l.Offset)
	}
	require.Equal(t, []int64{4, 3, 1, 0}, offsets, "the oldest first, of these consumers only")

	list, err = d.Unpublished(t.Context(), []string{"ingestion", "relay"}, 2)
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.NoError(t, d.MarkPublished(t.Context(), []uuid.UUID{list[0].ID, list[1].ID, uuid.New()}, t0))
	require.NoError(t, d.MarkPublished(t.Context(), nil, t0))
	rest, err := d.Unpublished(t.Context(), []string{"ingestion", "relay"}, 10)
	require.NoError(t, err)
	require.Len(t, rest, 2)
	require.Equal(t, int64(1), *rest[0].Offset)
	other, err := d.Unpublished(t.Context(), []string{"eventhandler"}, 10)
	require.NoError(t, err)
	require.Len(t, other, 2)
	none, err := d.Unpublished(t.Context(), nil, 10)
	require.NoError(t, err)
	require.Empty(t, none)
}
