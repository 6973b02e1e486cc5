package e2e

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// proxy stands between the platform and a server: it passes connections on, and can cut, freeze, slow or refuse them
// while the server itself is well. It may be used concurrently.
type proxy struct {
	addr, target string
	listener     net.Listener
	closed       chan struct{}
	running      sync.WaitGroup

	mu       sync.Mutex
	conns    map[net.Conn]struct{} // both ends
	open     chan struct{}         // closed while data passes
	delay    time.Duration         // of each piece of data
	refusing bool
}

// startProxy listens on a port of its own; the server need not be there yet.
func startProxy(t testing.TB, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &proxy{addr: l.Addr().String(), target: target, listener: l, closed: make(chan struct{}), conns: map[net.Conn]struct{}{}}
	p.open = make(chan struct{})
	close(p.open)
	p.running.Go(p.accept)
	t.Cleanup(func() {
		close(p.closed)
		_ = l.Close() // was listening
		p.cut()
		p.running.Wait()
	})
	return p
}

func (p *proxy) accept() {
	for {
		from, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		p.running.Go(func() { p.serve(from) })
	}
}

func (p *proxy) serve(from net.Conn) {
	defer from.Close()
	if !p.add(from) {
		return
	}
	defer p.remove(from)
	to, err := net.DialTimeout("tcp", p.target, answers)
	if err != nil {
		return // the other side sees an end of the connection
	}
	defer to.Close()
	if !p.add(to) {
		return
	}
	defer p.remove(to)
	ended := make(chan struct{}, 2)
	pass := func(dst, src net.Conn) {
		p.pass(dst, src)
		ended <- struct{}{}
	}
	p.running.Go(func() { pass(to, from) })
	p.running.Go(func() { pass(from, to) })
	<-ended // one end that goes takes the other with it, as when a process is killed
}

// add notes a connection, unless there shall be none.
func (p *proxy) add(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.closed:
		return false
	default:
	}
	if p.refusing {
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *proxy) remove(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

func (p *proxy) pass(dst io.Writer, src io.Reader) {
	buf := make([]byte, 64<<10)
	for {
		n, err := src.Read(buf)
		p.mu.Lock()
		open, delay := p.open, p.delay
		p.mu.Unlock()
		select {
		case <-open:
		case <-p.closed:
			return
		}
		if delay > 0 {
			select {
			case <-time.After(delay):
			case <-p.closed:
				return
			}
		}
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// cut ends all connections; new ones are passed on.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // as a reset, not as a goodbye
		}
		_ = c.Close()
	}
}

// refuse cuts all connections and takes no new ones until allow.
func (p *proxy) refuse() {
	p.mu.Lock()
	p.refusing = true
	p.mu.Unlock()
	p.cut()
}

func (p *proxy) allow() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refusing = false
}

// freeze keeps connections and lets nothing through until thaw.
func (p *proxy) freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open = make(chan struct{})
}

func (p *proxy) thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.open)
}

// slow delays each piece of data in both directions; zero ends it.
func (p *proxy) slow(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}
