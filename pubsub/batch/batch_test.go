package batch_test

import (
	"context"
	"strconv"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/cornjacket/platform-services/pubsub/batch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func records(n int) []batch.Record {
	all := make([]batch.Record, n)
	for i := range all {
		all[i] = batch.Record{Topic: "t", Partition: 2, Offset: int64(i), ID: strconv.Itoa(i), Value: []byte{byte(i)}, Headers: []batch.Header{{Key: "n", Value: strconv.Itoa(i)}}}
	}
	return all
}

func ids(all []batch.Record) []string {
	found := []string{}
	for i := range all {
		found = append(found, all[i].ID)
	}
	return found
}

func TestMessageOfABatch(t *testing.T) {
	t.Parallel()
	type key struct{}
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "v"))
	m := batch.New(ctx, records(3))
	require.Equal(t, "0", m.UUID)
	require.Empty(t, m.Payload)
	require.Empty(t, m.Metadata)
	require.Equal(t, "v", m.Context().Value(key{}))
	b := batch.From(m)
	require.Equal(t, records(3), b.Records())
	require.Same(t, b, batch.From(m))
	m.SetContext(context.WithValue(m.Context(), key{}, "w"))
	require.Same(t, b, batch.From(m), "whatever middleware does to the context")
	cancel()
	require.Error(t, m.Context().Err())

	one := batch.New(t.Context(), records(2)[1:])
	require.Equal(t, "1", one.UUID)
	require.Equal(t, []byte{1}, []byte(one.Payload))
	require.Equal(t, message.Metadata{"n": "1"}, one.Metadata)
	require.Empty(t, batch.From(batch.New(t.Context(), nil)).Records())
}

// A message of a subscriber that knows no batches is a batch of one.
func TestBatchOfAStockMessage(t *testing.T) {
	t.Parallel()
	stock := gochannel.NewGoChannel(gochannel.Config{Persistent: true}, nil)
	defer func() { require.NoError(t, stock.Close()) }()
	sent := message.NewMessage("id", []byte("body"))
	sent.Metadata = message.Metadata{"b": "2", "a": "1", "c": "3"}
	require.NoError(t, stock.Publish("stock", sent))
	router, err := message.NewRouter(message.RouterConfig{}, nil)
	require.NoError(t, err)
	var got, again *batch.Batch
	router.AddConsumerHandler("h", "stock", stock, func(m *message.Message) error {
		got, again = batch.From(m), batch.From(m)
		go func() { _ = router.Close() }()
		return nil
	})
	require.NoError(t, router.Run(t.Context()))
	require.Equal(t, []batch.Record{{
		Topic: "stock", Partition: -1, Offset: -1, ID: "id", Value: []byte("body"),
		Headers: []batch.Header{{Key: "a", Value: "1"}, {Key: "b", Value: "2"}, {Key: "c", Value: "3"}},
	}}, got.Records())
	require.Same(t, got, again)
	require.Equal(t, "2", got.Records()[0].Header("b"))
	require.Empty(t, got.Records()[0].Header("d"))
}

func TestBatchNarrowsAndIsDone(t *testing.T) {
	t.Parallel()
	b := batch.From(batch.New(t.Context(), records(8)))
	b.Narrow(4)
	require.Equal(t, []string{"0", "1", "2", "3"}, ids(b.Records()))
	require.Len(t, b.Rest(), 8)
	b.Narrow(0)
	require.Equal(t, []string{"0"}, ids(b.Records()), "one at least")
	b.Attempts = 3
	b.Done(1)
	require.Zero(t, b.Attempts, "of the next one")
	require.Equal(t, ids(records(8))[1:], ids(b.Records()), "together again")
	b.Narrow(100)
	require.Len(t, b.Records(), 7)
	b.Done(100)
	require.Empty(t, b.Records())
	require.Empty(t, b.Rest())
}
