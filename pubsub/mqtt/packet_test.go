package mqtt

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// The broker keeps back what is too large for memory, and says at the start that it would take it from devices.
func TestPacketsAreBounded(t *testing.T) {
	t.Parallel()
	b := newBroker(t, "")
	var said lines
	s := subscribe(t, b.url(), func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&said, nil)) })
	require.Zero(t, s.waitUp().MaximumPacketSize)
	require.Contains(t, said.String(), "level=WARN msg=\"MQTT broker takes packets from devices that it can't hand on")
	p := newPublisher(t, b)
	p.publish(topic1, strings.Repeat("x", maxPacket))
	p.publish(topic1, strings.Repeat("y", maxPacket-1024))
	require.Len(t, s.collect(1)[0], maxPacket-1024, "the one before is not sent")

	b = newBroker(t, fmt.Sprintf("max_packet_size %d", BrokersMaxPacket))
	var quiet lines
	s = subscribe(t, b.url(), func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&quiet, nil)) })
	require.EqualValues(t, BrokersMaxPacket, s.waitUp().MaximumPacketSize)
	require.NotContains(t, quiet.String(), "WARN")
	require.Contains(t, quiet.String(), "own_maximum_packet_size=4194304")
}

// lines is a log that may be read while it is written.
type lines struct {
	mu  sync.Mutex
	buf strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}
