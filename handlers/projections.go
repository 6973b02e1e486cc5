package handlers

import (
	"slices"
	"strings"

	"github.com/cornjacket/platform-services/event"
)

// Projections returns the projections of the platform. One that is added here is built from the event log by itself.
func Projections() []Projection {
	return []Projection{
		{Type: "sensor_state", Family: "sensor", Reduce: Newest},
		{Type: "user_session", Family: "user", Reduce: Newest},
		{Type: "device_status", Family: "device", Reduce: Newest},
		{Type: "anomaly", Family: "ai", Reduce: Newest},
	}
}

// Projection is a reducer and the events it is for.
type Projection struct {
	Type   string // projection_type, made of a-z, 0-9 and _
	Family string // what the types of its events begin with, before the first dot
	Reduce Reducer
	// OrderMatters says that the state depends on the order in which events are applied. An event that was set aside as
	// a dead letter can then not be applied after newer ones; the projection of its aggregate has to be rebuilt.
	OrderMatters bool
}

// Applies reports whether the projection is for events of a type.
func (p *Projection) Applies(eventType string) bool {
	rest, ok := strings.CutPrefix(eventType, p.Family)
	return ok && strings.HasPrefix(rest, ".")
}

// Topic returns where its events travel.
func (p *Projection) Topic() string { return event.Topic(p.Family + ".") }

// Topics returns where the events of projections travel, each topic once.
func Topics(projections []Projection) []string {
	var topics []string
	for _, p := range projections {
		if !slices.Contains(topics, p.Topic()) {
			topics = append(topics, p.Topic())
		}
	}
	return topics
}
