package mqtt

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A handler that does not keep up makes the subscriber stop reading, whatever the broker's window is. That costs neither
// the connection nor a message, and a connection that is lost meanwhile is made again.
func TestSlowHandlerStopsReading(t *testing.T) {
	t.Parallel()
	const n, size, buffer = 300, 2000, 20_000
	b := newBroker(t, "")
	line := newProxy(t, b.addr())
	s := subscribe(t, line.url(), func(c *Config) { c.Window, c.Buffer, c.CloseTimeout = n, buffer, 100*time.Millisecond })
	s.waitUp()
	p := newPublisher(t, b)
	body := func(i int) string { return fmt.Sprintf("%03d%s", i, strings.Repeat(".", size)) }
	for i := range n {
		p.publish(topic1, body(i))
	}
	session := s.subs[s.clientID(AllTopics)]
	paused := func() bool { return session.pinger.paused.Load() }
	held := func() int {
		session.mu.Lock()
		defer session.mu.Unlock()
		session.link.mu.Lock()
		defer session.link.mu.Unlock()
		return session.link.held
	}
	require.Eventually(t, paused, wait, 10*time.Millisecond)
	// Long enough for pings to be missed.
	require.Never(t, func() bool { return !s.Connected() || held() > buffer }, silentFor+time.Second, 50*time.Millisecond)
	require.Equal(t, 1, line.accepted())

	line.cut()
	s.waitUp()
	require.Eventually(t, paused, wait, 10*time.Millisecond)
	for i := range n {
		m := s.next()
		require.Equal(t, body(i), string(m.Payload))
		m.Ack()
	}
	require.False(t, paused())
	require.Equal(t, 2, line.accepted())
}
