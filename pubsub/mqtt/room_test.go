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
	session := s.session()
	paused := func() bool { return session.pinger.paused.Load() }
	held := func() int {
		session.inbox.mu.Lock()
		defer session.inbox.mu.Unlock()
		return session.inbox.held
	}
	m := s.next() // and it takes its time
	first := len(values(m))
	require.Eventually(t, paused, wait, 10*time.Millisecond)
	// Long enough for pings to be missed.
	require.Never(t, func() bool { return !s.Connected() || held() > buffer }, silentFor+time.Second, 50*time.Millisecond)
	require.Equal(t, 1, line.accepted())

	line.cut()
	s.waitUp()
	require.Eventually(t, paused, wait, 10*time.Millisecond)
	m.Nack() // its connection is gone
	var all []string
	for len(all) < n {
		m := s.next()
		all = append(all, values(m)...)
		m.Ack()
	}
	for i := range all {
		require.Equal(t, body(i), all[i])
	}
	require.Less(t, first, n)
	require.False(t, paused())
	require.Equal(t, 2, line.accepted())
}
