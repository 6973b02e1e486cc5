package kafka

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cornjacket/platform-services/pubsub/window"
)

// partition hands out the messages of one partition in a goroutine of its own, so that one whose window is full does
// not hold up the others. Fetching is paused while enough is waiting.
type partition struct {
	client  *kgo.Client
	window  int
	ahead   int // bytes that may be queued
	key     tp
	lane    *window.Lane[*kgo.Record]
	ctx     context.Context
	abandon context.CancelFunc // gives up what is in flight
	stop    context.CancelFunc // stops handing out
	done    chan struct{}

	next    atomic.Int64 // offset behind the acknowledged prefix; -1 while nothing was acknowledged
	fetched atomic.Int64 // offset behind the newest record that was fetched
	end     atomic.Int64 // of the partition when it was last fetched

	mu     sync.Mutex
	more   chan struct{}
	queue  []*kgo.Record
	stamps []stamp // see seen
	bytes  int     // of what is queued
	paused bool
}

// Fetching of a partition is paused while more than this is waiting: so many windows, or half of its share of bytes. It
// goes on while half of that still waits, because a resumed partition has to wait for the fetch of the others to come
// back.
const (
	queueWindows = 4
	minShare     = 256 << 10 // of a member with very many partitions
)

// newPartition starts a partition that holds about share bytes: half of them in flight, half fetched ahead.
func newPartition(m *member, client *kgo.Client, key tp, share int) *partition {
	half := max(share, minShare) / 2
	p := &partition{client: client, window: m.cfg.Window, ahead: half, key: key, done: make(chan struct{}), more: make(chan struct{}, 1)}
	p.next.Store(-1)
	p.ctx, p.abandon = context.WithCancel(m.ctx)
	p.lane = window.NewLane(p.ctx, m.out, window.LaneConfig[*kgo.Record]{
		Size:     m.cfg.Window,
		MaxBytes: half,
		Advance: func(r *kgo.Record) {
			p.next.Store(r.Offset + 1)
			client.MarkCommitRecords(r)
		},
	})
	sendCtx, stop := context.WithCancel(p.ctx)
	p.stop = stop
	go p.run(sendCtx)
	return p
}

// push queues fetched records of a partition that ended at an offset. It is called by the one polling goroutine and
// never blocks.
func (p *partition) push(records []*kgo.Record, end int64) {
	p.fetched.Store(records[len(records)-1].Offset + 1)
	p.end.Store(end)
	p.mu.Lock()
	p.seen(records)
	p.queue = append(p.queue, records...)
	for _, r := range records {
		p.bytes += len(r.Value)
	}
	if !p.paused && (len(p.queue) >= queueWindows*p.window || p.bytes >= p.ahead) {
		p.paused = true
		p.client.PauseFetchPartitions(map[string][]int32{p.key.topic: {p.key.partition}})
	}
	p.mu.Unlock()
	select {
	case p.more <- struct{}{}:
	default:
	}
}

// pull takes up to a window of what is queued.
func (p *partition) pull() []*kgo.Record {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := min(len(p.queue), max(p.window, 1))
	records := p.queue[:n:n]
	p.queue = p.queue[n:]
	if len(p.queue) == 0 {
		p.queue = nil
	}
	for _, r := range records {
		p.bytes -= len(r.Value)
	}
	if p.paused && len(p.queue) <= queueWindows*p.window/2 && p.bytes <= p.ahead/2 {
		p.resume()
	}
	return records
}

// resume is called with the lock held.
func (p *partition) resume() {
	p.paused = false
	p.client.ResumeFetchPartitions(map[string][]int32{p.key.topic: {p.key.partition}})
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
		for records := p.pull(); len(records) > 0; records = p.pull() {
			if !p.send(ctx, records) {
				return
			}
		}
	}
}

func (p *partition) send(ctx context.Context, records []*kgo.Record) bool {
	for _, r := range records {
		src := window.Source{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Key: string(r.Key)}
		if !p.lane.Send(ctx, p.ctx, received(r), r, src) {
			return false
		}
	}
	return true
}

// close stops handing out; what is in flight may still be acknowledged.
func (p *partition) close() {
	p.stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queue, p.bytes = nil, 0
	if p.paused { // a pause outlives the assignment
		p.resume()
	}
}
