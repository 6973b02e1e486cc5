package mqtt

import (
	"testing"

	"github.com/eclipse/paho.golang/paho"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
)

// FuzzMessage takes in publishes as any device may send them.
func FuzzMessage(f *testing.F) {
	f.Add("devices/a/events/a.b", []byte(`{}`), event.MetaEventID, "1", event.MetaEventID, "2")
	f.Add("events", []byte(nil), "mqtt_topic", "other", event.MetaTraceparent, "")
	f.Add("devices//events/", []byte("\xff"), "", "", "\x00", "\xff")
	f.Fuzz(func(t *testing.T, topic string, body []byte, key1, value1, key2, value2 string) {
		p := &paho.Publish{Topic: topic, Payload: body, QoS: 1, Properties: &paho.PublishProperties{}}
		p.Properties.User.Add(key1, value1)
		p.Properties.User.Add(key2, value2)
		r := newArrival(nil, p).record
		require.NotEmpty(t, r.ID)
		require.Equal(t, topic, r.Topic, "no property stands for the topic")
		require.Equal(t, string(body), string(r.Value))
		for _, h := range r.Headers {
			switch h.Key {
			case event.MetaEventID, event.MetaEventTime, event.MetaCorrelationID, event.MetaTraceparent:
				require.Contains(t, []string{value1, value2}, h.Value)
				if key1 == h.Key && value1 != "" {
					require.Equal(t, value1, r.Header(h.Key), "of a property given twice the first counts")
				}
			default:
				require.Fail(t, "a property that is not honoured has got in", h.Key)
			}
		}
		require.NotEmpty(t, newArrival(nil, &paho.Publish{Topic: topic}).record.ID, "MQTT 3.1.1 has no properties")
	})
}
