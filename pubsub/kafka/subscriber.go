package kafka

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// SubscriberConfig configures a [Subscriber].
type SubscriberConfig struct {
	Brokers  []string
	Security Security
	// Group is the consumer group.
	Group string
	// InstanceID makes the member a static one (KIP-345): after a crash it has its partitions back at once, instead of
	// after the session timeout. It must differ between instances. Empty means a dynamic member.
	InstanceID string
	// Window is the most messages of one partition that may be handed out and not acknowledged; 500 if zero.
	Window int
	// MaxBytes is about how many bytes of payload may be held, in flight or fetched ahead, by all partitions that were
	// assigned together; 32 MiB if zero. Each has an equal share, so that one which is stuck takes none from another.
	MaxBytes int
	// SessionTimeout is how long the group waits for a member that went silent; 10 s if zero.
	SessionTimeout time.Duration
	// CloseTimeout is how long messages in flight are waited for when the subscription ends or a partition goes to
	// another member; 10 s if zero. What is left then is handed out again, by whoever has the partition.
	CloseTimeout time.Duration
	Log          *slog.Logger
}

// Subscriber consumes topics of the Kafka API as a member of a group. It hands out many messages of a partition at
// once, those with the same key in order, and commits only offsets whose predecessors are all acknowledged. A refused
// message is handed out again. It implements [message.Subscriber].
type Subscriber struct {
	cfg SubscriberConfig

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu     sync.Mutex
	groups []*member
}

// NewSubscriber returns a subscriber. It must be closed.
func NewSubscriber(cfg SubscriberConfig) *Subscriber {
	if cfg.Window == 0 {
		cfg.Window = 500
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = 32 << 20
	}
	if cfg.SessionTimeout == 0 {
		cfg.SessionTimeout = 10 * time.Second
	}
	if cfg.CloseTimeout == 0 {
		cfg.CloseTimeout = 10 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Subscriber{cfg: cfg}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Subscribe joins the group for a topic, or for several, separated by commas. It does not wait for the brokers. The
// channel is closed after ctx has ended or Close was called, once what is in flight has been acknowledged or
// CloseTimeout has passed.
func (s *Subscriber) Subscribe(ctx context.Context, topics string) (<-chan *message.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return nil, ErrClosed
	}
	ctx, cancel := context.WithCancel(ctx)
	m, err := newMember(ctx, s.cfg, strings.Split(topics, ","))
	if err != nil {
		cancel()
		return nil, err
	}
	unhook := context.AfterFunc(s.ctx, cancel)
	s.groups = append(s.groups, m)
	s.running.Go(func() {
		defer cancel()
		defer unhook()
		defer close(m.out)
		m.run(ctx)
		s.forget(m)
	})
	return m.out, nil
}

func (s *Subscriber) forget(m *member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.groups = slices.DeleteFunc(s.groups, func(other *member) bool { return other == m })
}

// Close leaves the group once what is in flight has been acknowledged, or CloseTimeout has passed.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	s.cancel()
	s.mu.Unlock()
	s.running.Wait()
	return nil
}

// Assigned returns how many partitions the subscriber has.
func (s *Subscriber) Assigned() int {
	n := 0
	for _, m := range s.members() {
		m.mu.Lock()
		n += len(m.parts)
		m.mu.Unlock()
	}
	return n
}

// Joined tells whether the group has answered: partitions may be none, if there are more members than partitions.
func (s *Subscriber) Joined() bool {
	members := s.members()
	for _, m := range members {
		if !m.joined.Load() {
			return false
		}
	}
	return len(members) > 0
}

// LastPoll returns when the brokers last gave us messages, and the error if they refused since.
func (s *Subscriber) LastPoll() (time.Time, error) {
	var last time.Time
	var err error
	for _, m := range s.members() {
		if e := m.pollErr.Load(); e != nil {
			err = *e
		}
		if n := m.lastPoll.Load(); n != 0 && time.Unix(0, n).After(last) {
			last = time.Unix(0, n)
		}
	}
	return last, err
}

// Ping asks the brokers for a sign of life.
func (s *Subscriber) Ping(ctx context.Context) error {
	for _, m := range s.members() {
		if err := m.client.Ping(ctx); err != nil {
			return fmt.Errorf("ping brokers: %w", err)
		}
	}
	return nil
}

// Oldest returns when the oldest message in flight was handed out, zero if none is.
func (s *Subscriber) Oldest() time.Time {
	var oldest time.Time
	for _, m := range s.members() {
		m.mu.Lock()
		for _, p := range m.parts {
			if t := p.lane.Oldest(); !t.IsZero() && (oldest.IsZero() || t.Before(oldest)) {
				oldest = t
			}
		}
		m.mu.Unlock()
	}
	return oldest
}

func (s *Subscriber) members() []*member {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*member(nil), s.groups...)
}
