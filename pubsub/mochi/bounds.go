package mochi

import (
	"log/slog"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// Bounds on what clients make the broker keep in memory.
const (
	maxSessionExpiry = 24 * 60 * 60 // seconds that a session is kept; nothing is on disk
	maxRetained      = 10_000       // retained messages
	maxRetainedBytes = 32 << 20     // their topics and payloads
	sampleEvery      = time.Minute
)

// retained counts what is retained, by topic.
type retained struct {
	mu    sync.Mutex
	sizes map[string]int
	bytes int
}

// fits notes a message that is to be retained, and reports whether it may be. An empty one clears its topic.
func (r *retained) fits(topic string, payload []byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	old, known := r.sizes[topic]
	if len(payload) == 0 {
		delete(r.sizes, topic)
		r.bytes -= old
		return true
	}
	size := len(topic) + len(payload)
	if r.bytes-old+size > maxRetainedBytes || !known && len(r.sizes) >= maxRetained {
		return false
	}
	r.sizes[topic] = size
	r.bytes += size - old
	return true
}

// OnRetainedExpired forgets a retained message that has run out.
func (h *hook) OnRetainedExpired(topic string) { h.b.retained.fits(topic, nil) }

// retain takes the retain flag off a publish that there is no room for: it is passed on, and not kept.
func (h *hook) retain(cl *mqtt.Client, pk *packets.Packet) {
	if pk.FixedHeader.Retain && !h.b.retained.fits(pk.TopicName, pk.Payload) {
		pk.FixedHeader.Retain = false
		h.b.sample.warn(h.b.log, "MQTT message not retained: there are too many", "client", cl.ID, "topic", pk.TopicName)
	}
}

// OnWill takes the retain flag off a last will that there is no room for.
func (h *hook) OnWill(_ *mqtt.Client, will mqtt.Will) (mqtt.Will, error) {
	if will.Retain && !h.b.retained.fits(will.TopicName, will.Payload) {
		will.Retain = false
	}
	return will, nil
}

// sample logs one of many lines that say the same, and how many it stands for: who is refused may try again at once, for
// ever.
type sample struct {
	mu   sync.Mutex
	said map[string]time.Time
	left map[string]int
}

func (s *sample) warn(log *slog.Logger, what string, args ...any) {
	s.mu.Lock()
	now := time.Now()
	if last, ok := s.said[what]; ok && now.Sub(last) < sampleEvery {
		s.left[what]++
		s.mu.Unlock()
		return
	}
	more := s.left[what]
	s.said[what], s.left[what] = now, 0
	s.mu.Unlock()
	log.Warn(what, append(args, "and_before", more)...)
}
