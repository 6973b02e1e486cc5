package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// requests are whole HTTP/1.1 requests, made before the clock runs.
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

// answerLimit is how long the connections together may be without an answer while requests are under way.
const answerLimit = 30 * time.Second

// clients are keep-alive connections with one request under way on each, served by one goroutine that asks the system
// which of them are ready. The load generator shares the processors with what it measures: with net/http's transport it
// took as much as half of the platform's own work, with a goroutine a connection a sixth.
type clients struct {
	conns []*conn
	polls []unix.PollFd // of conns, in their order
	idle  []*conn
}

type conn struct {
	file   *os.File
	fd     int
	answer []byte // what has been read of it
}

func dialClients(ctx context.Context, addr string, n int) (*clients, error) {
	c := &clients{}
	for range n {
		if err := c.dial(ctx, addr); err != nil {
			return nil, errors.Join(err, c.close())
		}
	}
	return c, nil
}

func (c *clients) dial(ctx context.Context, addr string) error {
	connected, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer connected.Close() //nolint:errcheck // the file is a duplicate
	file, err := connected.(*net.TCPConn).File()
	if err != nil {
		return fmt.Errorf("take over the connection: %w", err)
	}
	fd := int(file.Fd())
	if err := syscall.SetNonblock(fd, true); err != nil {
		return errors.Join(fmt.Errorf("take over the connection: %w", err), file.Close())
	}
	con := &conn{file: file, fd: fd}
	c.conns, c.idle = append(c.conns, con), append(c.idle, con)
	c.polls = append(c.polls, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	return nil
}

func (c *clients) close() error {
	var errs []error
	for _, con := range c.conns {
		errs = append(errs, con.file.Close())
	}
	return errors.Join(errs...)
}

// send sends n of the requests in turn, rate a second or, if that is 0, as fast as they are answered, each of which must
// be accepted. One that can't be told to have failed or not is an error too: it is not sent again, since the event has no
// ID of its own.
func (c *clients) send(ctx context.Context, all [][]byte, n int, rate float64) error {
	const look = 100 * time.Millisecond // how often ctx is looked at
	begin, heard := time.Now(), time.Now()
	for next := 0; next < n || len(c.idle) < len(c.conns); {
		wait := look
		for ; next < n && len(c.idle) > 0; next++ {
			if rate > 0 {
				if due := time.Until(begin.Add(time.Duration(float64(next) / rate * float64(time.Second)))); due > 0 {
					wait = min(due, look)
					break
				}
			}
			con := c.idle[len(c.idle)-1]
			c.idle = c.idle[:len(c.idle)-1]
			if err := con.write(all[next%len(all)]); err != nil {
				return err
			}
		}
		ready, err := c.await(wait)
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case ready > 0 || len(c.idle) == len(c.conns):
			heard = time.Now()
		case time.Since(heard) > answerLimit:
			return fmt.Errorf("%d requests have had no answer for %s", len(c.conns)-len(c.idle), answerLimit)
		}
	}
	return nil
}

// await waits until connections have something to read, and reads it.
func (c *clients) await(wait time.Duration) (ready int, err error) {
	ready, err = unix.Poll(c.polls, int((wait+time.Millisecond-1)/time.Millisecond))
	if errors.Is(err, syscall.EINTR) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("wait for answers: %w", err)
	}
	for i := range c.polls {
		if c.polls[i].Revents == 0 {
			continue
		}
		done, err := c.conns[i].read()
		if err != nil {
			return 0, err
		}
		if done {
			c.idle = append(c.idle, c.conns[i])
		}
	}
	return ready, nil
}

func (c *conn) write(request []byte) error {
	n, err := syscall.Write(c.fd, request)
	if err == nil && n < len(request) {
		err = io.ErrShortWrite // nothing else is under way on the connection, so there is always room
	}
	if err != nil {
		return fmt.Errorf("send event: %w", err)
	}
	return nil
}

// read reads what is there; done says that it is the whole answer.
func (c *conn) read() (done bool, err error) {
	var chunk [4 << 10]byte
	n, err := syscall.Read(c.fd, chunk[:])
	switch {
	case errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("read answer: %w", err)
	case n == 0:
		return false, fmt.Errorf("read answer: %w", io.ErrUnexpectedEOF)
	}
	c.answer = append(c.answer, chunk[:n]...)
	if done, err = whole(c.answer); done {
		c.answer = c.answer[:0]
	}
	return done, err
}

var (
	statusAccepted = []byte("HTTP/1.1 202 ")
	endOfHeader    = []byte("\r\n\r\n")
	contentLength  = []byte("\r\nContent-Length: ")
)

// whole reports whether an answer is complete. One that does not say that its event is accepted is an error.
func whole(answer []byte) (bool, error) {
	header, body, ok := bytes.Cut(answer, endOfHeader)
	if !ok {
		return false, nil
	}
	_, length, ok := bytes.Cut(header, contentLength)
	if !ok {
		return false, fmt.Errorf("answer has no Content-Length: %q", header)
	}
	length, _, _ = bytes.Cut(length, endOfHeader[:2])
	size, err := strconv.Atoi(string(length))
	if err != nil {
		return false, fmt.Errorf("answer has a Content-Length that is no number: %q", header)
	}
	if len(body) < size {
		return false, nil
	}
	if bytes.HasPrefix(answer, statusAccepted) {
		return true, nil
	}
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(answer)), nil)
	if err != nil {
		return false, fmt.Errorf("read answer: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // it is in memory
	return true, accepted(resp)
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
