// Package sensor says what readings of devices do.
package sensor

import (
	"strings"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/handlers"
)

// State is the projection of each device's newest reading.
func State() handlers.Projection {
	return handlers.Projection{
		Type:    "sensor_state",
		Topic:   event.TopicSensor,
		Applies: func(eventType string) bool { return strings.HasPrefix(eventType, "sensor.") },
		Reduce:  handlers.Newest,
	}
}
