package app

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestStallIsWorkThatWaitsAndNothingDone(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 2, 7, 10, 0, 0, 0, time.UTC)
	s := &stall{patience: 30 * time.Second, now: func() time.Time { return now }}
	for _, step := range []struct {
		after         time.Duration
		waiting, done int64
		stuck         bool
	}{
		{0, 0, 7, false},
		{time.Hour, 0, 7, false},
		{time.Second, 3, 7, false}, // after an idle hour the clock starts with what waits
		{29 * time.Second, 3, 7, false},
		{2 * time.Second, 3, 7, true},
		{time.Hour, 9, 7, true}, // more that waits is nothing done
		{time.Second, 8, 8, false},
		{30 * time.Second, 8, 8, false},
		{time.Second, 8, 8, true},
		{time.Second, 0, 8, false}, // settled otherwise, such as by another instance
		{31 * time.Second, 1, 8, true},
	} {
		now = now.Add(step.after)
		_, err := s.look(step.waiting, step.done)
		require.Equal(t, step.stuck, err != nil, "%+v", step)
		if err != nil {
			require.Contains(t, err.Error(), "is stuck")
		}
	}
}
