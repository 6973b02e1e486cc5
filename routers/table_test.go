package routers

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/migrations"
)

var update = flag.Bool("update", false, "write the table in docs/architecture.md anew")

// The map of the house shows the table as the program prints it.
func TestPrint(t *testing.T) {
	t.Parallel()
	const page, begin, end = "../docs/architecture.md", "```routes\n", "```\n"
	var out bytes.Buffer
	require.NoError(t, Print(&out))
	text, err := os.ReadFile(page)
	require.NoError(t, err)
	before, rest, found := strings.Cut(string(text), begin)
	require.True(t, found, "%s has no block of routes", page)
	shown, after, found := strings.Cut(rest, end)
	require.True(t, found)
	if *update {
		require.NoError(t, os.WriteFile(page, []byte(before+begin+out.String()+end+after), 0o644))
		shown = out.String()
	}
	require.Equal(t, out.String(), shown, "go test ./routers -run TestPrint -update writes it anew")
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestPrintReportsErrors(t *testing.T) {
	t.Parallel()
	require.ErrorContains(t, Print(brokenWriter{}), "broken pipe")
}

func TestTableIsConsistent(t *testing.T) {
	t.Parallel()
	variables, ports, folders := map[string]bool{}, map[int]bool{}, map[string]string{}
	for _, s := range Services() {
		require.NotEmpty(t, s.Title, s.Name)
		require.Equal(t, s.Name, ServiceOf(s.Name).Name)
		health := 0
		for _, a := range s.Addresses {
			require.False(t, variables[a.Variable] || ports[a.Port], "%s is there twice", a.Variable)
			variables[a.Variable], ports[a.Port] = true, true
			require.NotEmpty(t, a.Serves, a.Variable)
			if a.Health {
				health++
			}
		}
		require.Equal(t, 1, health, "%s answers GET /health on one address", s.Name)
		for _, folder := range s.Database.Migrations {
			require.Contains(t, []string{"", s.Database.Variable}, folders[folder], "%s belongs to two databases", folder)
			folders[folder] = s.Database.Variable
		}
	}
	seen := make(map[string]bool)
	for _, r := range Routes() {
		require.False(t, seen[r.Name], "%s is there twice", r.Name)
		seen[r.Name] = true
		require.Equal(t, r.Name, RouteOf(r.Name).Name)
		require.Contains(t, DeadLetterConsumers(r.DeadLetters), r.Name)
		require.Equal(t, ServiceOf(r.Service).Database, ServiceOf(r.DeadLetters).Database, "dead letters are in the database of %s", r.Name)
		require.Equal(t, len(r.Topics) > 0, r.Group != "", r.Name)
		for _, text := range []string{r.From, r.To, r.Does} {
			require.NotEmpty(t, text, r.Name)
		}
		for _, topic := range r.Topics {
			require.Contains(t, event.Topics(), topic, r.Name)
		}
	}
	require.PanicsWithValue(t, `the table has no service "walk"`, func() { ServiceOf("walk") })
}

// Each folder of migrations is applied to some database, and no other is.
func TestTableHasAllMigrations(t *testing.T) {
	t.Parallel()
	var folders []string
	for _, d := range Databases() {
		folders = append(folders, d.Migrations...)
	}
	require.ElementsMatch(t, migrations.Services(), folders)
}

func TestPolicyText(t *testing.T) {
	t.Parallel()
	require.Equal(t, "outage: without end; panic: RETRY_MAX", Policy{}.String())
	require.Equal(t, "outage: 3 times, then dead letter; panic: RETRY_MAX; breaker: 5 failures, 30s",
		Policy{Outage: DeadLetter, Retries: 3, Breaker: Breaker{Failures: 5, Pause: 30 * time.Second}}.String())
	require.Equal(t, "outage: 2 times, then skipped; panic: RETRY_MAX", Policy{Outage: Skip, Retries: 2}.String())
}

func TestTopicsHaveDeadLettersBesideThem(t *testing.T) {
	t.Parallel()
	for _, topic := range event.Topics() {
		require.Contains(t, Topics(), topic)
		require.Contains(t, Topics(), topic+".dlq")
	}
	require.Len(t, Topics(), 2*len(event.Topics()))
}
