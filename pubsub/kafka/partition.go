package kafka

import (
	"context"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cornjacket/platform-services/pubsub/window"
)

// partition hands out the messages of one partition in a goroutine of its own, so that one whose window is full does
// not hold up the others. Fetching is paused while enough is waiting.
type partition struct {
	client  *kgo.Client
	window  int
	key     tp
	lane    *window.Lane[mark]
	ctx     context.Context
	abandon context.CancelFunc // gives up what is in flight
	stop    context.CancelFunc // stops handing out
	done    chan struct{}

	mu     sync.Mutex
	more   chan struct{}
	queue  []*kgo.Record
	paused bool
}

// mark is what the lane knows of a message in flight.
type mark struct {
	record *kgo.Record
	done   context.CancelFunc // ends the message's context
}

func newPartition(m *member, client *kgo.Client, key tp) *partition {
	p := &partition{client: client, window: m.cfg.Window, key: key, done: make(chan struct{}), more: make(chan struct{}, 1)}
	p.ctx, p.abandon = context.WithCancel(m.ctx)
	p.lane = window.NewLane(p.ctx, m.out, window.LaneConfig[mark]{
		Size: m.cfg.Window,
		Advance: func(k mark) {
			k.done()
			client.MarkCommitRecords(k.record)
		},
	})
	sendCtx, stop := context.WithCancel(p.ctx)
	p.stop = stop
	go p.run(sendCtx)
	return p
}

// push queues fetched records. It is called by the one polling goroutine and never blocks.
func (p *partition) push(records []*kgo.Record) {
	p.mu.Lock()
	p.queue = append(p.queue, records...)
	if !p.paused && len(p.queue) >= 2*p.window {
		p.paused = true
		p.client.PauseFetchPartitions(map[string][]int32{p.key.topic: {p.key.partition}})
	}
	p.mu.Unlock()
	select {
	case p.more <- struct{}{}:
	default:
	}
}

func (p *partition) pull() []*kgo.Record {
	p.mu.Lock()
	defer p.mu.Unlock()
	records := p.queue
	p.queue = nil
	if p.paused {
		p.paused = false
		p.client.ResumeFetchPartitions(map[string][]int32{p.key.topic: {p.key.partition}})
	}
	return records
}

// run hands out until it is stopped, and then closes the lane.
func (p *partition) run(ctx context.Context) {
	defer close(p.done)
	defer p.lane.Close()
	for {
		select {
		case <-p.more:
		case <-ctx.Done():
			return
		}
		for _, r := range p.pull() {
			src := window.Source{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Key: string(r.Key)}
			msgCtx, done := context.WithCancel(p.ctx)
			if !p.lane.Send(ctx, msgCtx, received(r), mark{r, done}, src) {
				return // done is called with the context of the partition
			}
		}
	}
}

// close stops handing out; what is in flight may still be acknowledged.
func (p *partition) close() {
	p.stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queue = nil
	if p.paused { // a pause outlives the assignment
		p.client.ResumeFetchPartitions(map[string][]int32{p.key.topic: {p.key.partition}})
	}
}
