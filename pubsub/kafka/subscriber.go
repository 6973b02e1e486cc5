package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"
)

// SubscriberConfig configures a [Subscriber].
type SubscriberConfig struct {
	Brokers []string
	// Group is the consumer group.
	Group string
	// InstanceID makes the member a static one (KIP-345): after a crash it has its partitions back at once, instead of
	// after the session timeout. It must differ between instances. Empty means a dynamic member.
	InstanceID string
	// Window is the most messages of one partition that may be handed out and not acknowledged; 500 if zero.
	Window int
	// SessionTimeout is how long the group waits for a member that went silent; 10 s if zero.
	SessionTimeout time.Duration
	Log            *slog.Logger
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
	if cfg.SessionTimeout == 0 {
		cfg.SessionTimeout = 10 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Subscriber{cfg: cfg}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Subscribe joins the group for a topic, or for several, separated by commas. It does not wait for the brokers. The
// channel is closed after ctx has ended or Close was called, once what is in flight has been acknowledged.
func (s *Subscriber) Subscribe(ctx context.Context, topics string) (<-chan *message.Message, error) {
	if s.ctx.Err() != nil {
		return nil, ErrClosed
	}
	m := &member{cfg: s.cfg, out: make(chan *message.Message), parts: make(map[tp]*partition)}
	opts := []kgo.Opt{
		kgo.ConsumerGroup(s.cfg.Group),
		kgo.ConsumeTopics(strings.Split(topics, ",")...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.SessionTimeout(s.cfg.SessionTimeout),
		kgo.HeartbeatInterval(s.cfg.SessionTimeout / 4),
		kgo.RebalanceTimeout(15 * time.Second),
		kgo.AutoCommitMarks(),
		kgo.AutoCommitInterval(time.Second),
		kgo.FetchMaxBytes(8 << 20),
		kgo.FetchMaxPartitionBytes(1 << 20),
		kgo.OnPartitionsAssigned(m.assigned),
		kgo.OnPartitionsRevoked(m.revoked),
		kgo.OnPartitionsLost(m.lost),
	}
	if s.cfg.InstanceID != "" {
		opts = append(opts, kgo.InstanceID(s.cfg.InstanceID))
	}
	client, err := NewClient(s.cfg.Brokers, s.cfg.Log, opts...)
	if err != nil {
		return nil, err
	}
	m.client = client
	ctx, cancel := context.WithCancel(ctx)
	context.AfterFunc(s.ctx, cancel)
	// Partitions outlive ctx, so that what is in flight can be acknowledged.
	m.ctx, m.abandon = context.WithCancel(context.WithoutCancel(ctx))
	s.mu.Lock()
	s.groups = append(s.groups, m)
	s.mu.Unlock()
	s.running.Go(func() {
		defer cancel()
		m.run(ctx)
	})
	return m.out, nil
}

// Close leaves the group once what is in flight has been acknowledged.
func (s *Subscriber) Close() error {
	s.cancel()
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

// LastPoll returns when the brokers last answered a fetch without an error, and the error if the last fetch failed.
func (s *Subscriber) LastPoll() (time.Time, error) {
	var last time.Time
	var err error
	for _, m := range s.members() {
		if e := m.pollErr.Load(); e != nil {
			err = *e
		}
		if t := time.Unix(0, m.lastPoll.Load()); t.After(last) {
			last = t
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

// member is one subscription: one member of the group.
type member struct {
	cfg     SubscriberConfig
	client  *kgo.Client
	out     chan *message.Message
	ctx     context.Context
	abandon context.CancelFunc

	joined   atomic.Bool
	lastPoll atomic.Int64 // Unix nanoseconds
	pollErr  atomic.Pointer[error]

	mu    sync.Mutex
	parts map[tp]*partition
}

type tp struct {
	topic     string
	partition int32
}

// run polls until ctx ends, then settles what is in flight and leaves.
func (m *member) run(ctx context.Context) {
	defer close(m.out)
	for {
		fetches := m.client.PollRecords(ctx, 2000)
		if ctx.Err() != nil || fetches.IsClientClosed() {
			break
		}
		m.note(fetches)
		fetches.EachPartition(func(f kgo.FetchTopicPartition) {
			if len(f.Records) == 0 {
				return
			}
			m.mu.Lock()
			p := m.parts[tp{f.Topic, f.Partition}]
			m.mu.Unlock()
			if p != nil {
				p.push(f.Records)
			}
		})
	}
	m.settle(m.take(nil), true)
	commitCtx, cancel := context.WithTimeout(m.ctx, 5*time.Second)
	defer cancel()
	if err := m.client.CommitMarkedOffsets(commitCtx); err != nil {
		m.cfg.Log.Warn("committing offsets at the end failed; the last messages will be handed out again", "error", err)
	}
	m.abandon()
	m.client.CloseAllowingRebalance()
}

func (m *member) note(fetches kgo.Fetches) {
	var first error
	fetches.EachError(func(topic string, _ int32, err error) {
		if first == nil && !errors.Is(err, context.Canceled) {
			first = fmt.Errorf("fetch %s: %w", topic, err)
		}
	})
	if first != nil {
		m.pollErr.Store(&first)
		return
	}
	m.pollErr.Store(nil)
	m.lastPoll.Store(time.Now().UnixNano())
}

func (m *member) assigned(_ context.Context, _ *kgo.Client, parts map[string][]int32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.joined.Store(true)
	for topic, ids := range parts {
		for _, id := range ids {
			key := tp{topic, id}
			m.parts[key] = newPartition(m, key)
		}
	}
}

// revoked gives partitions to another member: what is in flight is settled first, so that it need not be repeated.
func (m *member) revoked(ctx context.Context, client *kgo.Client, parts map[string][]int32) {
	m.settle(m.take(parts), true)
	if err := client.CommitMarkedOffsets(ctx); err != nil && m.ctx.Err() == nil {
		m.cfg.Log.Warn("committing offsets before a rebalance failed; messages will be handed out again", "error", err)
	}
}

// lost is told of partitions that another member has already.
func (m *member) lost(_ context.Context, _ *kgo.Client, parts map[string][]int32) {
	m.settle(m.take(parts), false)
}

// take removes partitions; nil means all.
func (m *member) take(parts map[string][]int32) []*partition {
	m.mu.Lock()
	defer m.mu.Unlock()
	var taken []*partition
	for key, p := range m.parts {
		if parts != nil && !contains(parts[key.topic], key.partition) {
			continue
		}
		taken = append(taken, p)
		delete(m.parts, key)
	}
	return taken
}

func contains(ids []int32, id int32) bool {
	for _, i := range ids {
		if i == id {
			return true
		}
	}
	return false
}

// settle ends partitions, waiting for what is in flight if it may still be committed.
func (m *member) settle(parts []*partition, wait bool) {
	for _, p := range parts {
		p.close()
	}
	limit := time.NewTimer(10 * time.Second)
	defer limit.Stop()
	for _, p := range parts {
		if wait {
			select {
			case <-p.lane.Done():
			case <-limit.C:
				wait = false
			}
		}
		p.abandon()
		<-p.done
		<-p.lane.Done()
	}
}
