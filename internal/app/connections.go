package app

import (
	"context"
	"net"
	"net/http"
	"sync"

	"github.com/cornjacket/platform-services/api"
)

// spareConns are connections beyond the limit of a port that are kept for a moment, for probes of health: a port that is
// full of clients must not look dead. Of more, the oldest makes room.
const spareConns = 16

// connLimit bounds the connections of a server. On one beyond the bound a probe is answered, once; with any other request
// it is closed at once: a client that finds the door shut knows more than one that waits behind it.
type connLimit struct {
	most int

	mu    sync.Mutex
	open  map[net.Conn]struct{}
	spare []net.Conn // the oldest first
}

type spareKey struct{}

// limitConns lets a server have at most so many connections; no limit if zero.
func limitConns(server *http.Server, most int) {
	if most <= 0 {
		return
	}
	l := &connLimit{most: most, open: make(map[net.Conn]struct{})}
	server.ConnContext = l.admit
	server.ConnState = func(conn net.Conn, state http.ConnState) {
		if state == http.StateClosed || state == http.StateHijacked {
			l.forget(conn)
		}
	}
	next := server.Handler
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if conn, spare := r.Context().Value(spareKey{}).(net.Conn); spare {
			if api.ScopeOf(r.Method, r.URL.Path) != api.ScopeOpen {
				_ = conn.Close() // nothing was said on it
				panic(http.ErrAbortHandler)
			}
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// admit counts a connection before anything is read from it.
func (l *connLimit) admit(ctx context.Context, conn net.Conn) context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.open) < l.most {
		l.open[conn] = struct{}{}
		return ctx
	}
	if len(l.spare) == spareConns {
		_ = l.spare[0].Close() // it has had its moment
		l.spare = l.spare[1:]
	}
	l.spare = append(l.spare, conn)
	return context.WithValue(ctx, spareKey{}, conn)
}

func (l *connLimit) forget(conn net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, conn)
	for i, c := range l.spare {
		if c == conn {
			l.spare = append(l.spare[:i:i], l.spare[i+1:]...)
			return
		}
	}
}
