package mochi_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/pubsub/mochi"
)

func TestCloseWaitsForWhatIsInFlight(t *testing.T) {
	t.Parallel()
	b := listen(t, mochi.Config{})
	out := subscribe(t, b)
	c := dial(t, b, "device-1")
	c.publish(1, "events", `1`)
	c.publish(2, "events", `2`) // still behind the first one when the broker stops
	msg := receive(t, out)
	closed := make(chan error, 1)
	go func() { closed <- b.Close() }()
	require.Eventually(t, func() bool {
		nc, err := net.Dial("tcp", b.Addr())
		if err == nil {
			_ = nc.Close()
		}
		return err != nil
	}, soon, time.Millisecond, "new clients must be refused")
	select {
	case <-closed:
		require.FailNow(t, "closed with a message in flight")
	case <-time.After(never):
	}
	require.NoError(t, msg.Context().Err(), "the context of what is in flight must live")
	msg.Ack()
	c.requirePuback(1)
	c.requireDisconnect(0x8B)
	drained(t, out)
	require.NoError(t, <-closed)
	require.NoError(t, b.Close(), "again")
	_, err := b.Subscribe(t.Context(), "events")
	require.ErrorIs(t, err, mochi.ErrClosed)
}

func TestCloseGivesUpOnASubscriberThatHangs(t *testing.T) {
	t.Parallel()
	b := listen(t, mochi.Config{Handoff: 200 * time.Millisecond})
	out := subscribe(t, b)
	c := dial(t, b, "device-1")
	c.publish(1, "events", `1`)
	receive(t, out)
	require.NoError(t, b.Close())
	drained(t, out)
	for p := c.read(); p != nil; p = c.read() {
		require.NotEqual(t, byte(4), p.Type, "what was not acked must not be acknowledged")
	}
}

func TestCloseDoesNotWaitForSilentConnections(t *testing.T) {
	t.Parallel()
	b := listen(t, mochi.Config{})
	nc, err := net.Dial("tcp", b.Addr())
	require.NoError(t, err)
	defer nc.Close()
	dial(t, b, "another") // by now the silent one has been accepted
	start := time.Now()
	require.NoError(t, b.Close())
	require.Less(t, time.Since(start), 5*time.Second)
}

func TestEndOfSubscription(t *testing.T) {
	t.Parallel()
	b := listen(t, mochi.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out, err := b.Subscribe(ctx, "events")
	require.NoError(t, err)
	_, err = b.Subscribe(t.Context(), "events")
	require.ErrorIs(t, err, mochi.ErrSubscribed)

	c := dial(t, b, "device-1")
	c.publish(1, "events", `1`)
	msg := receive(t, out)
	cancel()
	require.NoError(t, msg.Context().Err(), "the context of what is in flight must live")
	c.requireNothing()
	msg.Ack()
	c.requirePuback(1)
	drained(t, out)
	c.publish(2, "events", `2`)
	c.requireDisconnect(0x8B)

	out = subscribe(t, b)
	c = dial(t, b, "device-1")
	c.publish(2, "events", `2`, duplicate)
	receive(t, out).Ack()
	c.requirePuback(2)
}

func TestNotHandedOutYetIsRefusedAtTheEnd(t *testing.T) {
	t.Parallel()
	b := listen(t, mochi.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	out, err := b.Subscribe(ctx, "events")
	require.NoError(t, err)
	c := dial(t, b, "device-1")
	c.publish(1, "events", `1`)
	msg := receive(t, out)
	msg.Nack() // it waits to be handed out again
	cancel()
	c.requireDisconnect(0x8B)
	drained(t, out)
}

// drained returns once the channel has been closed.
func drained(t *testing.T, out <-chan *message.Message) {
	t.Helper()
	select {
	case _, ok := <-out:
		require.False(t, ok, "nothing more may come")
	case <-time.After(soon):
		require.FailNow(t, "the channel was not closed")
	}
}
