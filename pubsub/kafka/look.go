package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

const (
	// lookEvery is how often a member looks at its topics. What happens to an idle one is told by no fetch.
	lookEvery = 2 * time.Second
	// lookTimeout bounds one look: nothing is fetched meanwhile.
	lookTimeout = 2 * time.Second
)

// look finds out what fetches don't tell: that a topic was deleted or made anew, and that all is dropped that was to be
// read next. It is called between batches.
func (m *member) look(ctx context.Context) {
	if time.Since(m.looked) < lookEvery {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	defer func() { m.looked = time.Now() }()
	topics, err := kadm.NewClient(m.client).ListTopics(ctx, m.topics...)
	if err != nil {
		m.refused(fmt.Errorf("ask for the topics %v: %w", m.topics, err))
		return
	}
	for name, t := range topics {
		switch {
		case t.Err != nil:
			m.refused(fmt.Errorf("ask for topic %s: %w", name, t.Err))
		case m.anew(name, uuid.UUID(t.ID)):
			m.adopt(name)
		}
	}
	if err := m.refresh(ctx); err != nil {
		m.refused(err)
		return
	}
	m.overtaken()
}

// refused notes what the brokers have answered. That they don't answer is not known to last: the client tries again.
func (m *member) refused(err error) {
	var answer *kerr.Error
	if errors.As(err, &answer) {
		m.fail(err)
	}
}

// anew reports whether a topic is not the one any more whose partitions were assigned.
func (m *member) anew(topic string, id uuid.UUID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	known, ok := m.ids[topic]
	if !ok && m.cfg.Positions == nil {
		m.ids[topic] = id
	}
	return m.stale[topic] || ok && known != id
}

// adopt takes up a topic that was made anew under its name: the client never does by itself. Its partitions are assigned
// again, and claimed as those of another topic.
func (m *member) adopt(topic string) {
	m.cfg.Logger.Warn("a topic was made anew, taking it up", "group", m.cfg.Group, "topic", topic)
	m.client.AllowRebalance()
	m.mu.Lock()
	for key := range m.parts {
		if key.Topic == topic {
			delete(m.parts, key)
			delete(m.behind, key)
		}
	}
	delete(m.ids, topic)
	m.mu.Unlock()
	delete(m.stale, topic)
	m.client.PurgeTopicsFromConsuming(topic)
	m.client.AddConsumeTopics(topic)
}

// identify remembers the topics whose partitions are being assigned.
func (m *member) identify(ctx context.Context, topics []string) error {
	found, err := kadm.NewClient(m.client).ListTopics(ctx, topics...)
	if err == nil {
		err = found.Error()
	}
	if err != nil {
		return fmt.Errorf("ask for the topics %v: %w", topics, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, t := range found {
		m.ids[name] = uuid.UUID(t.ID)
	}
	return nil
}

// overtaken notes partitions that begin behind what was to be read next. On an idle topic no record would tell.
func (m *member) overtaken() {
	if m.cfg.Positions == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, p := range m.parts {
		if start := m.ends[key].start; p.next >= 0 && start > p.next {
			m.dropped(key, p.next, start)
			p.before, p.next = p.next, start // what is fetched already may still come
		}
	}
}
