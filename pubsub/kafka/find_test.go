package kafka_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/ledger"
	"github.com/cornjacket/platform-services/pubsub/kafka"
)

func TestFindSaysWhereTheRecordOfAnEventIs(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 8, "t")
	p := b.publisher()
	began := time.Now()
	ids := map[string]uuid.UUID{}
	for i := range 200 {
		key, id := fmt.Sprintf("device-%d", i%40), uuid.New()
		m := message.NewMessage(id.String(), []byte(`{}`))
		m.Metadata.Set(event.MetaAggregateID, key)
		require.NoError(t, p.Publish("t", m))
		ids[key] = id // the newest of each
	}
	where := map[string]*kgo.Record{}
	client := b.client(kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	for seen := 0; seen < 200; {
		fetches := client.PollFetches(t.Context())
		require.NoError(t, fetches.Err())
		for _, r := range fetches.Records() {
			where[string(r.Headers[0].Value)] = r
			seen++
		}
	}
	f := kafka.NewFinder(kafka.FinderConfig{Brokers: b.brokers(), Timeout: soon})
	for key, id := range ids {
		place, err := f.Find(t.Context(), id, "t", key, began)
		require.NoError(t, err)
		want := where[id.String()]
		require.Equal(t, ledger.BusPlace{Topic: "t", Partition: want.Partition, Offset: want.Offset, At: place.At}, place)
		require.WithinDuration(t, want.Timestamp, place.At, time.Millisecond)
	}

	t.Run("one that was never published", func(t *testing.T) {
		place, err := f.Find(t.Context(), uuid.New(), "t", "device-1", began)
		require.NoError(t, err)
		require.EqualValues(t, -1, place.Offset)
		require.False(t, place.Expired)
	})
	t.Run("one from after its time", func(t *testing.T) {
		place, err := f.Find(t.Context(), ids["device-1"], "t", "device-1", time.Now().Add(time.Hour))
		require.NoError(t, err)
		require.EqualValues(t, -1, place.Offset, "what was there before need not be read")
	})
	t.Run("no more than it may read", func(t *testing.T) {
		short := kafka.NewFinder(kafka.FinderConfig{Brokers: b.brokers(), Timeout: soon, MaxRecords: 1})
		place, err := short.Find(t.Context(), uuid.New(), "t", "device-1", began)
		require.NoError(t, err)
		require.EqualValues(t, -1, place.Offset)
	})
	t.Run("no such topic", func(t *testing.T) {
		_, err := f.Find(t.Context(), uuid.New(), "other", "device-1", began)
		require.Error(t, err)
	})
	t.Run("no bus", func(t *testing.T) {
		b.stop()
		hasty := kafka.NewFinder(kafka.FinderConfig{Brokers: b.brokers(), Timeout: 200 * time.Millisecond})
		_, err := hasty.Find(t.Context(), ids["device-1"], "t", "device-1", began)
		require.Error(t, err)
	})
}
