package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cornjacket/platform-services/pubsub/batch"
)

// SubscriberConfig configures a [Subscriber].
type SubscriberConfig struct {
	// Window is the most events of a batch; 2,000 if zero.
	Window int
	// MaxBatch is the most events that are sequenced by one statement, at most Window; 1,000 if zero.
	MaxBatch int
	// Poll is how often the outbox is looked at when nothing wakes the relay; 1 s if zero.
	Poll time.Duration
	// Sweep is how often the whole outbox is looked at, for rows that were not inserted by a [Publisher] and committed
	// out of order; 1 min if zero.
	Sweep time.Duration
	// Timeout bounds one statement; 10 s if zero.
	Timeout time.Duration
	// CloseTimeout is how long the end of a subscription waits for what is in flight; 10 s if zero. What is left then is
	// handed out again by the next subscription.
	CloseTimeout time.Duration
	// MaxPause bounds the pause before a batch that was refused is handed out again; 2 s if zero.
	MaxPause time.Duration
	// Ignore is the ID of a publisher whose notifications are not needed, because it calls [Subscriber.Wake] itself.
	Ignore string
	// Idle is how long a standby sees events wait, of which the leader does nothing, before it says so; after twice that
	// it ends the leader's session and takes over. 15 s if zero.
	Idle time.Duration
	// Bus is what the relay looks at before it sequences; nothing if nil.
	Bus Bus
	// Handled, if set, returns the newest position that a consumer has handled, as far as consumers can be asked.
	Handled func(ctx context.Context) int64
	// Log receives what an operator should know; nothing if nil.
	Log *slog.Logger
}

// Subscriber moves events from the outbox into the event log and hands them out, in batches, in the order of their
// positions. It goes on sequencing while the batches are not acknowledged. One
// subscriber of a database is active at a time; others stand by and take over within seconds. Events are handed out
// again after a crash, with the same positions. It implements [message.Subscriber].
type Subscriber struct {
	cfg  SubscriberConfig
	pool *pgxpool.Pool
	wake chan struct{}

	state     atomic.Pointer[State]
	limit     int           // of the next sequencer's batches; of the subscription that is active
	published atomic.Int64  // newest position of the acknowledged prefix
	floor     atomic.Int64  // everything in the outbox up to this ID has been taken
	drained   atomic.Bool   // the outbox was empty when it was last looked at
	saved     *cursor       // of the goroutine that saves; nil if unknown
	term      int64         // of the last leadership
	dirty     chan struct{} // published has moved
	feed      *feed
	sender    atomic.Pointer[batch.Sender]

	ctx    context.Context // ends with Close
	stop   context.CancelFunc
	active chan struct{} // held by the subscription that is running; a further one waits for its end

	mu      sync.Mutex // orders Subscribe and Close
	running sync.WaitGroup
}

// State is what the relay is doing, for health.
type State struct {
	Leading   bool          // false while another instance holds the lock
	LastRound time.Time     // last round trip to the database that succeeded
	Err       error         // why the last one failed; nil when it did not
	Sequenced int64         // newest position in the event log
	Waiting   error         // why a leader does not sequence yet, nil when it does
	Idle      time.Duration // for how long another instance leads and does nothing, if that is too long
	Restored  int64         // events that were put back into the log since the process has started
}

// lockClass is the advisory lock of the active relay of each outbox.
const lockClass = 0x636f726e // "corn"

