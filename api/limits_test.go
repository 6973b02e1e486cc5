package api

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// connect opens a connection on which nothing has been sent.
func connect(t *testing.T, base string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	return conn
}

// drip sends a byte now and then until the other side has enough, and returns what it said.
func drip(t *testing.T, conn net.Conn, head, endless string) string {
	t.Helper()
	_, err := io.WriteString(conn, head)
	require.NoError(t, err)
	ended := make(chan string, 1)
	go func() {
		said, _ := io.ReadAll(conn)
		ended <- string(said)
	}()
	sent := 0
	for tick := time.NewTicker(50 * time.Millisecond); ; {
		select {
		case said := <-ended:
			tick.Stop()
			require.Greater(t, sent, 1, "it was cut while it was sending")
			return said
		case <-tick.C:
			_, _ = conn.Write([]byte{endless[sent%len(endless)]}) // refused once it is cut
			sent++
		}
	}
}

// Slow clients (slowloris) lose their connections, however steadily they send.
func TestSlowClientsAreCut(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ head, endless string }{
		"request line": {"GET /", "a"},
		"headers":      {"POST /api/v1/events HTTP/1.1\r\nHost: x\r\n", "X-A: b\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := &memory{}
			said := drip(t, connect(t, ingestionServer(t, m)), c.head, c.endless)
			if said != "" { // net/http may say why
				require.Contains(t, said, "HTTP/1.1 400 Bad Request")
			}
		})
	}
	t.Run("silence", func(t *testing.T) {
		t.Parallel()
		_, err := connect(t, ingestionServer(t, &memory{})).Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
	})
}

// limited serves a handler with limits that a test has changed.
func limited(t *testing.T, change func(*http.Server), h http.Handler) string {
	t.Helper()
	s := Server(quiet())
	require.Positive(t, s.IdleTimeout)
	require.Positive(t, s.ReadTimeout)
	require.Positive(t, s.WriteTimeout)
	change(s)
	s.Handler = Wrap(quiet(), h)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		require.NoError(t, s.Close())
		require.ErrorIs(t, <-done, http.ErrServerClosed)
	})
	return "http://" + l.Addr().String()
}

func TestIdleConnectionsAreClosed(t *testing.T) {
	t.Parallel()
	conn := connect(t, limited(t, func(s *http.Server) { s.IdleTimeout = 100 * time.Millisecond }, http.NotFoundHandler()))
	_, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	require.NoError(t, err)
	said, err := io.ReadAll(conn)
	require.NoError(t, err, "it ends without a deadline of ours")
	require.Contains(t, string(said), "HTTP/1.1 404 Not Found")
}

func TestSlowReadersAreCut(t *testing.T) {
	t.Parallel()
	ended := make(chan error, 1)
	conn := connect(t, limited(t, func(s *http.Server) { s.WriteTimeout = time.Second }, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				ended <- err
				return
			}
		}
	})))
	_, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	require.NoError(t, err)
	require.Error(t, <-ended, "a client that does not read does not hold the handler")
}

func TestHeadersAreBounded(t *testing.T) {
	t.Parallel()
	base := ingestionServer(t, &memory{})
	for name, head := range map[string]string{
		"one":  "X-A: " + strings.Repeat("x", 64<<10) + "\r\n",
		"many": strings.Repeat("X-A: b\r\n", 10_000),
		"line": "",
	} {
		conn := connect(t, base)
		path := "/api/v1/events"
		if name == "line" {
			path += "?" + strings.Repeat("x", 64<<10)
		}
		go func() { _, _ = io.WriteString(conn, "POST "+path+" HTTP/1.1\r\nHost: x\r\n"+head+"\r\n") }()
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		require.NoError(t, err)
		_ = res.Body.Close()
		require.Equal(t, http.StatusRequestHeaderFieldsTooLarge, res.StatusCode, name)
	}
	require.Equal(t, 202, post(t, base+eventPath, reading, "X-A", strings.Repeat("x", 16<<10)).status)
}
