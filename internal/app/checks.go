package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/internal/health"
	"github.com/cornjacket/platform-services/routers"
)

// routerCheck fails when a router does not run, or has had a message in flight for longer than a handler may take.
func routerCheck(r *routers.Router, oldest func() time.Time, deadline time.Duration, now func() time.Time) health.Check {
	return health.Check{Name: "router", Every: time.Second, Probe: func(context.Context) (health.Details, error) {
		if !r.Running() {
			return nil, errors.New("is not running")
		}
		t := oldest()
		if t.IsZero() {
			return nil, nil
		}
		age := now().Sub(t)
		d := health.Details{"oldest_in_flight_seconds": age.Round(time.Millisecond).Seconds()}
		if age > deadline {
			return d, fmt.Errorf("is stuck: a message is in flight for %s", age.Round(time.Second))
		}
		return d, nil
	}}
}

// flushLog logs when batches begin to fail and when they succeed again, not each attempt, and tells health of both.
type flushLog struct {
	what string
	log  *slog.Logger
	now  func() time.Time

	mu      sync.Mutex
	failing error     // of the last attempt, if it is to be tried again
	ended   time.Time // the last attempt
	idle    time.Time // when nothing was last seen waiting
}

func (f *flushLog) note(items int, err error) {
	f.mu.Lock()
	before := f.failing
	f.failing, f.ended = nil, f.now()
	if err != nil && !fault.IsPermanent(err) {
		f.failing = err
	}
	after := f.failing
	f.mu.Unlock()
	switch {
	case err == nil && before != nil:
		f.log.Info("writing works again", "to", f.what)
	case after != nil && before == nil:
		f.log.Error("writing fails, trying again until it succeeds", "to", f.what, "events", items, "error", err)
	}
}

// check fails while what is to be written is not: the last attempt has failed, as with a full disk, or none has ended
// for some time although something waits, as behind a lock. A database in that state answers pings.
func (f *flushLog) check(waiting func() bool) health.Check {
	const silent = 3 * time.Second
	return health.Check{Name: f.what, Every: 500 * time.Millisecond, Probe: func(context.Context) (health.Details, error) {
		busy, now := waiting(), f.now()
		f.mu.Lock()
		defer f.mu.Unlock()
		if !busy {
			f.idle = now
		}
		since := f.ended
		if f.idle.After(since) {
			since = f.idle
		}
		switch {
		case f.failing != nil:
			return nil, fmt.Errorf("writing fails: %w", rootCause(f.failing))
		case now.Sub(since) > silent:
			return nil, fmt.Errorf("writing has not succeeded for %s", now.Sub(since).Round(100*time.Millisecond))
		}
		return nil, nil
	}}
}

// watchedLetters tells health whether dead letters can be stored. Those that can't are tried again and again, here or
// by another instance that has their partition by then: what has not failed lately is no trouble of this one.
type watchedLetters struct {
	routers.DeadLetterStore
	now func() time.Time

	mu     sync.Mutex
	err    error
	failed time.Time
}

// Add stores a dead letter.
func (w *watchedLetters) Add(ctx context.Context, letters ...deadletter.Entry) error {
	err := w.DeadLetterStore.Add(ctx, letters...)
	w.note(err)
	return err
}

// note takes the outcome of an attempt to store some.
func (w *watchedLetters) note(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err, w.failed = err, w.now()
}

func (w *watchedLetters) check() health.Check {
	const lately = 15 * time.Second // more than an attempt and the pause after it
	return health.Check{Name: "dlq", Every: 500 * time.Millisecond, Probe: func(context.Context) (health.Details, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.err != nil && w.now().Sub(w.failed) < lately {
			return nil, fmt.Errorf("dead letters can't be stored: %w", rootCause(w.err))
		}
		return nil, nil
	}}
}