// NewSubscriber returns a subscriber on the database of pool, which stays the caller's.
func NewSubscriber(pool *pgxpool.Pool, cfg SubscriberConfig) *Subscriber {
	if cfg.Window == 0 {
		cfg.Window = 2000
	}
	if cfg.MaxBatch == 0 {
		cfg.MaxBatch = 1000
	}
	if cfg.Sweep == 0 {
		cfg.Sweep = time.Minute
	}
	if cfg.Poll == 0 {
		cfg.Poll = time.Second
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.CloseTimeout == 0 {
		cfg.CloseTimeout = 10 * time.Second
	}
	if cfg.Idle == 0 {
		cfg.Idle = 15 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.MaxBatch = min(cfg.MaxBatch, cfg.Window)
	s := &Subscriber{
		cfg: cfg, pool: pool, limit: cfg.MaxBatch, feed: newFeed(cfg.Window), dirty: make(chan struct{}, 1),
		wake: make(chan struct{}, 1), active: make(chan struct{}, 1),
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.state.Store(&State{})
	return s
}

// Wake makes the relay look at the outbox now. It never blocks.
func (s *Subscriber) Wake() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// State returns what the relay is doing.
func (s *Subscriber) State() State { return *s.state.Load() }

// Published returns the newest position up to which all events have been acknowledged.
func (s *Subscriber) Published() int64 { return s.published.Load() }

// Oldest returns when the batch in flight was handed out, zero if none is.
func (s *Subscriber) Oldest() time.Time {
	if sender := s.sender.Load(); sender != nil {
		return sender.Oldest()
	}
	return time.Time{}
}

// Subscribe starts the relay. The channel is closed after ctx has ended or Close was called, once what is in flight
// has been acknowledged or CloseTimeout has passed. The topic is not used: there is one outbox. Of several
// subscriptions one is active, the next when that has ended.
func (s *Subscriber) Subscribe(ctx context.Context, _ string) (<-chan *message.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return nil, errors.New("outbox subscriber is closed")
	}
	ctx, cancel := context.WithCancel(ctx)
	unhook := context.AfterFunc(s.ctx, cancel)
	sender := batch.NewSender(s.cfg.CloseTimeout)
	sender.MaxPause = s.cfg.MaxPause
	s.running.Go(func() {
		defer close(sender.Out())
		defer cancel()
		defer unhook()
		select {
		case s.active <- struct{}{}:
			s.run(ctx, sender)
			<-s.active
		case <-ctx.Done():
		}
	})
	return sender.Out(), nil
}

// Close ends the subscription and waits until what is in flight has been acknowledged or CloseTimeout has passed.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	s.stop()
	s.mu.Unlock()
	s.running.Wait()
	return nil
}

// run leads as long as it can, and stands by otherwise.
func (s *Subscriber) run(ctx context.Context, sender *batch.Sender) {
	s.sender.Store(sender)
	published := make(chan struct{})
	go func() {
		defer close(published)
		s.publish(ctx, sender)
	}()
	defer func() { <-published }()
	const minBackoff, maxBackoff = 100 * time.Millisecond, 2 * time.Second
	backoff := minBackoff
	defer s.update(func(st *State) { st.Leading = false })
	for ctx.Err() == nil {
		started := time.Now()
		err := s.lead(ctx, published)
		if ctx.Err() != nil {
			return
		}
		s.failed(err)
		if time.Since(started) > maxBackoff {
			backoff = minBackoff
		}
		if !batch.Sleep(ctx, backoff) {
			return
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

func (s *Subscriber) failed(err error) {
	if before := s.State(); before.Err == nil {
		s.cfg.Log.Error("relay lost the database, trying again", "error", err)
	}
	s.update(func(st *State) { st.Err, st.Leading, st.Waiting, st.Idle = err, false, nil, 0 })
}

func (s *Subscriber) update(change func(*State)) {
	st := s.State()
	change(&st)
	s.state.Store(&st)
}

// lead waits for the lock and sequences until ctx ends, which is no error, or the database fails. The lock is kept until
// what was handed out has been published, so that a successor repeats nothing.
func (s *Subscriber) lead(ctx context.Context, published <-chan struct{}) error {
	seq, err := s.acquire(ctx)
	if err != nil || seq == nil {
		return err
	}
	defer seq.close()
	if err := s.compare(ctx, seq); err != nil {
		return err
	}
	cursor, floor, term, err := seq.cursor(ctx)
	if err != nil {
		return err
	}
	s.term = term
	s.drained.Store(false)
	s.saved = nil // another relay may have moved it, or somebody may have set it back
	s.floor.Store(floor)
	s.published.Store(cursor)
	s.feed.begin(cursor, seq.position)

	helperCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	var helpers sync.WaitGroup
	helpers.Go(func() { s.saveCursor(helperCtx) })
	helpers.Go(func() { s.listen(helperCtx) })
	err = s.sequence(ctx, seq)
	s.limit = seq.limit
	if ctx.Err() != nil {
		<-published
	}
	s.feed.end()
	stop()
	helpers.Wait()
	if ctx.Err() != nil {
		s.saveLast()
		return nil
	}
	s.saveFailed(ctx)
	return err
}

// sequence looks at the outbox whenever there may be something in it, until that fails or ctx ends.
func (s *Subscriber) sequence(ctx context.Context, seq *sequencer) error {
	timer := time.NewTimer(s.cfg.Poll)
	defer timer.Stop()
	for {
		began := time.Now()
		p, more, err := seq.next(ctx)
		if err != nil {
			return err
		}
		took := time.Since(began)
		if seq.floor > 0 {
			s.floor.Store(seq.floor)
		}
		s.update(func(st *State) { st.LastRound, st.Err, st.Sequenced = time.Now(), nil, seq.position })
		s.drained.Store(p.taken == 0 && !more)
		s.feed.put(ctx, p)
		switch {
		case more:
			continue
		case !batch.Sleep(ctx, batch.Gather(p.taken, took, 0)):
			return nil
		}
		timer.Reset(s.cfg.Poll)
		select {
		case <-s.wake:
		case <-timer.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// listen turns notifications into wake-ups. Without it the relay still polls, so its failures only cost latency.
func (s *Subscriber) listen(ctx context.Context) {
	for ctx.Err() == nil {
		err := s.listenOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		s.cfg.Log.Debug("listening for outbox notifications failed, trying again", "error", err)
		if !batch.Sleep(ctx, s.cfg.Poll) {
			return
		}
	}
}

func (s *Subscriber) listenOnce(ctx context.Context) error {
	conn, err := dial(ctx, s.pool, s.cfg.Timeout)
	if err != nil {
		return err
	}
	defer closeConn(conn)
	execCtx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	var table uint32
	if err = conn.QueryRow(execCtx, `SELECT 'outbox'::regclass::oid`).Scan(&table); err == nil {
		_, err = conn.Exec(execCtx, "LISTEN "+channel+strconv.FormatUint(uint64(table), 10))
	}
	cancel()
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	s.Wake() // for what was committed before we listened
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return fmt.Errorf("wait for notification: %w", err)
		}
		if s.cfg.Ignore == "" || n.Payload != s.cfg.Ignore {
			s.Wake()
		}
	}
}

// saveCursor writes the cursor some time after it has moved: what a crash repeats has the same positions, and is
// ignored by whoever has applied it.
func (s *Subscriber) saveCursor(ctx context.Context) {
	const every = 200 * time.Millisecond
	for {
		select {
		case <-s.dirty:
		case <-ctx.Done():
			return
		}
		if !batch.Sleep(ctx, every) {
			return
		}
		if err := s.writeCursor(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Log.Debug("saving the relay's cursor failed", "error", err)
		}
	}
}

// saveFailed writes the cursor after a failure, if the database can do that: what has been published would be published
// again each time that the relay begins anew, for as long as it fails.
func (s *Subscriber) saveFailed(ctx context.Context) {
	if s.saved != nil && s.published.Load() <= s.saved.position {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, min(s.cfg.Timeout, time.Second))
	defer cancel()
	if err := s.writeCursor(ctx); err != nil {
		s.cfg.Log.Debug("saving the relay's cursor failed", "error", err)
	}
}

// saveLast writes the cursor at the end of a subscription. A database that hangs must not hold up the end for long.
func (s *Subscriber) saveLast() {
	ctx, cancel := context.WithTimeout(context.Background(), min(s.cfg.Timeout, 3*time.Second))
	defer cancel()
	if err := s.writeCursor(ctx); err != nil {
		s.cfg.Log.Warn("saving the relay's cursor at the end failed; the last events will be published again", "error", err)
	}
}
