package mqtt

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Conn is a connection to a broker whose reads are buffered: the MQTT client reads a packet in three small pieces,
// which would be three system calls. It has the lock that the client takes around the writes of one packet.
type Conn struct {
	net.Conn
	sync.Mutex
	buf *bufio.Reader

	errMu   sync.Mutex
	readErr error
}

// Dial connects to the broker at u, with TLS if its scheme says so. Websocket URLs are not for it.
func Dial(ctx context.Context, u *url.URL, cfg *tls.Config, timeout time.Duration) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	secure := isTLS(u)
	host := u.Host
	if u.Port() == "" {
		port := "1883"
		if secure {
			port = "8883"
		}
		host = net.JoinHostPort(u.Hostname(), port)
	}
	var conn net.Conn
	var err error
	if secure {
		conn, err = (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", host)
	} else {
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", host)
	}
	if err != nil {
		return nil, fmt.Errorf("dial MQTT broker %s: %w", host, err)
	}
	return &Conn{Conn: conn, buf: bufio.NewReaderSize(conn, 64<<10)}, nil
}

func isTLS(u *url.URL) bool {
	switch strings.ToLower(u.Scheme) {
	case "mqtts", "ssl", "tls":
		return true
	}
	return false
}

func isWebsocket(u *url.URL) bool {
	s := strings.ToLower(u.Scheme)
	return s == "ws" || s == "wss"
}

// Read reads from the buffer, filling it as needed.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.buf.Read(p)
	if err != nil {
		c.errMu.Lock()
		if c.readErr == nil {
			c.readErr = err
		}
		c.errMu.Unlock()
	}
	return n, err
}

// cause returns the first error of reading, nil if there was none.
func (c *Conn) cause() error {
	c.errMu.Lock()
	defer c.errMu.Unlock()
	return c.readErr
}
