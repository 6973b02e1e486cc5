package routers

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
)

var update = flag.Bool("update", false, "write testdata anew")

func TestPrint(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	require.NoError(t, Print(&out))
	golden := filepath.Join("testdata", "routes.golden")
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(golden, out.Bytes(), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), out.String(), "go test ./routers -update writes it anew")
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestPrintReportsErrors(t *testing.T) {
	t.Parallel()
	require.ErrorContains(t, Print(brokenWriter{}), "broken pipe")
}

func TestRoutesAreConsistent(t *testing.T) {
	t.Parallel()
	ports := map[string]int{"ingestion": 8080, "relay": 8086, "eventhandler": 8084} // CONTRACT §2
	seen := make(map[string]bool)
	for _, r := range Routes() {
		require.False(t, seen[r.Name], "%s is there twice", r.Name)
		seen[r.Name] = true
		require.Equal(t, ports[r.Service], r.HealthPort, r.Name)
		require.Equal(t, r.Name, r.DeadLetters, "a router is the consumer of its dead letters")
		for _, text := range []string{r.From, r.To, r.Handler, r.Retry} {
			require.NotEmpty(t, text, r.Name)
		}
	}
	require.Len(t, seen, len(ports))
}

func TestTopicsHaveDeadLettersBesideThem(t *testing.T) {
	t.Parallel()
	require.ElementsMatch(t, []string{
		"sensor-events", "user-actions", "system-events", "sensor-events.dlq", "user-actions.dlq", "system-events.dlq",
	}, Topics())
	for _, p := range Projections() {
		require.Contains(t, event.Topics(), p.Topic)
	}
}
