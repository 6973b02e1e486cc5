package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/pubsub/batch"
)

// member is one subscription: one member of the group.
type member struct {
	cfg    SubscriberConfig
	client *kgo.Client   // set once ready is closed
	ready  chan struct{} // the client begins before newMember has it
	sender *batch.Sender
	topics []string
	ctx    context.Context    // of the client's requests; outlives the subscription's
	cut    context.CancelFunc // ends them

	joined  atomic.Bool
	trouble atomic.Pointer[trouble]

	// Of run alone.
	looked time.Time       // when look was last called
	stale  map[string]bool // topics whose ID the brokers do not know any more
	held   held            // of what is being handed out

	mu        sync.Mutex
	parts     map[Partition]*part  // assigned
	ids       map[string]uuid.UUID // of the topics as they were when parts were assigned
	behind    map[Partition]*gap   // those of parts of which the bus does not have all; see catchUp
	wake      context.CancelFunc   // ends the poll that is waiting
	ends      map[Partition]bounds
	refreshed time.Time // when ends were last asked for; see Lag
}

// part is an assigned partition. Each assignment has one of its own.
type part struct {
	next   int64     // offset of the next record that is to be handled; -1 if not known yet
	before int64     // what next was before look has moved it to the beginning of the partition; -1 if it has not
	end    int64     // of the partition when it was last fetched
	oldest time.Time // of what is fetched and not handled
}

// held is the assignments that records were taken under.
type held map[Partition]*part

// trouble is why nothing comes.
type trouble struct {
	since, last time.Time
	err         error
}

func newMember(ctx context.Context, cfg SubscriberConfig, topics []string) (*member, error) {
	m := &member{
		cfg: cfg, topics: topics, sender: batch.NewSender(cfg.CloseTimeout), ready: make(chan struct{}),
		parts: make(map[Partition]*part), behind: make(map[Partition]*gap), ids: make(map[string]uuid.UUID), stale: make(map[string]bool),
	}
	m.sender.Again = m.again
	m.sender.MaxPause = cfg.MaxPause
	opts := []kgo.Opt{
		kgo.ConsumerGroup(cfg.Group),
		kgo.ConsumeTopics(topics...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.SessionTimeout(cfg.SessionTimeout),
		kgo.HeartbeatInterval(cfg.SessionTimeout / 4),
		kgo.RebalanceTimeout(cfg.CloseTimeout + 5*time.Second),
		// What was fetched is handled before a partition goes to another member.
		kgo.BlockRebalanceOnPoll(),
		kgo.AutoCommitMarks(),
		kgo.AutoCommitInterval(time.Second),
		kgo.FetchMaxBytes(int32(cfg.MaxBytes)), //nolint:gosec // some megabytes
		kgo.FetchMaxWait(500 * time.Millisecond),
		kgo.FetchMaxPartitionBytes(1 << 20),
		kgo.OnPartitionsAssigned(m.assigned),
		kgo.OnPartitionsRevoked(m.revoked),
		kgo.OnPartitionsLost(m.lost),
	}
	if cfg.Positions != nil {
		opts = append(opts, kgo.AdjustFetchOffsetsFn(m.claim))
	}
	if cfg.InstanceID != "" {
		opts = append(opts, kgo.InstanceID(cfg.InstanceID))
	}
	secure, err := cfg.Security.options()
	if err != nil {
		return nil, err
	}
	m.ctx, m.cut = context.WithCancel(context.WithoutCancel(ctx))
	client, err := NewClient(cfg.Brokers, cfg.Logger, append(append(opts, secure...), kgo.WithContext(m.ctx))...)
	if err != nil {
		m.cut()
		return nil, err
	}
	m.client = client
	close(m.ready)
	return m, nil
}

// run polls until ctx ends, then leaves.
func (m *member) run(ctx context.Context) {
	for ctx.Err() == nil {
		m.look(ctx)
		m.catchUp(ctx)
		fetches := m.poll(ctx)
		if fetches.IsClientClosed() {
			break
		}
		failed := m.note(fetches)
		records, fetched, held := m.take(fetches)
		m.catchUp(ctx)
		done, pause := m.send(ctx, records, held)
		if done {
			m.handled(fetched, held)
		}
		m.client.AllowRebalance()
		if failed && len(records) == 0 {
			pause = failedPause // the client would ask again at once
		}
		batch.Sleep(ctx, pause)
	}
	m.client.AllowRebalance() // one that waits for us holds up the commit too
	m.commitLast()
	m.leave()
	m.client.CloseAllowingRebalance()
	m.cut()
}

// send hands out those of records whose partitions are still assigned as they were. It reports whether all are done, and
// how long the next batch should gather.
func (m *member) send(ctx context.Context, records []batch.Record, held held) (done bool, pause time.Duration) {
	if records = m.owned(records, held); len(records) == 0 || ctx.Err() != nil {
		return ctx.Err() == nil, 0
	}
	m.held = held
	outcome := m.sender.Send(ctx, records)
	return outcome.Done == len(records), outcome.Gather
}

// poll waits for records, until there is something to catch up with, or for so long that it is time to look.
func (m *member) poll(ctx context.Context) kgo.Fetches {
	ctx, wake := context.WithDeadline(ctx, m.looked.Add(lookEvery))
	defer wake()
	m.mu.Lock()
	m.wake = wake
	behind := len(m.behind)
	m.mu.Unlock()
	if behind > 0 {
		wake()
	}
	return m.client.PollRecords(ctx, m.cfg.MaxBatch)
}

// leave leaves the group, or cuts the client off if that takes too long: a rebalance that is under way waits for members
// that are gone, for as long as their sessions last, and closing the client would wait for the rebalance.
func (m *member) leave() {
	defer m.cut()
	ctx, cancel := context.WithTimeout(m.ctx, time.Second)
	defer cancel()
	if err := m.client.LeaveGroupContext(ctx); err != nil {
		m.cfg.Logger.Debug("leaving the group failed; it ends with the session", "group", m.cfg.Group, "error", err)
	}
}

func (m *member) commitLast() {
	ctx, cancel := context.WithTimeout(m.ctx, 2*time.Second)
	defer cancel()
	if err := m.client.CommitMarkedOffsets(ctx); err != nil && m.cfg.Positions == nil {
		m.cfg.Logger.Warn("committing offsets at the end failed; the last messages will be handed out again", "error", err)
	}
}

// failedPause is the time between fetches that fail.
const failedPause = 250 * time.Millisecond

// note keeps the outcome of a fetch, and reports whether it has failed. franz-go goes on by itself after each error; an
// operator is told of the first.
func (m *member) note(fetches kgo.Fetches) (failed bool) {
	var first error
	fetches.EachError(func(topic string, _ int32, err error) {
		if topic == "" && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
			return // poll was woken
		}
		if errors.Is(err, kerr.UnknownTopicID) {
			m.stale[topic] = true
		}
		if first == nil {
			first = fmt.Errorf("fetch %s: %w", topic, err)
		}
	})
	if first != nil {
		m.fail(first)
	} else if fetches.NumRecords() > 0 {
		m.trouble.Store(nil)
	}
	return first != nil
}

