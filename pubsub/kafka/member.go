package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"
)

// member is one subscription: one member of the group.
type member struct {
	cfg     SubscriberConfig
	client  *kgo.Client
	out     chan *message.Message
	ctx     context.Context // of all messages; outlives the subscription's, so that what is in flight can be acknowledged
	abandon context.CancelFunc
	cut     context.CancelFunc // ends the client's requests

	joined   atomic.Bool
	lastPoll atomic.Int64 // Unix nanoseconds
	pollErr  atomic.Pointer[error]

	topics    []string
	refreshed time.Time // when ends were last asked for; see Lag

	mu    sync.Mutex
	parts map[tp]*partition
	ends  map[tp]bounds
}

type tp struct {
	topic     string
	partition int32
}

func newMember(ctx context.Context, cfg SubscriberConfig, topics []string) (*member, error) {
	m := &member{cfg: cfg, topics: topics, out: make(chan *message.Message), parts: make(map[tp]*partition)}
	opts := []kgo.Opt{
		kgo.ConsumerGroup(cfg.Group),
		kgo.ConsumeTopics(topics...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.SessionTimeout(cfg.SessionTimeout),
		kgo.HeartbeatInterval(cfg.SessionTimeout / 4),
		kgo.RebalanceTimeout(cfg.CloseTimeout + 5*time.Second),
		// Records that were fetched before a rebalance must not reach a partition that has come back in it.
		kgo.BlockRebalanceOnPoll(),
		kgo.AutoCommitMarks(),
		kgo.AutoCommitInterval(time.Second),
		kgo.FetchMaxBytes(8 << 20),
		// A fetch that waits for some partitions delays those that are resumed meanwhile.
		kgo.FetchMaxWait(500 * time.Millisecond),
		kgo.FetchMaxPartitionBytes(1 << 20),
		kgo.OnPartitionsAssigned(m.assigned),
		kgo.OnPartitionsRevoked(m.revoked),
		kgo.OnPartitionsLost(m.lost),
	}
	if cfg.InstanceID != "" {
		opts = append(opts, kgo.InstanceID(cfg.InstanceID))
	}
	secure, err := cfg.Security.options()
	if err != nil {
		return nil, err
	}
	opts = append(opts, secure...)
	m.ctx, m.abandon = context.WithCancel(context.WithoutCancel(ctx))
	var clientCtx context.Context
	clientCtx, m.cut = context.WithCancel(m.ctx)
	client, err := NewClient(cfg.Brokers, cfg.Log, append(opts, kgo.WithContext(clientCtx))...)
	if err != nil {
		m.abandon()
		return nil, err
	}
	m.client = client // the callbacks are given it: they may run already
	return m, nil
}

// run polls until ctx ends, then settles what is in flight and leaves.
func (m *member) run(ctx context.Context) {
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
				p.push(f.Records, f.HighWatermark)
			}
		})
		m.client.AllowRebalance()
	}
	m.settle(m.take(func(tp) bool { return true }), true)
	m.client.AllowRebalance() // one that waits for us holds up the commit too
	m.commitLast()
	m.leave()
	m.client.CloseAllowingRebalance() // calls back for partitions that were assigned meanwhile
	m.abandon()
}

// leave leaves the group, or cuts the client off if that takes too long: a rebalance that is under way waits for members
// that are gone, for as long as their sessions last, and closing the client would wait for the rebalance.
func (m *member) leave() {
	defer m.cut()
	ctx, cancel := context.WithTimeout(m.ctx, time.Second)
	defer cancel()
	if err := m.client.LeaveGroupContext(ctx); err != nil {
		m.cfg.Log.Debug("leaving the group failed; it ends with the session", "group", m.cfg.Group, "error", err)
	}
}

func (m *member) commitLast() {
	ctx, cancel := context.WithTimeout(m.ctx, 2*time.Second)
	defer cancel()
	if err := m.client.CommitMarkedOffsets(ctx); err != nil {
		m.cfg.Log.Warn("committing offsets at the end failed; the last messages will be handed out again", "error", err)
	}
}

// note keeps the outcome of a fetch. franz-go goes on by itself after each error; an operator is told of the first.
func (m *member) note(fetches kgo.Fetches) {
	var first error
	fetches.EachError(func(topic string, _ int32, err error) {
		if first == nil && !errors.Is(err, context.Canceled) {
			first = fmt.Errorf("fetch %s: %w", topic, err)
		}
	})
	if first != nil {
		if m.pollErr.Swap(&first) == nil {
			m.cfg.Log.Warn("fetching fails, trying again", "group", m.cfg.Group, "error", first)
		}
		return
	}
	m.pollErr.Store(nil)
	m.lastPoll.Store(time.Now().UnixNano())
}

func (m *member) assigned(_ context.Context, client *kgo.Client, parts map[string][]int32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.joined.Store(true)
	n := len(m.parts)
	for _, ids := range parts {
		n += len(ids)
	}
	for topic, ids := range parts {
		for _, id := range ids {
			key := tp{topic, id}
			m.parts[key] = newPartition(m, client, key, m.cfg.MaxBytes/n)
		}
	}
}

// revoked gives partitions to another member: what is in flight is settled first, so that it need not be repeated.
func (m *member) revoked(ctx context.Context, client *kgo.Client, parts map[string][]int32) {
	m.settle(m.take(in(parts)), true) // none are left if we are leaving, but what was settled is to be committed
	if err := client.CommitMarkedOffsets(ctx); err != nil {
		m.cfg.Log.Warn("committing offsets before a rebalance failed; messages will be handed out again", "error", err)
	}
}

// lost is told of partitions that another member has already.
func (m *member) lost(_ context.Context, _ *kgo.Client, parts map[string][]int32) {
	m.settle(m.take(in(parts)), false)
}

func in(parts map[string][]int32) func(tp) bool {
	return func(k tp) bool { return slices.Contains(parts[k.topic], k.partition) }
}

// take removes the partitions that some condition holds for.
func (m *member) take(which func(tp) bool) []*partition {
	m.mu.Lock()
	defer m.mu.Unlock()
	var taken []*partition
	for key, p := range m.parts {
		if which(key) {
			taken = append(taken, p)
			delete(m.parts, key)
		}
	}
	return taken
}

// settle ends partitions, waiting for what is in flight if it may still be committed.
func (m *member) settle(parts []*partition, wait bool) {
	for _, p := range parts {
		p.close()
	}
	limit := time.NewTimer(m.cfg.CloseTimeout)
	defer limit.Stop()
	for _, p := range parts {
		if wait {
			select {
			case <-p.lane.Done():
			case <-limit.C:
				wait = false
				m.cfg.Log.Warn("messages were still in flight when their partition was given up; they will be handed out again",
					"group", m.cfg.Group)
			}
		}
		p.abandon()
		<-p.done
		<-p.lane.Done()
	}
}
