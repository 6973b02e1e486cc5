package kafka_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cornjacket/platform-services/pubsub/batch"
	"github.com/cornjacket/platform-services/pubsub/kafka"
)

// Records are dropped before a consumer that was away has read them: they come from the log, before newer ones.
func TestSubscriberCatchesUpAfterItWasAway(t *testing.T) {
	onEach(t, apache, func(t *testing.T, newBroker newBrokerFunc) {
		b := newBus(t, newBroker, 2)
		c := &consumer{table: newTable(), group: "g"}
		b.publish(30)
		first := b.start(c)
		b.settled(c.table, first)
		require.NoError(t, first.Close())
		left := c.places()
		b.publish(100)
		b.drop(20)
		b.publish(10)
		b.mu.Lock()
		b.gate, b.calls = make(chan struct{}), nil
		b.mu.Unlock()
		second := b.start(c)
		require.Eventually(t, func() bool {
			partitions, _ := second.Missed()
			return partitions > 0 && b.lastCall() != nil
		}, soon, tick)
		partitions, records := second.Missed()
		var missing int64
		behind := 0
		for _, place := range left {
			if place.Offset < 20 {
				missing += 20 - place.Offset
				behind++
			}
		}
		require.Equal(t, behind, partitions)
		require.Equal(t, missing, records)
		for _, place := range b.lastCall() {
			require.Equal(t, left[place.Partition], place)
		}
		require.Len(t, c.all(), 30, "nothing newer before that")
		close(b.gate)
		b.settled(c.table, second)
	})
}

// Records are dropped that a running consumer, held up in a batch, has not read: some of what is left, or all.
func TestSubscriberCatchesUpWhileItRuns(t *testing.T) {
	for name, before := range map[string]int64{"some": 150, "all": -1} {
		t.Run(name, func(t *testing.T) {
			onEach(t, apache, func(t *testing.T, newBroker newBrokerFunc) {
				b := newBus(t, newBroker, 2)
				h := newHeld()
				c := &consumer{table: newTable(), group: "g", before: h.before}
				cfg := b.subscriberConfig(c)
				cfg.MaxBytes = 2000 // so that the rest is not fetched already
				sub := b.established(c, cfg)
				b.publish(400)
				<-h.entered
				b.drop(before)
				close(h.release)
				b.settled(c.table, sub)
				require.NotEmpty(t, b.lastCall())
				b.publish(10)
				b.settled(c.table, sub)
			})
		})
	}
}

// A consumer that is new takes what the bus has dropped from the log.
func TestSubscriberNewOnAnOldTopic(t *testing.T) {
	onEach(t, apache, func(t *testing.T, newBroker newBrokerFunc) {
		b := newBus(t, newBroker, 3)
		b.publish(50)
		b.drop(-1)
		b.publish(50)
		c := &consumer{table: newTable(), group: "g"}
		sub := b.start(c)
		b.settled(c.table, sub)
		for _, place := range b.lastCall() {
			require.Zero(t, place.Position)
			require.EqualValues(t, -1, place.Offset)
		}
		calls := len(b.calls)
		require.NoError(t, sub.Close())
		b.publish(10)
		sub = b.start(c)
		b.settled(c.table, sub)
		require.Len(t, b.calls, calls, "it knows its place")
	})
}

// Keys stay in their partitions when a topic is given more of them: the log is read as the bus was written.
func TestSubscriberCatchesUpWithKeysInTheirPartitions(t *testing.T) {
	t.Parallel()
	b := newBus(t, newBroker, 5)
	over := func(context.Context, string, int) (int, error) { return 2, nil }
	p, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: b.brokers(), Partitions: over})
	require.NoError(t, err)
	defer func() { require.NoError(t, p.Close()) }()
	b.publisher = p
	c := &consumer{table: newTable(), group: "g"}
	cfg := b.subscriberConfig(c)
	cfg.Partitions = over
	require.NoError(t, b.established(c, cfg).Close())
	b.publish(50)
	b.drop(-1)
	b.settled(c.table, b.startWith(c, cfg))
}

