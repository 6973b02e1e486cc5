package deadletter_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/deadletter"
)

// One source that fills the quota is stopped, visibly; others still have their share.
func TestQuota(t *testing.T) {
	t.Parallel()
	pool := database(t)
	var said strings.Builder
	now, dropped := time.Now(), 0
	newQuota := func(most int64) *deadletter.Quota {
		return deadletter.NewQuota(deadletter.QuotaConfig{
			DB: pool, Consumer: "ingestion", MaxBytes: most, Dropped: func(n int) { dropped += n },
			Log: slog.New(slog.NewTextHandler(&said, nil)), Now: func() time.Time { return now },
		})
	}
	letter := func(source string, size int) deadletter.Entry {
		return deadletter.Entry{
			Consumer: "ingestion", Topic: "devices/" + source + "/events/x.y", Key: source, Payload: bytes.Repeat([]byte("x"), size),
			Error: "broken", FailedAt: now, BusTopic: "system-events.dlq",
		}
	}
	stored := func(source string) (n int) {
		require.NoError(t, pool.QueryRow(t.Context(), `SELECT count(*) FROM dlq WHERE message_key = $1`, source).Scan(&n))
		return n
	}
	const size = 9_488 // with its row 10,000
	q := newQuota(1_000_000)
	require.NoError(t, q.Measure(t.Context()))
	for range 120 {
		require.NoError(t, q.Add(t.Context(), letter("flood", size)))
	}
	require.Equal(t, 100, stored("flood"))
	require.NoError(t, q.Add(t.Context(), letter("quiet", 100), letter("flood", size), letter("quiet", size), letter("quiet", 100)))
	require.Equal(t, 2, stored("quiet"), "what is within a hundredth")
	u := q.Usage()
	require.Equal(t, deadletter.Usage{Bytes: 1_001_224, Dropped: 22}, u)
	require.Equal(t, 22, dropped)
	require.Equal(t, 1, strings.Count(said.String(), "quota is full"), "once a minute")
	require.Contains(t, said.String(), "source=flood")

	q = newQuota(1_000_000)
	require.NoError(t, q.Measure(t.Context()), "another process finds the same")
	require.Equal(t, u.Bytes, q.Usage().Bytes)
	require.WithinDuration(t, now, q.Usage().Oldest, time.Millisecond)
	require.NoError(t, q.Add(t.Context(), letter("flood", size)))
	require.Equal(t, 100, stored("flood"))

	_, err := pool.Exec(t.Context(), `DELETE FROM dlq WHERE message_key = 'flood'`)
	require.NoError(t, err)
	require.NoError(t, q.Measure(t.Context()))
	require.NoError(t, q.Add(t.Context(), letter("flood", size)))
	require.Equal(t, 1, stored("flood"), "there is room again")

	q = newQuota(0)
	require.NoError(t, q.Measure(t.Context()))
	require.NoError(t, q.Add(t.Context(), letter("flood", 2_000_000)))
	require.Equal(t, 2, stored("flood"), "no limit")
}
