package batch

import (
	"context"
	"time"
)

// Gather waits until there are records to send, and then until d has passed since the call or no more are worth waiting
// for. It reports whether ctx lasted. state is asked at first and each time that a change is signalled.
func Gather(ctx context.Context, d time.Duration, changed <-chan struct{}, state func() (some, enough bool)) bool {
	late := time.After(d)
	waited := d <= 0
	for ctx.Err() == nil {
		if some, enough := state(); some && (enough || waited) {
			return true
		}
		select {
		case <-changed:
		case <-late:
			waited = true
		case <-ctx.Done():
		}
	}
	return false
}