// A topic is deleted, and made anew under its name: the subscriber goes on, with what was lost from the log.
func TestSubscriberTakesUpATopicMadeAnew(t *testing.T) {
	onEach(t, apache, func(t *testing.T, newBroker newBrokerFunc) {
		b := newBus(t, newBroker, 3)
		c := &consumer{table: newTable(), group: "g"}
		h := newHeld()
		c.before = h.before
		sub := b.established(c, b.subscriberConfig(c))
		b.publish(20)
		<-h.entered // what it has not read yet is lost with the topic
		b.anew()
		close(h.release)
		b.publish(20)
		b.settled(c.table, sub)
		require.Equal(t, 3, sub.Assigned())

		t.Run("again, with a gap that is seen, and fewer records than before", func(t *testing.T) {
			b.anew(func() {
				require.Eventually(t, func() bool {
					_, err := sub.Trouble()
					return err != nil
				}, soon, tick)
			})
			b.publish(2)
			b.settled(c.table, sub)
		})
		t.Run("while nothing flows", func(t *testing.T) {
			b.anew()
			require.Eventually(t, func() bool { return sub.Assigned() == 3 }, soon, tick)
			b.publish(30)
			b.settled(c.table, sub)
		})
	})
}

// anew deletes the topic, does something, and makes the topic anew.
func (b *bus) anew(meanwhile ...func()) {
	b.t.Helper()
	admin := kadm.NewClient(b.client())
	deleted, err := admin.DeleteTopics(b.t.Context(), b.topic)
	require.NoError(b.t, err)
	require.NoError(b.t, deleted.Error())
	require.Eventually(b.t, func() bool {
		found, err := admin.ListTopics(b.t.Context(), b.topic)
		return err == nil && found[b.topic].Err != nil
	}, soon, tick)
	for _, do := range meanwhile {
		do()
	}
	require.Eventually(b.t, func() bool {
		return kafka.EnsureTopics(b.t.Context(), b.client(), kafka.TopicConfig{Partitions: b.partitions, Replication: 1}, b.topic) == nil
	}, soon, 50*time.Millisecond)
}

// Without positions the group's offsets go with the topic.
func TestSubscriberTakesUpATopicMadeAnewWithoutPositions(t *testing.T) {
	onEach(t, apache, func(t *testing.T, newBroker newBrokerFunc) {
		b := newBus(t, newBroker, 2)
		p := b.publisher
		publish(t, p, b.topic, "k", 0, 10)
		_, out := b.subscribe(b.config("g"), "t")
		expect(t, out, 0, 10)
		b.anew()
		publish(t, p, b.topic, "k", 0, 5)
		expect(t, out, 0, 5)
	})
}

// Another member has claimed partitions without the group's knowing: they are claimed again.
func TestSubscriberClaimsAgain(t *testing.T) {
	onEach(t, apache, func(t *testing.T, newBroker newBrokerFunc) {
		b := newBus(t, newBroker, 2)
		h := newHeld()
		c := &consumer{table: newTable(), group: "g", before: h.before}
		sub := b.established(c, b.subscriberConfig(c))
		b.publish(40)
		<-h.entered
		other := &consumer{table: c.table}
		c.mu.Lock()
		for _, r := range c.rows {
			r.owner = other
		}
		c.mu.Unlock()
		close(h.release)
		b.settled(c.table, sub)
	})
}

// What is refused is not handed out again by a member that has lost its partition meanwhile.
func TestSubscriberDropsWhatItHasLost(t *testing.T) {
	onEach(t, apache, func(t *testing.T, newBroker newBrokerFunc) {
		b := newBus(t, newBroker, 2)
		table := newTable()
		var accept atomic.Bool
		batches := make(chan []batch.Record, 10_000)
		one := &consumer{table: table, group: "g", before: func(records []batch.Record) bool {
			batches <- records
			return accept.Load()
		}}
		first := b.established(one, b.subscriberConfig(one))
		b.publish(40)
		<-batches // it is refused until the end
		two := &consumer{table: table, group: "g"}
		second := b.start(two)
		require.Eventually(t, func() bool { return first.Assigned() == 1 && second.Assigned() == 1 }, soon, tick)
		lost := -1
		table.mu.Lock()
		for key, r := range table.rows {
			if r.owner == two {
				lost = int(key.Partition)
			}
		}
		table.mu.Unlock()
		require.NotEqual(t, -1, lost)
		for len(batches) > 0 {
			<-batches
		}
		<-batches // may have begun before
		for _, r := range <-batches {
			require.NotEqual(t, lost, int(r.Partition))
		}
		accept.Store(true)
		b.settled(table, second)
	})
}

