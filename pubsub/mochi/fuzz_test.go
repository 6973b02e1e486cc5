package mochi

import (
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
)

// FuzzMessage takes in publishes as any device may send them.
func FuzzMessage(f *testing.F) {
	f.Add("devices/a/events/a.b", []byte(`{}`), event.MetaEventID, "1", event.MetaEventID, "2")
	f.Add("events", []byte(nil), event.MetaMQTTTopic, "other", event.MetaTraceparent, "")
	f.Add("devices//events/", []byte("\xff"), "", "", "\x00", "\xff")
	f.Fuzz(func(t *testing.T, topic string, body []byte, key1, value1, key2, value2 string) {
		pk := packets.Packet{TopicName: topic, Payload: body}
		pk.Properties.User = []packets.UserProperty{{Key: key1, Val: value1}, {Key: key2, Val: value2}}
		m := newMessage(pk)
		require.NotEmpty(t, m.UUID)
		require.Equal(t, topic, m.Metadata.Get(event.MetaMQTTTopic), "no property stands for the topic")
		require.Equal(t, string(body), string(m.Payload))
		for key, value := range m.Metadata {
			switch key {
			case event.MetaMQTTTopic:
			case event.MetaEventID, event.MetaEventTime, event.MetaCorrelationID, event.MetaTraceparent:
				require.Contains(t, []string{value1, value2}, value)
				if key1 == key && value1 != "" {
					require.Equal(t, value1, value, "of a property given twice the first counts")
				}
			default:
				require.Fail(t, "a property that is not honoured has got in", key)
			}
		}
		require.Equal(t, topic, source(topic).Topic)
	})
}
