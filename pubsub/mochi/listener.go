package mochi

import (
	"fmt"
	"net"
	"sync"
	"time"
)

// maxConnect is how long a new connection may take to send its CONNECT.
const maxConnect = 10 * time.Second

// listener remembers its connections, so that they can be closed.
type listener struct {
	net.Listener
	mu     sync.Mutex
	conns  map[*conn]struct{}
	closed bool
}

type conn struct {
	net.Conn
	l *listener
}

// Accept waits for the next connection, whose first packet must come within maxConnect; mochi sets the deadlines after
// that from the client's keep alive.
func (l *listener) Accept() (net.Conn, error) {
	for {
		nc, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &conn{Conn: nc, l: l}
		if err := nc.SetDeadline(time.Now().Add(maxConnect)); err != nil || !l.add(c) {
			_ = nc.Close() // it was never used
			continue
		}
		return c, nil
	}
}

func (l *listener) add(c *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.conns[c] = struct{}{}
	}
	return !l.closed
}

// closeConns closes all connections, and those that are still to come.
func (l *listener) closeConns() {
	l.mu.Lock()
	l.closed = true
	conns := make([]*conn, 0, len(l.conns))
	for c := range l.conns {
		conns = append(conns, c)
	}
	l.mu.Unlock()
	for _, c := range conns {
		_ = c.Close() // its client is gone or does not listen
	}
}

func (c *conn) Close() error {
	c.l.mu.Lock()
	delete(c.l.conns, c)
	c.l.mu.Unlock()
	if err := c.Conn.Close(); err != nil {
		return fmt.Errorf("close MQTT connection: %w", err)
	}
	return nil
}
