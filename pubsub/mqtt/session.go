package mqtt

import (
	"context"
	"io"
	"sync"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho/log"
	"github.com/eclipse/paho.golang/paho/session"
	"github.com/eclipse/paho.golang/paho/session/state"
)

// connState is the client's side of the session. A subscriber with QoS 1 has nothing to remember from one connection
// to the next, so each connection gets a state of its own, and packet identifiers of an old one can't reach a new one.
//
// It tells the subscription of each connection before the first packet is read from it, and takes acknowledging out
// of the client's hands: the client would do it when its callback returns, or from a timer that never rests.
type connState struct {
	up   func(conn io.Writer, ca *packets.Connack) error
	down func(*packets.Disconnect)

	mu    sync.Mutex
	state *state.State
}

var _ session.SessionManager = (*connState)(nil)

func (s *connState) current() *state.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

func (s *connState) ConAckReceived(conn io.Writer, cp *packets.Connect, ca *packets.Connack) error {
	fresh := state.NewInMemory()
	if err := fresh.ConAckReceived(conn, cp, ca); err != nil {
		return err
	}
	s.mu.Lock()
	s.state = fresh
	s.mu.Unlock()
	return s.up(conn, ca)
}

func (s *connState) ConnectionLost(dp *packets.Disconnect) error {
	s.down(dp)
	if st := s.current(); st != nil {
		return st.ConnectionLost(dp)
	}
	return nil
}

func (s *connState) AddToSession(ctx context.Context, p session.Packet, resp chan<- packets.ControlPacket) error {
	if st := s.current(); st != nil {
		return st.AddToSession(ctx, p, resp)
	}
	return session.ErrNoConnection
}

func (s *connState) PacketReceived(p *packets.ControlPacket, publishes chan<- *packets.Publish) error {
	if st := s.current(); st != nil {
		return st.PacketReceived(p, publishes)
	}
	return session.ErrNoConnection
}

func (s *connState) Ack(*packets.Publish) error { return nil }

func (s *connState) Close() error {
	if st := s.current(); st != nil {
		return st.Close()
	}
	return nil
}

func (s *connState) SetErrorLogger(log.Logger) {}
func (s *connState) SetDebugLogger(log.Logger) {}
