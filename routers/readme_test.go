package routers

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// The README shows the same table as the program.
func TestREADMEHasTheRoutes(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	for _, r := range Routes() {
		require.Contains(t, string(readme), fmt.Sprintf("| %s | %s | %s | %s | %s | %s | dlq: %s | :%d |\n",
			r.Name, r.Service, r.From, r.To, r.Does, r.Policy, r.Name, r.HealthPort()))
	}
}
