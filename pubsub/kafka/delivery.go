package kafka

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cornjacket/platform-services/pubsub/batch"
)

// delivery is records on their way to the bus.
type delivery struct {
	id      deliveryID
	done    chan struct{}
	refused []batch.Refusal // in the order of the records
	err     error           // the publisher was closed first
}

// deliveryID tells one batch from another.
type deliveryID struct {
	records     int
	offset      int64
	first, last string
}

// start begins to produce records, in order. It is called with the mutex held.
func (p *Publisher) start(records []*kgo.Record) (*delivery, error) {
	if p.closed {
		return nil, ErrClosed
	}
	d := &delivery{done: make(chan struct{})}
	p.running.Go(func() {
		defer close(d.done)
		d.refused, d.err = p.place(records)
	})
	return d, nil
}

// Bounds of the pause before records that failed are produced again; it doubles with each time.
const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = time.Second
)

// patience is how often a record must be refused alone before it counts as one that no broker will ever take.
const patience = 3

// attempt is a record that is not acknowledged yet.
type attempt struct {
	index   int
	record  *kgo.Record
	refused int // times, alone
}

// place produces records until each is acknowledged or refused alone. What fails is produced again in its order, and
// nothing newer of its partition is on the bus then. A broker refuses batches, and means one record, so after a refusal
// fewer of each partition are produced at once.
func (p *Publisher) place(records []*kgo.Record) (refused []batch.Refusal, err error) {
	p.placing.Lock()
	defer p.placing.Unlock()
	left := make([]attempt, 0, len(records))
	for i, r := range records {
		left = append(left, attempt{index: i, record: r})
	}
	p.attempting()
	most, backoff := len(records), minBackoff // records of a partition at once
	for len(left) > 0 {
		fresh, err := p.know(left)
		if err != nil {
			if !p.again(err, &backoff) {
				return nil, ErrClosed
			}
			continue
		}
		now, later := p.split(left, most, fresh)
		failed := p.produce(now)
		alone := most == 1 || len(now) == 1
		var bad, cause error
		left = nil
		for _, a := range now {
			err := failed[a.record]
			switch {
			case err == nil && fresh:
				p.spreadOf(a.record.Topic).used = true
			case err == nil:
			case hopeless(err) && alone && a.refused+1 >= patience:
				refused = append(refused, batch.Refusal{Index: a.index, Err: err})
			case hopeless(err):
				if bad = err; alone {
					a.refused++
				}
				left = append(left, a)
			default:
				cause = err
				left = append(left, a)
			}
		}
		left = inOrder(append(left, later...))
		switch {
		case bad != nil && alone:
			cause = cmp.Or(cause, bad)
		case bad != nil:
			most = max(1, min(most, len(now))/2)
		case cause == nil:
			most, backoff = 2*most, minBackoff
		}
		if cause != nil {
			p.heal(now, failed)
			if !p.again(cause, &backoff) {
				return nil, ErrClosed
			}
		}
	}
	p.succeeded()
	slices.SortFunc(refused, func(a, b batch.Refusal) int { return a.Index - b.Index })
	return refused, nil
}

func inOrder(left []attempt) []attempt {
	slices.SortFunc(left, func(a, b attempt) int { return a.index - b.index })
	return left
}

// split returns the first records of each partition, and all others. Of a topic that the client has not produced to it
// returns one record alone: until the client knows its partitions it holds records elsewhere, see produce.
func (p *Publisher) split(left []attempt, most int, fresh bool) (now, later []attempt) {
	if most >= len(left) && !fresh {
		return left, nil
	}
	type place struct {
		topic     string
		partition int32
	}
	taken := map[place]int{}
	for _, a := range left {
		at, limit := place{a.record.Topic, 0}, 1
		if s := p.spreadOf(at.topic); s.used {
			at.partition, limit = partitionOf(a.record.Key, s.partitions), most
		}
		if taken[at]++; taken[at] <= limit {
			now = append(now, a)
		} else {
			later = append(later, a)
		}
	}
	return now, later
}

// produce hands records to the client in order, waits until each has its answer, and returns the errors. When one fails
// the client fails all that it holds of its partition, and goes on with what it is given later. So it has to hold all of
// them before it sends the first.
func (p *Publisher) produce(records []attempt) map[*kgo.Record]error {
	var failed map[*kgo.Record]error
	var answers sync.WaitGroup
	answers.Add(len(records))
	promise := func(r *kgo.Record, err error) { // promises run one at a time
		if err != nil {
			if failed == nil {
				failed = map[*kgo.Record]error{}
			}
			failed[r] = err
		}
		answers.Done()
	}
	for _, a := range records {
		p.client.Produce(p.ctx, a.record, promise)
	}
	_ = p.client.Flush(p.ctx) // ends early only when the publisher closes, and then each record has an error
	answers.Wait()
	return failed
}

// hopeless reports whether a broker will never take a record, or one of those that were produced with it.
func hopeless(err error) bool {
	return errors.Is(err, kerr.MessageTooLarge) || errors.Is(err, kerr.InvalidRecord) || errors.Is(err, kerr.RecordListTooLarge)
}

// heal makes the client look for topics anew that it says are not there: it never adopts one that was made anew.
func (p *Publisher) heal(records []attempt, failed map[*kgo.Record]error) {
	gone := map[string]bool{}
	for _, a := range records {
		if err := failed[a.record]; errors.Is(err, kerr.UnknownTopicID) || errors.Is(err, kerr.UnknownTopicOrPartition) {
			gone[a.record.Topic] = true
		}
	}
	for topic := range gone {
		p.cfg.Log.Warn("the bus does not know a topic any more, looking for it anew", "topic", topic)
		p.client.PurgeTopicsFromProducing(topic)
		p.topics.Delete(topic)
	}
}

// attempting notes that records are on their way, if nothing worse is known.
func (p *Publisher) attempting() {
	p.outcome.CompareAndSwap(nil, &outcome{since: time.Now()})
}

func (p *Publisher) succeeded() {
	if o := p.outcome.Swap(nil); o != nil && o.err != nil {
		p.cfg.Log.Info("publishing to the bus succeeds again", "failed_for", time.Since(o.since).Round(time.Millisecond))
	}
}

// again notes an error and waits a moment before the next attempt. It reports whether there is to be one.
func (p *Publisher) again(err error, backoff *time.Duration) bool {
	if p.ctx.Err() != nil {
		return false
	}
	before, since := p.outcome.Load(), time.Now()
	if before != nil && before.err != nil {
		since = before.since
	} else {
		p.cfg.Log.Error("publishing to the bus fails, trying again", "error", err)
	}
	p.outcome.Store(&outcome{since, fmt.Errorf("publish: %w", err)})
	pause := *backoff
	*backoff = min(2*pause, maxBackoff)
	return batch.Sleep(p.ctx, pause)
}
