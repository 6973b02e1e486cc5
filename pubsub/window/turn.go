package window

import (
	"context"
	"sync"
)

// Turns keeps messages with the same key in the order in which their source handed them out, although the router
// runs each in a goroutine of its own. Messages with different keys do not wait for each other.
type Turns struct {
	mu        sync.Mutex
	last      map[string]*Turn
	waiting   map[*Turn]struct{} // those that somebody waits for
	abandoned bool
}

// Turn is the place of one message among those with its key. A nil Turn is no place: nothing waits for it.
type Turn struct {
	turns  *Turns
	key    string
	next   *Turn
	head   bool
	passed bool
	waiter waiter
}

// waiter waits for a turn. One of its methods is called, once.
type waiter interface {
	come()    // the turn has come
	abandon() // it never will
}

type function func()

func (f function) come()    { f() }
func (f function) abandon() {}

// NewTurns returns Turns that nobody has taken yet.
func NewTurns() *Turns {
	return &Turns{last: make(map[string]*Turn), waiting: make(map[*Turn]struct{})}
}

// Take gives out the next turn of a key. Call it in the order of the source.
func (ts *Turns) Take(key string) *Turn {
	t := &Turn{turns: ts, key: key}
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if prev := ts.last[key]; prev != nil {
		prev.next = t
	} else {
		t.head = true
	}
	ts.last[key] = t
	return t
}

// Do runs f once all earlier turns of the key have passed, then passes this one. It does not wait: f runs in the
// caller's goroutine now, or later in that of whoever passes the turn before. After the turn has passed f runs at once.
// If the turn is given up or abandoned before it comes, f never runs.
func (t *Turn) Do(f func()) { t.do(function(f)) }

// do is Do for somebody who wants to know if the turn never comes.
func (t *Turn) do(w waiter) {
	if t == nil {
		w.come()
		return
	}
	ts := t.turns
	ts.mu.Lock()
	if t.head || t.passed {
		ts.mu.Unlock()
		w.come()
		t.Pass()
		return
	}
	abandoned := ts.abandoned
	if !abandoned {
		t.waiter = w
		ts.waiting[t] = struct{}{}
	}
	ts.mu.Unlock()
	if abandoned {
		w.abandon()
	}
}

// Pass gives the turn up. It may be called again, and before the turn has come.
func (t *Turn) Pass() {
	if t == nil {
		return
	}
	ts := t.turns
	ts.mu.Lock()
	if t.passed {
		ts.mu.Unlock()
		return
	}
	t.passed = true
	w := t.release()
	if t.head {
		ts.advance(t)
	}
	ts.mu.Unlock()
	if w != nil {
		w.abandon()
	}
}

// advance makes the turns after a passed one come, up to the first that nobody waits for yet. The lock is let go
// while one comes.
func (ts *Turns) advance(t *Turn) {
	for {
		next := t.next
		if next == nil {
			delete(ts.last, t.key)
			return
		}
		next.head = true
		if w := next.release(); w != nil {
			ts.mu.Unlock()
			w.come()
			ts.mu.Lock()
			if next.passed { // meanwhile, by someone who has advanced from there
				return
			}
			next.passed = true
		}
		if !next.passed {
			return
		}
		t = next
	}
}

// release takes away who waits for the turn, nil if nobody does.
func (t *Turn) release() waiter {
	w := t.waiter
	if w != nil {
		t.waiter = nil
		delete(t.turns.waiting, t)
	}
	return w
}

// abandon says that turns which have not come yet never will, because earlier messages will not be handed out again.
// Running them all the same would let them overtake those.
func (ts *Turns) abandon() {
	ts.mu.Lock()
	ts.abandoned = true
	var waiters []waiter
	for t := range ts.waiting {
		waiters = append(waiters, t.release())
	}
	ts.mu.Unlock()
	for _, w := range waiters {
		w.abandon()
	}
}

type turnKey struct{}

// WithTurn returns a context that carries a message's turn.
func WithTurn(ctx context.Context, t *Turn) context.Context {
	return context.WithValue(ctx, turnKey{}, t)
}

// TurnFrom returns the turn that ctx carries, nil if it carries none.
func TurnFrom(ctx context.Context) *Turn {
	t, _ := ctx.Value(turnKey{}).(*Turn)
	return t
}
