package routers

import (
	"context"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/cornjacket/platform-services/pubsub/batch"
)

// NewTestRouter returns a router with the stack around a handler of a test, named "test".
func NewTestRouter(s Stack, p Policy, sub message.Subscriber, kept DeadLetterStore, now time.Time, handle func(context.Context, *batch.Batch) error) (*Router, error) {
	l := &letters{consumer: "test", store: kept, complete: completeBus, now: func() time.Time { return now }, log: s.Log}
	return newRouter("test", s, p, "x", sub, handle, l.refuse)
}
