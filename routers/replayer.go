package routers

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/google/uuid"
)

// ReplayQueue holds the bulk replays of a service. A replay is the runner's that has claimed it, until its lease runs
// out; all methods may be called by several instances at once, and a letter is applied once whoever replays it.
type ReplayQueue interface {
	// ClaimReplay returns a bulk replay that nobody runs, which is the runner's from then on; ok is false without one.
	ClaimReplay(ctx context.Context, runner uuid.UUID) (r deadletter.Replay, ok bool, err error)
	// RunReplay does one step of a claimed replay, that of its next letter; done says that there is none left.
	RunReplay(ctx context.Context, id, runner uuid.UUID) (done bool, err error)
	// HoldReplay renews the lease, or ends it, so that another runner can go on at once.
	HoldReplay(ctx context.Context, id, runner uuid.UUID, keep bool) error
}

// ErrReplayLost is what a [ReplayQueue] answers for a bulk replay that is not the runner's any more.
var ErrReplayLost = errors.New("bulk replay is not this runner's any more")

const (
	replayTimeout = 10 * time.Second // of one step
	renewEvery    = 3 * time.Second  // while waiting for the rate
)

// Replayer runs the bulk replays of a service, one at a time, at their rates. One that was interrupted by a crash is
// taken up by whatever instance sees it first.
type Replayer struct {
	Queue ReplayQueue
	Log   *slog.Logger
	Poll  time.Duration // how often to look when nobody has called Wake; 5 s if zero
	wake  chan struct{}
	id    uuid.UUID
}

// Init makes the replayer ready for Wake and Run.
func (r *Replayer) Init() *Replayer {
	r.wake, r.id = make(chan struct{}, 1), uuid.New()
	if r.Poll == 0 {
		r.Poll = 5 * time.Second
	}
	return r
}

// Wake makes Run look now. It never blocks.
func (r *Replayer) Wake() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run runs bulk replays until ctx ends.
func (r *Replayer) Run(ctx context.Context) {
	for ctx.Err() == nil {
		claimCtx, cancel := context.WithTimeout(ctx, replayTimeout)
		replay, found, err := r.Queue.ClaimReplay(claimCtx, r.id)
		cancel()
		if err == nil && found {
			r.run(ctx, replay)
			continue
		}
		select { // an error: health says that the database is away
		case <-r.wake:
		case <-time.After(r.Poll):
		case <-ctx.Done():
		}
	}
}

// run works on one bulk replay until it has ended or is lost.
func (r *Replayer) run(ctx context.Context, replay deadletter.Replay) {
	log := r.Log.With("replay_id", replay.ID)
	log.Info("bulk replay of dead letters", "letters", replay.Total, "left", replay.Left(), "rate", replay.Rate)
	pause := time.Duration(float64(time.Second) / replay.Rate)
	next, failing := time.Now(), false
	for {
		stepCtx, cancel := context.WithTimeout(ctx, replayTimeout)
		done, err := r.Queue.RunReplay(stepCtx, replay.ID, r.id)
		cancel()
		wait := pause
		switch {
		case ctx.Err() != nil:
			r.release(replay.ID)
			return
		case errors.Is(err, ErrReplayLost):
			log.Info("bulk replay was cancelled, or is another instance's by now")
			return
		case err != nil:
			if !failing {
				log.Error("bulk replay can't go on, trying again", "error", err)
			}
			wait = max(pause, time.Second)
		case done:
			log.Info("bulk replay has ended")
			return
		}
		failing = err != nil
		// A replay that could not keep up with its rate does not catch up in a burst of more than a second.
		next = latest(next.Add(wait), time.Now().Add(-time.Second))
		if !r.waitUntil(ctx, next, replay.ID) {
			r.release(replay.ID)
			return
		}
	}
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// waitUntil waits, and gives signs of life meanwhile; false says that ctx has ended.
func (r *Replayer) waitUntil(ctx context.Context, t time.Time, id uuid.UUID) bool {
	for {
		left := time.Until(t)
		if left <= 0 {
			return ctx.Err() == nil
		}
		select {
		case <-time.After(min(left, renewEvery)):
		case <-ctx.Done():
			return false
		}
		if left > renewEvery {
			renewCtx, cancel := context.WithTimeout(ctx, replayTimeout)
			// An error does not matter here: the next step notices what is lost.
			_ = r.Queue.HoldReplay(renewCtx, id, r.id, true)
			cancel()
		}
	}
}

// release lets another instance go on at once; without it that happens when the lease has run out.
func (r *Replayer) release(id uuid.UUID) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := r.Queue.HoldReplay(ctx, id, r.id, false); err != nil && !errors.Is(err, ErrReplayLost) {
		r.Log.Warn("bulk replay goes on only after a while", "replay_id", id, "error", err)
	}
}