// The log can't be read: that is told, and tried again.
func TestSubscriberTriesAgainToCatchUp(t *testing.T) {
	t.Parallel()
	b := newBus(t, newBroker, 2)
	b.publish(20)
	b.drop(-1)
	away := errors.New("the log is away")
	b.setErr(away)
	c := &consumer{table: newTable(), group: "g"}
	sub := b.start(c)
	require.Eventually(t, func() bool {
		_, err := sub.Trouble()
		return errors.Is(err, away)
	}, soon, tick)
	partitions, _ := sub.Missed()
	require.Equal(t, 2, partitions)
	b.setErr(nil)
	b.settled(c.table, sub)
}

// refusing returns a broker that refuses to hand out records, and to say where partitions begin and end, while it is told
// to. It counts the fetches that it has refused.
func refusing(t *testing.T, failure *kerr.Error, refuse *atomic.Bool, fetches *atomic.Int32) *broker {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(2, "t"), kfake.GroupMinSessionTimeout(500*time.Millisecond))
	require.NoError(t, err)
	t.Cleanup(cluster.Close)
	cluster.ControlKey(int16(kmsg.Fetch), func(r kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if !refuse.Load() {
			return nil, nil, false
		}
		fetches.Add(1)
		req := r.(*kmsg.FetchRequest)
		resp := req.ResponseKind().(*kmsg.FetchResponse)
		info := cluster.TopicInfo("t")
		topic := kmsg.NewFetchResponseTopic()
		topic.Topic, topic.TopicID = "t", info.TopicID
		for i := range int32(2) {
			p := kmsg.NewFetchResponseTopicPartition()
			p.Partition, p.ErrorCode = i, failure.Code
			topic.Partitions = append(topic.Partitions, p)
		}
		resp.Topics = append(resp.Topics, topic)
		return resp, nil, true
	})
	cluster.ControlKey(int16(kmsg.ListOffsets), func(r kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if !refuse.Load() || failure == kerr.UnknownTopicID { // such requests have names
			return nil, nil, false
		}
		req := r.(*kmsg.ListOffsetsRequest)
		resp := req.ResponseKind().(*kmsg.ListOffsetsResponse)
		for _, asked := range req.Topics {
			topic := kmsg.NewListOffsetsResponseTopic()
			topic.Topic = asked.Topic
			for _, part := range asked.Partitions {
				p := kmsg.NewListOffsetsResponseTopicPartition()
				p.Partition, p.ErrorCode = part.Partition, failure.Code
				topic.Partitions = append(topic.Partitions, p)
			}
			resp.Topics = append(resp.Topics, topic)
		}
		return resp, nil, true
	})
	return &broker{t: t, addr: cluster.ListenAddrs()[0], partitions: 2}
}

// Rights are taken away and given back, before the start and while nothing flows.
func TestSubscriberTellsThatFetchesAreRefused(t *testing.T) {
	t.Parallel()
	var refuse atomic.Bool
	var fetches atomic.Int32
	b := newBus(t, func(t *testing.T, _ int, _ ...string) *broker {
		return refusing(t, kerr.TopicAuthorizationFailed, &refuse, &fetches)
	}, 2)
	b.publish(10)
	refuse.Store(true)
	c := &consumer{table: newTable(), group: "g"}
	sub := b.start(c)
	for range 2 {
		require.Eventually(t, func() bool {
			_, err := sub.Trouble()
			return errors.Is(err, kerr.TopicAuthorizationFailed)
		}, soon, tick)
		refuse.Store(false)
		b.settled(c.table, sub) // trouble is gone too
		refuse.Store(true)
	}
	// It is not asked without end.
	require.Eventually(t, func() bool { return fetches.Load() >= 5 }, soon, tick)
	require.Less(t, fetches.Load(), int32(50))
	refuse.Store(false)
	b.publish(10)
	b.settled(c.table, sub)
}

// A fetch finds a topic made anew before anything else does, or when its new ID was taken for the old one's.
func TestSubscriberTakesUpATopicThatFetchesDoNotFind(t *testing.T) {
	t.Parallel()
	var refuse atomic.Bool
	var fetches atomic.Int32
	b := newBus(t, func(t *testing.T, _ int, _ ...string) *broker {
		return refusing(t, kerr.UnknownTopicID, &refuse, &fetches)
	}, 2)
	c := &consumer{table: newTable(), group: "g"}
	sub := b.established(c, b.subscriberConfig(c))
	claims := func() int { c.mu.Lock(); defer c.mu.Unlock(); return c.claims }
	before := claims()
	refuse.Store(true)
	require.Eventually(t, func() bool { return claims() > before }, soon, tick)
	refuse.Store(false)
	b.publish(10)
	b.settled(c.table, sub)
}
