package kafka

import (
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cornjacket/platform-services/event"
)

// FuzzReceived takes in records as anyone may have written them.
func FuzzReceived(f *testing.F) {
	f.Add([]byte(nil), []byte(nil), "", []byte(nil), "", []byte(nil))
	f.Add([]byte("device-1"), []byte(`{"a":1}`), event.MetaEventID, []byte("id"), event.MetaCorrelationID, []byte("c"))
	f.Add([]byte("\xff"), []byte("\x00"), event.MetaAggregateID, []byte("other"), event.MetaEventID, []byte(""))
	f.Add([]byte(""), []byte("x"), "a\n", []byte("\xff"), "a\n", []byte("twice"))
	f.Fuzz(func(t *testing.T, key, value []byte, header1 string, value1 []byte, header2 string, value2 []byte) {
		r := &kgo.Record{Topic: "t", Partition: 3, Offset: 7, Key: key, Value: value, Headers: []kgo.RecordHeader{{Key: header1, Value: value1}, {Key: header2, Value: value2}}}
		m := received(r)
		require.NotEmpty(t, m.UUID, "a message can be named in logs")
		require.Equal(t, string(value), string(m.Payload))
		if len(key) > 0 {
			require.Equal(t, string(key), m.Metadata.Get(event.MetaAggregateID), "the key decides, not a header")
		}
		again := received(record("t", m)) // as when it is published as a dead letter
		require.Equal(t, m.UUID, again.UUID)
		require.Equal(t, m.Metadata, again.Metadata)
		require.Equal(t, string(m.Payload), string(again.Payload))
	})
}
