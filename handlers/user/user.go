// Package user says what the actions of users do.
package user

import (
	"strings"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/handlers"
)

// Session is the projection of each user's newest action.
func Session() handlers.Projection {
	return handlers.Projection{
		Type:    "user_session",
		Topic:   event.TopicUser,
		Applies: func(eventType string) bool { return strings.HasPrefix(eventType, "user.") },
		Reduce:  handlers.Newest,
	}
}
