package e2e

import (
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// rebuilt is what `platform rebuild --json` prints last.
type rebuilt struct {
	Version int    `json:"version"`
	State   string `json:"state"`
	Events  int64  `json:"events"`
	Differ  int64  `json:"differ"`
	Refused int64  `json:"refused"`
	Rows    int64  `json:"built_rows"`
	Dropped []int  `json:"dropped"`
}

// rebuild runs the command to its end.
func (s *parts) rebuild(t *testing.T, args ...string) (last rebuilt) {
	t.Helper()
	c := platformCommand(t, s.databases(), append([]string{"rebuild", "--json"}, args...)...)
	require.Zero(t, c.code, "%s", c.stderr.tail())
	for lines := json.NewDecoder(strings.NewReader(c.stdout.String())); lines.More(); {
		last = rebuilt{}
		require.NoError(t, lines.Decode(&last))
	}
	return last
}

func (s *parts) databases() []string {
	return []string{"INGESTION_DATABASE_URL=" + s.ingestionDB, "EVENTHANDLER_DATABASE_URL=" + s.eventhandlerDB}
}

// A projection is built anew by the built binary while events flow: the command is killed again and again and goes on, the
// new version is the same as the old one, takes its place, goes back, and everything that was accepted is in it once.
func TestRebuild(t *testing.T) {
	t.Parallel()
	s := startParts(t)
	p := s.run(t)
	l := startLoad(t, p, 3, 6)
	l.reach(t, 3000)

	killed := 0
	for range 20 {
		c, err := launch(s.databases(), binary, "rebuild", "--json", "sensor_state")
		require.NoError(t, err)
		if _, err := c.ended(time.Duration(rand.IntN(150)) * time.Millisecond); err == nil {
			continue
		}
		require.NoError(t, c.kill())
		killed++
	}
	require.Positive(t, killed)
	require.Equal(t, 2, s.rebuild(t, "sensor_state").Version, "the one that was begun")
	l.reach(t, 500)
	d := s.rebuild(t, "sensor_state", "--diff")
	require.Zero(t, d.Differ)
	require.Positive(t, d.Rows)
	require.Zero(t, d.Refused)
	require.Equal(t, rebuilt{Version: 2, State: "active"}, s.rebuild(t, "sensor_state", "--switch"))
	l.reach(t, 500)
	require.Equal(t, rebuilt{Version: 1, State: "active"}, s.rebuild(t, "sensor_state", "--back"))
	l.reach(t, 500)
	require.Equal(t, []int{2}, s.rebuild(t, "sensor_state", "--drop").Dropped)
	require.Equal(t, 2, s.rebuild(t, "sensor_state").Version)
	require.Equal(t, 2, s.rebuild(t, "sensor_state", "--switch").Version)
	l.reach(t, 500)
	l.stop()
	l.proven(t, p)
	p.ledger(t, "it balances", balanced)

	c := platformCommand(t, s.databases(), "rebuild", "user_session", "--switch")
	require.Equal(t, 1, c.code)
	require.Contains(t, c.oneLine(t), "--status says which there are")
	p.stop(t)
}
