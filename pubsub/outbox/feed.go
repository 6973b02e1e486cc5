package outbox

import (
	"context"
	"sync"
	"time"
)

// feedPatience is how long sequencing waits for a bus that is slower. Then it goes on alone, and what the feed has no
// room for is read from the log again when its time comes.
const feedPatience = time.Second

// feed hands sequenced events to the one that publishes them. It holds little: the newest page, or some that have been
// joined. Positions say what is where: up to taken, all has been handed out; behind held, all is in the page.
type feed struct {
	most int // records of a page

	mu            sync.Mutex
	leading       bool
	term          int // counts leaderships
	taken, held   int64
	newest        int64
	page          page
	ready, change chan struct{}
}

func newFeed(most int) *feed {
	return &feed{most: most, ready: make(chan struct{}, 1), change: make(chan struct{}, 1)}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// begin starts a leadership: the bus has everything up to one position, and the log goes to the other.
func (f *feed) begin(published, newest int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.term++
	f.leading, f.taken, f.held, f.newest, f.page = true, published, newest, newest, page{}
	signal(f.ready)
}

// end ends it: nothing more is handed out.
func (f *feed) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.term++
	f.leading, f.page = false, page{}
}

// put takes what has been sequenced behind the newest position.
func (f *feed) put(ctx context.Context, p page) {
	if p.taken == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.full(p) && f.taken == f.held {
		f.await(ctx, p)
	}
	if f.full(p) {
		f.page, f.held = page{}, f.newest
	}
	f.page.join(p)
	f.newest = p.last
	signal(f.ready)
}

func (f *feed) full(p page) bool {
	return f.page.taken > 0 && (f.page.taken+p.taken > f.most || f.page.bytes+p.bytes > maxBatchBytes)
}

// await waits for room, without the mutex.
func (f *feed) await(ctx context.Context, p page) {
	limit := time.NewTimer(feedPatience)
	defer limit.Stop()
	for f.full(p) {
		f.mu.Unlock()
		select {
		case <-f.change:
			f.mu.Lock()
		case <-limit.C:
			f.mu.Lock()
			return
		case <-ctx.Done():
			f.mu.Lock()
			return
		}
	}
}

// work is what is to be published next: a page, or the part of the log behind one position and up to another.
type work struct {
	term        int
	page        page
	behind      bool
	after, upTo int64
}

// take waits for work. It is false when ctx has ended.
func (f *feed) take(ctx context.Context) (work, bool) {
	for ctx.Err() == nil {
		if w, ok := f.next(); ok {
			return w, true
		}
		select {
		case <-f.ready:
		case <-ctx.Done():
		}
	}
	return work{}, false
}

func (f *feed) next() (work, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case !f.leading || f.taken == f.newest:
		return work{}, false
	case f.taken < f.held:
		return work{term: f.term, behind: true, after: f.taken, upTo: f.held}, true
	}
	w := work{term: f.term, page: f.page}
	f.taken, f.held, f.page = f.newest, f.newest, page{}
	signal(f.change)
	return w, true
}

// passed tells that all of the log has been read up to a position, in a leadership.
func (f *feed) passed(term int, position int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if term == f.term {
		f.taken = position
	}
}

// during does something if a leadership lasts, and reports whether it does.
func (f *feed) during(term int, do func()) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if term == f.term {
		do()
	}
	return term == f.term
}
