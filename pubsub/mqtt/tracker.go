package mqtt

import (
	"context"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// tracker knows the messages that have been handed out, over all connections, and are not yet acked or nacked.
type tracker struct {
	mu      sync.Mutex
	entries []tracked
	compact int // length at which the settled are thrown out
}

type tracked struct {
	msg *message.Message
	at  time.Time
}

func (t *tracker) add(msg *message.Message) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.entries) >= t.compact {
		t.prune()
		t.compact = max(64, 2*len(t.entries))
	}
	t.entries = append(t.entries, tracked{msg: msg, at: time.Now()})
}

func (t *tracker) prune() {
	live := t.entries[:0]
	for _, e := range t.entries {
		if !settled(e.msg) {
			live = append(live, e)
		}
	}
	clear(t.entries[len(live):])
	t.entries = live
}

// oldest returns when the oldest message in flight was handed out, zero if none is.
func (t *tracker) oldest() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.entries {
		if !settled(e.msg) {
			return e.at
		}
	}
	return time.Time{}
}

// wait returns true once everything that is in flight now has been acked or nacked, false when ctx ends first. late is
// called once if that takes longer than a while.
func (t *tracker) wait(ctx context.Context, while time.Duration, late func(inFlight int)) bool {
	t.mu.Lock()
	t.prune()
	entries := append([]tracked(nil), t.entries...)
	t.mu.Unlock()
	timer := time.NewTimer(while)
	defer timer.Stop()
	for i := 0; i < len(entries); {
		select {
		case <-entries[i].msg.Acked():
			i++
		case <-entries[i].msg.Nacked():
			i++
		case <-timer.C:
			late(len(entries) - i)
		case <-ctx.Done():
			return false
		}
	}
	return true
}

func settled(msg *message.Message) bool {
	select {
	case <-msg.Acked():
		return true
	case <-msg.Nacked():
		return true
	default:
		return false
	}
}
