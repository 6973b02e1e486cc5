package mqtt

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

// link is one connection: what came in on it may be acknowledged on it only. When it is lost, the broker repeats on
// the next one what has not been acknowledged.
type link struct {
	conn    io.Writer
	started time.Time
	ctx     context.Context // ends with the connection
	cancel  context.CancelCauseFunc
}

func newLink(conn io.Writer) *link {
	l := &link{conn: conn, started: time.Now()}
	l.ctx, l.cancel = context.WithCancelCause(context.Background())
	return l
}

// acknowledge sends the PUBACKs of messages, in order, unless the connection is lost.
func (l *link) acknowledge(done []arrival, patience time.Duration) {
	pubacks := make([]byte, 0, 4*len(done))
	for i := range done {
		if id := done[i].id; done[i].qos > 0 {
			// Without reason code and properties: success. Source: MQTT 5.0 §3.4.2.1.
			pubacks = append(pubacks, packets.PUBACK<<4, 2, byte(id>>8), byte(id))
		}
	}
	if len(pubacks) == 0 || l.ctx.Err() != nil {
		return
	}
	if err := l.write(pubacks, patience); err != nil {
		l.fail(fmt.Errorf("send PUBACK: %w", err))
	}
}

// write writes within some time; a write that is being made gets no longer than that either.
func (l *link) write(data []byte, patience time.Duration) error {
	if c, ok := l.conn.(net.Conn); ok {
		_ = c.SetWriteDeadline(time.Now().Add(patience)) // it fails only for a connection that is closed
	}
	if lock, ok := l.conn.(sync.Locker); ok {
		lock.Lock()
		defer lock.Unlock()
	}
	_, err := l.conn.Write(data)
	return err
}

// fail ends the connection because of err; a new one is made.
func (l *link) fail(err error) {
	if l.ctx.Err() != nil {
		return
	}
	l.cancel(err)
	l.bye()
	if c, ok := l.conn.(io.Closer); ok {
		_ = c.Close() // it is being given up, with a cause of its own
	}
}

// bye sends a DISCONNECT, as a courtesy: the session stays either way. The broker then closes the connection.
func (l *link) bye() {
	// Without reason code and properties: normal disconnection, and the session expiry of the CONNECT stays.
	_ = l.write([]byte{packets.DISCONNECT << 4, 0}, time.Second)
}
