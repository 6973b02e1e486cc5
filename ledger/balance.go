package ledger

import (
	"strings"
	"time"

	"github.com/cornjacket/platform-services/event"
)

// balance draws up the ledger of what the log and its consumers say.
func balance(at time.Time, log logView, consumers []consumerView) Ledger {
	l := Ledger{
		At: at, Duplicates: log.duplicates,
		Applied: map[string]int64{}, DeadLettered: log.letters, Pending: map[string]int64{}, Lag: map[string]Lag{},
		Missing: []Missing{}, Topics: []TopicCounts{}, Consumers: []ConsumerCounts{},
	}
	published := log.published(consumers)
	var onTheWay int64
	for _, t := range event.Topics() {
		c := TopicCounts{
			Topic: t, Sequenced: log.passed[t] + log.tail[t], Published: published[t],
			DeadLettered: log.deadPassed[t] + log.deadTail[t],
		}
		l.Sequenced += c.Sequenced
		l.Published += c.Published
		onTheWay += c.Sequenced - c.Published - c.DeadLettered
		l.Topics = append(l.Topics, c)
	}
	l.Accepted = l.Sequenced + l.Duplicates + log.outbox + log.setAside
	pend(&l, StageOutbox, log.outbox, "accepted and not in the event log yet")
	pend(&l, StageRelay, onTheWay, "in the event log and not acknowledged by the bus yet")
	for _, v := range consumers {
		c := ConsumerCounts{
			Consumer: v.Name, Topics: v.Topics, Published: published.of(v.Topics...),
			Applied: v.applied, DeadLettered: v.lost, Complete: v.complete,
		}
		l.Applied[v.Name], l.DeadLettered[v.Name] = v.applied, v.letters
		if v.complete {
			c.Pending = c.Published - c.Applied - c.DeadLettered
			what := "published on " + strings.Join(v.Topics, ", ") + ", and neither applied nor a dead letter yet"
			if c.Pending < 0 {
				what = "more applied or dead letters than were published: something was applied twice, or is gone from the log"
			}
			pend(&l, v.Name, c.Pending, what)
		}
		l.Consumers = append(l.Consumers, c)
	}
	l.Balanced = len(l.Missing) == 0
	return l
}

// pend notes how many events wait at a stage; what does not balance is missing, or too much.
func pend(l *Ledger, stage string, events int64, what string) {
	l.Pending[stage] = events
	if events != 0 {
		l.Missing = append(l.Missing, Missing{Stage: stage, Events: events, Detail: what})
	}
}

// published counts what the bus has, per topic. The cursor is saved some time after it has moved, so what a consumer has
// is on the bus as well, as far as the log has it; more than that is a fault, to be seen as one.
func (v *logView) published(consumers []consumerView) perTopic {
	published := perTopic{}
	for t, n := range v.passed {
		published[t] = n - v.deadPassed[t]
	}
	for _, c := range consumers {
		ahead := c.applied + c.lost - published.of(c.Topics...)
		for _, t := range c.Topics {
			more := min(ahead, v.passed[t]+v.tail[t]-v.deadPassed[t]-v.deadTail[t]-published[t])
			if more > 0 && c.complete {
				published[t] += more
				ahead -= more
			}
		}
	}
	return published
}
