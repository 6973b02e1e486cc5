package window_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/pubsub/window"
)

// A context of ours behaves as the standard library's, whether somebody waits for it before it ends or not.
func TestWithCancelIsTheLibrarys(t *testing.T) {
	t.Parallel()
	type key struct{}
	type withCancel func(context.Context) (context.Context, context.CancelFunc)
	makers := map[string]withCancel{"ours": window.WithCancel, "the library's": context.WithCancel}
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
