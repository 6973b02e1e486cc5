package window_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/pubsub/window"
)

// lazily makes the context of a message, as a lane does.
func lazily(ctx context.Context) (context.Context, context.CancelFunc) {
	out := make(chan *message.Message, 1)
	lane := window.NewLane(context.Background(), out, window.LaneConfig[int]{Size: 1, Advance: func(int) {}})
	msg := message.NewMessage("", nil)
	lane.Send(context.Background(), ctx, msg, 1, window.Source{})
	lane.Close()
	return msg.Context(), func() { msg.Ack(); <-lane.Done() }
}

// A context of ours behaves as the standard library's, whether somebody waits for it before it ends or not.
func TestLazyContextsAreTheLibrarys(t *testing.T) {
	t.Parallel()
	type key struct{}
	type maker func(context.Context) (context.Context, context.CancelFunc)
	late := time.Now().Add(2 * time.Hour)
	makers := map[string]maker{
		"ours":          lazily,
		"the library's": context.WithCancel,
		"our deadline": func(ctx context.Context) (context.Context, context.CancelFunc) {
			return window.WithDeadline(ctx, late)
		},
		"the library's deadline": func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithDeadline(ctx, late)
		},
	}
	waits := map[string]func(context.Context){
		"nobody waits":  func(context.Context) {},
		"somebody does": func(ctx context.Context) { _ = ctx.Done() },
	}
	for maker, make := range makers {
		for who, wait := range waits {
			t.Run(maker+", "+who, func(t *testing.T) {
				t.Parallel()
				parent, endParent := context.WithDeadline(context.WithValue(t.Context(), key{}, "v"), time.Now().Add(time.Hour))
				defer endParent()
				ctx, end := make(parent)
				wait(ctx)
				require.NoError(t, ctx.Err())
				require.Equal(t, "v", ctx.Value(key{}))
				due, ok := ctx.Deadline()
				require.True(t, ok)
				require.Greater(t, time.Until(due), time.Minute)
				child, endChild := context.WithCancel(ctx)
				defer endChild()
				end()
				end()
				require.ErrorIs(t, ctx.Err(), context.Canceled)
				<-ctx.Done()
				<-child.Done()
				require.NoError(t, parent.Err())

				ctx, end = make(parent)
				defer end()
				wait(ctx)
				endParent()
				require.ErrorIs(t, ctx.Err(), context.Canceled)
				<-ctx.Done()
				require.ErrorIs(t, ctx.Err(), context.Canceled)
			})
		}
	}
}

func TestLazyDeadlinePasses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		due := time.Now().Add(time.Second)
		ctx, end := window.WithDeadline(t.Context(), due)
		defer end()
		at, ok := ctx.Deadline()
		require.True(t, ok)
		require.Equal(t, due, at)
		require.NoError(t, ctx.Err())
		<-ctx.Done()
		require.Equal(t, due, time.Now())
		require.ErrorIs(t, ctx.Err(), context.DeadlineExceeded)
	})
}