func (m *member) fail(err error) {
	if errors.Is(err, context.Canceled) {
		return // a rebalance or the end of the subscription
	}
	t := &trouble{since: time.Now(), last: time.Now(), err: err}
	if before := m.trouble.Load(); before.current() {
		t.since = before.since
	} else {
		m.cfg.Logger.Warn("fetching fails, trying again", "group", m.cfg.Group, "error", err)
	}
	m.trouble.Store(t)
}

// current reports whether the trouble lasts: attempts fail again, within less than this time, as long as it does, while
// nothing says that a fetch from an idle topic has succeeded.
func (t *trouble) current() bool { return t != nil && time.Since(t.last) < 3*time.Second }

// take returns fetched records as those of a batch, and as they are. Records that do not follow the one before say that
// the bus has dropped some, or that the topic is another one by now: then the log has to be read first.
func (m *member) take(fetches kgo.Fetches) ([]batch.Record, []*kgo.Record, held) {
	m.mu.Lock()
	defer m.mu.Unlock()
	records, fetched := make([]batch.Record, 0, fetches.NumRecords()), make([]*kgo.Record, 0, fetches.NumRecords())
	held := make(held)
	fetches.EachPartition(func(f kgo.FetchTopicPartition) {
		key := Partition{f.Topic, f.Partition}
		p := m.parts[key]
		if p == nil || len(f.Records) == 0 {
			return
		}
		first := f.Records[0]
		if m.cfg.Positions != nil && p.next >= 0 && first.Offset != p.next && first.Offset != p.before {
			m.dropped(key, p.next, first.Offset)
		}
		p.end, p.oldest = f.HighWatermark, first.Timestamp
		p.next, p.before = first.Offset, -1
		held[key] = p
		for _, r := range f.Records {
			records, fetched = append(records, received(r)), append(fetched, r)
		}
	})
	return records, fetched, held
}

// handled notes that records are done.
func (m *member) handled(records []*kgo.Record, held held) {
	m.mu.Lock()
	last := make(map[*part]*kgo.Record, len(held))
	for _, r := range records {
		key := Partition{r.Topic, r.Partition}
		if p := m.parts[key]; p != nil && p == held[key] {
			p.next, p.oldest = r.Offset+1, time.Time{}
			last[p] = r
		}
	}
	m.mu.Unlock()
	m.client.MarkCommitRecords(slices.Collect(maps.Values(last))...)
}

