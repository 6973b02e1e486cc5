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
	"github.com/google/uuid"

	"github.com/cornjacket/platform-services/pubsub/batch"
)

// Partition is one partition of a topic.
type Partition struct {
	Topic     string
	Partition int32
}

// Place is how far a consumer is in a partition.
type Place struct {
	Partition
	Position int64 // of the newest event that was handled, in the log; 0 if none was
	Offset   int64 // behind the newest record that was read; -1 if none was, or if the topic is another one by now
}

// Positions keeps how far a consumer is. Its methods may be called concurrently.
type Positions interface {
	// Claim makes partitions this member's, whichever member had them, and returns how far the consumer is in each. ids are those of
	// the topics.
	Claim(ctx context.Context, ids map[string]uuid.UUID, parts []Partition) ([]Place, error)
	// Claimed reports whether a partition was claimed and is, as far as known, still this member's.
	Claimed(part Partition) bool
	// Reached notes that everything up to some places is handled.
	Reached(ctx context.Context, places []Place) error
}

// Log has every event, also those that the bus has dropped.
type Log interface {
	// CatchUp calls send, in order, with what is published and behind the places of some partitions, and returns the position
	// up to which that was. partitions is the number that the keys of each topic are spread over. It ends without an error when send returns false.
	CatchUp(ctx context.Context, places []Place, partitions map[string]int, send func([]batch.Record) bool) (upTo int64, err error)
}

// SubscriberConfig configures a [Subscriber].
type SubscriberConfig struct {
	Brokers  []string
	Security Security
	// Group is the consumer group.
	Group string
	// InstanceID makes the member a static one (KIP-345): after a crash it has its partitions back at once, instead of
	// after the session timeout. It must differ between instances. Empty means a dynamic member.
	InstanceID string
	// Positions says where to read on; the offsets that the group has committed are then for people to look at only. If
	// nil they are where to read on, and what a crash leaves is handed out again.
	Positions Positions
	// EventLog, with Positions, is where events are read that the bus does not have any more, or that are older than the topic.
	EventLog Log
	// Partitions is that of the publisher, see [PublisherConfig]: it says in which partition the bus had an event of the log.
	Partitions func(ctx context.Context, topic string, now int) (int, error)
	// MaxBatch is the most records of a batch; 8,000 if zero.
	MaxBatch int
	// MaxBytes is about how many bytes of records are fetched ahead from each broker; 8 MiB if zero.
	MaxBytes int
	// SessionTimeout is how long the group waits for a member that went silent; 10 s if zero.
	SessionTimeout time.Duration
	// CloseTimeout is how long a batch in flight is waited for when the subscription ends; 10 s if zero. What is left then
	// is handed out again, by the member that has the partition.
	CloseTimeout time.Duration
	// MaxPause bounds the pause before a batch that was refused is handed out again; 2 s if zero.
	MaxPause time.Duration
	Logger   *slog.Logger
}

// Subscriber consumes topics of the Kafka API as a member of a group, one batch at a time. A batch that is refused is
// handed out again. It implements [message.Subscriber].
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
	if cfg.MaxBatch == 0 {
		cfg.MaxBatch = 8000
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = 8 << 20
	}
	if cfg.SessionTimeout == 0 {
		cfg.SessionTimeout = 10 * time.Second
	}
	if cfg.CloseTimeout == 0 {
		cfg.CloseTimeout = 10 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
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
		defer close(m.sender.Out())
		m.run(ctx)
		s.forget(m)
	})
	return m.sender.Out(), nil
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
		n += m.assignedParts()
	}
	return n
}

// Joined reports whether the group has answered: partitions may be none, if there are more members than partitions.
func (s *Subscriber) Joined() bool {
	members := s.members()
	for _, m := range members {
		if !m.joined.Load() {
			return false
		}
	}
	return len(members) > 0
}

// Trouble returns why nothing can be fetched, and since when; nil if the last fetch went well. Partitions that can't be
// claimed are such a reason too.
func (s *Subscriber) Trouble() (since time.Time, err error) {
	for _, m := range s.members() {
		if t := m.trouble.Load(); t.current() {
			return t.since, t.err
		}
	}
	return time.Time{}, nil
}

// Missed returns how many partitions are being caught up with from the log, and how many records the bus had dropped
// before they were read, as far as that is known.
func (s *Subscriber) Missed() (partitions int, records int64) {
	for _, m := range s.members() {
		m.mu.Lock()
		for _, b := range m.behind {
			partitions++
			records += b.dropped
		}
		m.mu.Unlock()
	}
	return partitions, records
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

// Oldest returns since when the oldest batch in flight has been handed out, zero if none is.
func (s *Subscriber) Oldest() time.Time {
	var oldest time.Time
	for _, m := range s.members() {
		if t := m.sender.Oldest(); !t.IsZero() && (oldest.IsZero() || t.Before(oldest)) {
			oldest = t
		}
	}
	return oldest
}

func (s *Subscriber) members() []*member {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.groups)
}
