package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// requests are whole HTTP/1.1 requests, made before the clock runs: the load generator shares the processors with what
// it measures, and the transport of net/http costs as much as half of the platform's own work.
func requests(target string, bodies [][]byte) (addr string, all [][]byte, err error) {
	u, err := url.Parse(target)
	if err != nil {
		return "", nil, fmt.Errorf("parse %s: %w", target, err)
	}
	for _, body := range bodies {
		all = append(all, fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
			u.RequestURI(), u.Host, len(body), body))
	}
	return u.Host, all, nil
}

// conn is one keep-alive connection with one request under way.
type conn struct {
	net.Conn
	answers *bufio.Reader
}

func dialHTTP(ctx context.Context, addr string) (*conn, error) {
	c, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	return &conn{c, bufio.NewReader(c)}, nil
}

// send sends a request whose event must be accepted. One that can't be told to have failed or not is an error too: it is
// not sent again, since the event has no ID of its own.
func (c *conn) send(request []byte) error {
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	if _, err := c.Write(request); err != nil {
		return fmt.Errorf("send event: %w", err)
	}
	resp, err := http.ReadResponse(c.answers, nil)
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	return accepted(resp)
}

// accepted reads an answer to its end, and fails unless it says that what was sent is accepted.
func accepted(resp *http.Response) error {
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if resp.StatusCode != http.StatusAccepted {
		return fmt.Errorf("events were not accepted: %s: %s", resp.Status, bytes.TrimSpace(answer))
	}
	return nil
}
