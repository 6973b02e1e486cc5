package window

import (
	"context"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
)

// TestLaneBoundsBytes: payloads in flight are bounded by bytes too, and one that is bigger than the bound still passes.
func TestLaneBoundsBytes(t *testing.T) {
	t.Parallel()
	out := make(chan *message.Message, 10)
	lane := NewLane(t.Context(), out, LaneConfig[int]{Size: 10, MaxBytes: 100, Advance: func(int) {}})
	send := func(mark, size int) <-chan bool {
		sent := make(chan bool, 1)
		go func() {
			sent <- lane.Send(t.Context(), context.Background(), message.NewMessage("", make([]byte, size)), mark, Source{})
		}()
		return sent
	}
	require.True(t, <-send(1, 60))
	require.True(t, <-send(2, 40))
	third := send(3, 1000)
	select {
	case <-third:
		t.Fatal("a message was handed out although there was no room for it")
	case m := <-out:
		m.Ack() // the first: frees 60 of the 100 that the third takes
	}
	(<-out).Ack()
	require.True(t, <-third)
	(<-out).Ack()
	lane.Close()
	<-lane.Done()
}
