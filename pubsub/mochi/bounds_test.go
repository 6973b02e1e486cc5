package mochi

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestRetainedMessagesAreBounded(t *testing.T) {
	t.Parallel()
	r := retained{sizes: make(map[string]int)}
	for i := range maxRetained {
		require.True(t, r.fits(fmt.Sprint("t", i), []byte("x")))
	}
	require.False(t, r.fits("more", []byte("x")), "too many")
	require.True(t, r.fits("t1", []byte("yy")), "in place of another")
	require.True(t, r.fits("t1", nil), "cleared")
	require.True(t, r.fits("more", []byte("x")))
	large := make([]byte, maxRetainedBytes)
	require.False(t, r.fits("more", large), "too large")
	for topic := range r.sizes {
		require.True(t, r.fits(topic, nil))
	}
	require.Zero(t, r.bytes)
	require.True(t, r.fits("m", large[1:]))
	require.False(t, r.fits("n", []byte("x")))
}

func TestARefusalIsLoggedNowAndThen(t *testing.T) {
	t.Parallel()
	var said strings.Builder
	log := slog.New(slog.NewTextHandler(&said, nil))
	s := sample{said: make(map[string]time.Time), left: make(map[string]int)}
	for range 100 {
		s.warn(log, "no", "client", "c")
	}
	s.warn(log, "other", "client", "c")
	require.Equal(t, 1, strings.Count(said.String(), "msg=no"))
	require.Equal(t, 1, strings.Count(said.String(), "msg=other"))
	s.said["no"] = time.Now().Add(-2 * sampleEvery)
	s.warn(log, "no", "client", "c")
	require.Contains(t, said.String(), "msg=no client=c and_before=99")
}