// received returns a record as one of a batch. Nothing is decoded here: what can't be read fails in its handler, alone.
func received(r *kgo.Record) batch.Record {
	b := batch.Record{
		Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Key: string(r.Key), At: r.Timestamp, Value: r.Value,
		Headers: make([]batch.Header, 0, len(r.Headers)+1),
	}
	for _, h := range r.Headers {
		if h.Key == event.MetaEventID {
			b.ID = string(h.Value)
		} else {
			b.Headers = append(b.Headers, batch.Header{Key: h.Key, Value: string(h.Value)})
		}
	}
	if b.ID == "" {
		b.ID = r.Topic + "/" + strconv.Itoa(int(r.Partition)) + "/" + strconv.FormatInt(r.Offset, 10)
	} else {
		b.Headers = append(b.Headers, batch.Header{Key: event.MetaEventID, Value: b.ID})
	}
	return b
}

// again drops records of partitions that are another member's by now, and claims those anew of which that is not known.
func (m *member) again(rest []batch.Record) []batch.Record {
	m.client.AllowRebalance() // a database that is away must not hold up the group
	rest = m.owned(slices.Clone(rest), m.held)
	if m.cfg.Positions == nil {
		return rest
	}
	var lost []Partition
	for i := range rest {
		key := Partition{rest[i].Topic, rest[i].Partition}
		if !m.cfg.Positions.Claimed(key) && !slices.Contains(lost, key) {
			lost = append(lost, key)
		}
	}
	if len(lost) > 0 {
		ctx, cancel := context.WithTimeout(m.ctx, 5*time.Second)
		defer cancel()
		if _, err := m.claimPlaces(ctx, lost); err != nil {
			m.cfg.Logger.Debug("claiming partitions again failed", "group", m.cfg.Group, "error", err)
		}
	}
	return rest
}

func (m *member) assignedParts() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.parts)
}

func (m *member) assigned(_ context.Context, _ *kgo.Client, parts map[string][]int32) {
	m.joined.Store(true)
	if m.cfg.Positions != nil {
		return // they are ours once they are claimed
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for topic, ids := range parts {
		for _, id := range ids {
			m.parts[Partition{topic, id}] = &part{next: -1, before: -1}
		}
	}
}

// revoked gives partitions to another member; nothing of them is in flight then.
func (m *member) revoked(ctx context.Context, client *kgo.Client, parts map[string][]int32) {
	m.drop(parts)
	if err := client.CommitMarkedOffsets(ctx); err != nil && m.cfg.Positions == nil {
		m.cfg.Logger.Warn("committing offsets before a rebalance failed; messages will be handed out again", "error", err)
	}
}

// lost is called with partitions that another member has already.
func (m *member) lost(_ context.Context, _ *kgo.Client, parts map[string][]int32) { m.drop(parts) }

func (m *member) drop(parts map[string][]int32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for topic, ids := range parts {
		for _, id := range ids {
			delete(m.parts, Partition{topic, id})
			delete(m.behind, Partition{topic, id})
		}
	}
}

// claim says where newly assigned partitions are to be read on; what the group has committed does not matter.
func (m *member) claim(ctx context.Context, committed map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	<-m.ready
	var keys []Partition
	for topic, ids := range committed {
		for id := range ids {
			keys = append(keys, Partition{topic, id})
		}
	}
	if len(keys) == 0 {
		return committed, nil
	}
	if err := m.identify(ctx, slices.Collect(maps.Keys(committed))); err != nil {
		m.fail(err)
		return nil, err
	}
	places, err := m.claimPlaces(ctx, keys)
	if err != nil {
		m.fail(err)
		return nil, err
	}
	bounds, err := m.bounds(ctx)
	if err != nil {
		m.fail(err)
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, place := range places {
		p := m.begin(place, bounds[place.Partition])
		m.parts[place.Partition] = p
		committed[place.Topic][place.Partition.Partition] = kgo.NewOffset().At(p.next).WithEpoch(-1)
	}
	if len(m.behind) > 0 && m.wake != nil {
		m.wake()
	}
	return committed, nil
}

// begin returns an assigned partition, to be read on from a place or, if the bus does not have what is there, from where
// the partition begins. The lock is held.
func (m *member) begin(place Place, b bounds) *part {
	p := &part{next: place.Offset, before: -1, end: b.end}
	if b.start <= place.Offset && place.Offset <= b.end {
		return p
	}
	p.next = b.start
	dropped := int64(0)
	if place.Offset >= 0 {
		dropped = max(0, b.start-place.Offset)
	}
	m.gap(place.Partition, dropped)
	if place.Position > 0 {
		m.cfg.Logger.Error("the bus does not have what was not read yet; it is read from the event log", "group", m.cfg.Group,
			"topic", place.Topic, "partition", place.Partition.Partition, "dropped", dropped)
	}
	return p
}

// claimPlaces claims partitions of the topics that they were assigned of, and says how far the consumer is.
func (m *member) claimPlaces(ctx context.Context, keys []Partition) ([]Place, error) {
	m.mu.Lock()
	ids := maps.Clone(m.ids)
	m.mu.Unlock()
	return m.cfg.Positions.Claim(ctx, ids, keys)
}
