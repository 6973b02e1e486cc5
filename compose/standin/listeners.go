package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// entries are the listeners of a broker as one. A client is told the address that belongs to the listener it came
// through, as Kafka's advertised listeners are; the broker behind knows of one address only.
type entries struct {
	listeners []net.Listener
	conns     chan net.Conn
	closed    chan struct{}
	once      sync.Once
}

func openEntries(listen, advertise map[string]string) (*entries, error) {
	e := &entries{conns: make(chan net.Conn), closed: make(chan struct{})}
	for name, addr := range listen {
		host, port, err := net.SplitHostPort(advertise[name])
		if err != nil {
			return nil, errors.Join(fmt.Errorf("advertised address of %s: %w", name, err), e.Close())
		}
		number, err := strconv.ParseInt(port, 10, 32)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("advertised port of %s: %w", name, err), e.Close())
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("listen for %s: %w", name, err), e.Close())
		}
		e.listeners = append(e.listeners, l)
		go e.accept(l, host, int32(number))
	}
	return e, nil
}

func (e *entries) accept(l net.Listener, host string, port int32) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return // it is closed
		}
		select {
		case e.conns <- &advertised{Conn: conn, host: host, port: port, asked: make(map[int32]request)}:
		case <-e.closed:
			_ = conn.Close() // nobody has spoken yet
			return
		}
	}
}

// Accept returns the next connection of any listener.
func (e *entries) Accept() (net.Conn, error) {
	select {
	case conn := <-e.conns:
		return conn, nil
	case <-e.closed:
		return nil, net.ErrClosed
	}
}

// Addr returns the address of one of the listeners.
func (e *entries) Addr() net.Addr { return e.listeners[0].Addr() }

// Close closes all listeners.
func (e *entries) Close() error {
	var errs []error
	e.once.Do(func() {
		close(e.closed)
		for _, l := range e.listeners {
			errs = append(errs, l.Close())
		}
	})
	return errors.Join(errs...)
}

// request is what must be known of a request to read its answer.
type request struct{ key, version int16 }

// advertised is a client's connection. It notes what is asked, and puts its host and port into the answers that name
// brokers. It relies on kfake's writing each answer at once.
type advertised struct {
	net.Conn
	host string
	port int32

	head []byte // of the frame that is being read: length, key, version, correlation ID
	left int    // bytes of that frame that are still to come after the head

	mu    sync.Mutex
	asked map[int32]request // by correlation ID
}

const headSize = 4 + 2 + 2 + 4

// Read passes a request on and notes its head.
func (a *advertised) Read(p []byte) (int, error) {
	n, err := a.Conn.Read(p)
	for data := p[:n]; len(data) > 0; {
		if a.left > 0 {
			skip := min(a.left, len(data))
			a.left -= skip
			data = data[skip:]
			continue
		}
		take := min(headSize-len(a.head), len(data))
		a.head = append(a.head, data[:take]...)
		data = data[take:]
		if len(a.head) == headSize {
			a.note()
		}
	}
	return n, err //nolint:wrapcheck // as net.Conn does
}

func (a *advertised) note() {
	r := kbin.Reader{Src: a.head}
	a.left = int(r.Int32()) - (headSize - 4)
	asked := request{key: r.Int16(), version: r.Int16()}
	id := r.Int32()
	a.head = a.head[:0]
	a.mu.Lock()
	a.asked[id] = asked
	a.mu.Unlock()
}

// Write passes an answer on, with the addresses put right.
func (a *advertised) Write(frame []byte) (int, error) {
	answer, err := a.readdress(frame)
	if err != nil {
		return 0, err
	}
	if _, err := a.Conn.Write(answer); err != nil {
		return 0, err //nolint:wrapcheck // as net.Conn does
	}
	return len(frame), nil
}

func (a *advertised) readdress(frame []byte) ([]byte, error) {
	if len(frame) < 8 {
		return nil, io.ErrShortWrite
	}
	id := int32(binary.BigEndian.Uint32(frame[4:]))
	a.mu.Lock()
	asked := a.asked[id]
	delete(a.asked, id)
	a.mu.Unlock()
	switch kmsg.Key(asked.key) {
	case kmsg.Metadata, kmsg.FindCoordinator, kmsg.DescribeCluster:
	default:
		return frame, nil
	}
	response := kmsg.ResponseForKey(asked.key)
	response.SetVersion(asked.version)
	body := 8
	if response.IsFlexible() {
		body++ // no tags in the head
	}
	if err := response.ReadFrom(frame[body:]); err != nil {
		return nil, fmt.Errorf("read answer with key %d, version %d: %w", asked.key, asked.version, err)
	}
	a.replace(response)
	answer := response.AppendTo(append([]byte(nil), frame[:body]...))
	binary.BigEndian.PutUint32(answer, uint32(len(answer)-4))
	return answer, nil
}

func (a *advertised) replace(response kmsg.Response) {
	switch r := response.(type) {
	case *kmsg.MetadataResponse:
		for i := range r.Brokers {
			r.Brokers[i].Host, r.Brokers[i].Port = a.host, a.port
		}
	case *kmsg.FindCoordinatorResponse:
		r.Host, r.Port = a.host, a.port
		for i := range r.Coordinators {
			r.Coordinators[i].Host, r.Coordinators[i].Port = a.host, a.port
		}
	case *kmsg.DescribeClusterResponse:
		for i := range r.Brokers {
			r.Brokers[i].Host, r.Brokers[i].Port = a.host, a.port
		}
	}
}
