package kafka

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/batch"
)

// FuzzReceived takes in records as anyone may have written them.
func FuzzReceived(f *testing.F) {
	f.Add([]byte(nil), []byte(nil), "", []byte(nil), "", []byte(nil))
	f.Add([]byte("device-1"), []byte(`{"a":1}`), event.MetaEventID, []byte("id"), event.MetaCorrelationID, []byte("c"))
	f.Add([]byte("\xff"), []byte("\x00"), event.MetaAggregateID, []byte("other"), event.MetaEventID, []byte(""))
	f.Add([]byte(""), []byte("x"), "a\n", []byte("\xff"), "a\n", []byte("twice"))
	f.Fuzz(func(t *testing.T, key, value []byte, header1 string, value1 []byte, header2 string, value2 []byte) {
		r := &kgo.Record{Topic: "t", Partition: 3, Offset: 7, Key: key, Value: value, Headers: []kgo.RecordHeader{{Key: header1, Value: value1}, {Key: header2, Value: value2}}}
		b := received(r)
		require.NotEmpty(t, b.ID, "a record can be named in logs")
		require.Equal(t, string(value), string(b.Value))
		require.Equal(t, string(key), b.Key)
		m := batch.New(t.Context(), []batch.Record{b})
		require.Equal(t, b.ID, m.UUID)
		require.Equal(t, string(value), string(m.Payload))
		again := received(toKafka([]batch.Record{b})[0]) // as when it is published again
		require.Equal(t, b.ID, again.ID)
		require.Equal(t, b.Key, again.Key)
		require.Equal(t, string(b.Value), string(again.Value))
		require.Equal(t, others(b.Headers), others(again.Headers))
	})
}

// others returns all headers but the ID of the event.
func others(headers []batch.Header) []batch.Header {
	return slices.DeleteFunc(slices.Clone(headers), func(h batch.Header) bool { return h.Key == event.MetaEventID })
}
