package mqtt

import (
	"errors"
	"io"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho/session/state"
)

// connState is the client's side of the session, of which a subscriber with QoS 1 has nothing to remember from one
// connection to the next. It tells the subscription of each connection before the first packet is read from it, and
// takes acknowledging out of the client's hands: the client would do it when its callback returns, or from a timer that
// never rests.
type connState struct {
	*state.State
	up   func(conn io.Writer) error
	down func(*packets.Disconnect)
}

func (s *connState) ConAckReceived(conn io.Writer, cp *packets.Connect, ca *packets.Connack) error {
	if err := s.State.ConAckReceived(conn, cp, ca); err != nil {
		return err
	}
	return s.up(conn)
}

// ConnectionLost forgets, besides, the packets whose answers will not come any more.
func (s *connState) ConnectionLost(dp *packets.Disconnect) error {
	s.down(dp)
	return errors.Join(s.State.ConnectionLost(dp), s.Close())
}

func (s *connState) Ack(*packets.Publish) error { return nil }
