package app

import (
	"context"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/internal/devstack"
	"github.com/cornjacket/platform-services/internal/simulate"
	"github.com/cornjacket/platform-services/routers"
)

func devSettings(t *testing.T, dir string) config.Dev {
	t.Helper()
	cfg, err := config.DevDefaults()
	require.NoError(t, err)
	cfg.DataDir, cfg.Addresses = dir, config.EveryAddress(free)
	cfg.PostgresAddr, cfg.KafkaAddr, cfg.MQTTAddr = free, free, free
	cfg.TopicPartitions = 2
	return cfg
}

var bannerLine = regexp.MustCompile(`(?m)^  (MQTT|Ingestion|Query) +\w+://([^/\s]+)`)

// startDev runs a development stack and takes the addresses from what it prints.
func startDev(t *testing.T, cfg config.Dev) *running {
	t.Helper()
	return launch(t, func(ctx context.Context, ready func(map[string]string)) error {
		return Dev(ctx, cfg, printer(func(text string) {
			addrs := map[string]string{"banner": text}
			for _, m := range bannerLine.FindAllStringSubmatch(text, -1) {
				addrs[strings.ToLower(m[1])] = m[2]
			}
			ready(addrs)
		}), quiet)
	})
}

type printer func(text string)

func (p printer) Write(b []byte) (int, error) {
	p(string(b))
	return len(b), nil
}

func TestDev(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("e2e starts it too")
	}
	dir := t.TempDir()
	t.Cleanup(func() { require.NoError(t, devstack.Wipe(dir)) }) // the server's data may lie elsewhere
	cfg := devSettings(t, dir)

	p := startDev(t, cfg)
	require.Contains(t, p.addrs["banner"], dir)
	require.NotContains(t, p.addrs["banner"], ":0\n", "it prints where things really are")
	require.NotContains(t, p.addrs["banner"], "-p 0")
	require.Equal(t, http.StatusAccepted, post(t, p.addrs["ingestion"], "device-1", 5))
	arrives(t, p.addrs["query"], "device-1", 5)
	_, err := simulate.Run(t.Context(), simulate.Config{URL: "mqtt://" + p.addrs["mqtt"], Devices: 1, Count: 1, Prefix: "mqtt-"})
	require.NoError(t, err)

	second := Dev(t.Context(), cfg, printer(func(string) {}), quiet)
	require.ErrorIs(t, second, devstack.ErrLocked)
	require.Contains(t, second.Error(), dir)
	require.NotContains(t, second.Error(), "\n", "one line")
	fresh := cfg
	fresh.Fresh = true
	require.ErrorIs(t, Dev(t.Context(), fresh, printer(func(string) {}), quiet), devstack.ErrLocked, "nothing is wiped under its feet")
	arrives(t, p.addrs["query"], "device-1", 5)
	require.NoError(t, p.stop())

	p = startDev(t, cfg)
	arrives(t, p.addrs["query"], "device-1", 5)
	require.Equal(t, http.StatusAccepted, post(t, p.addrs["ingestion"], "device-1", 6))
	arrives(t, p.addrs["query"], "device-1", 6)
	require.NoError(t, p.stop())

	p = startDev(t, fresh)
	status, _ := get(t, "http://"+p.addrs["query"]+"/api/v1/projections/sensor_state/device-1")
	require.Equal(t, http.StatusNotFound, status)
	require.Equal(t, http.StatusAccepted, post(t, p.addrs["ingestion"], "device-2", 1))
	arrives(t, p.addrs["query"], "device-2", 1)
}

func TestDevNamesEveryPortThatIsTaken(t *testing.T) {
	t.Parallel()
	cfg := devSettings(t, t.TempDir())
	cfg.KafkaAddr, cfg.Listen = taken(t), cfg.Listen.With("QUERY_ADDR", taken(t))
	err := Dev(t.Context(), cfg, printer(func(string) {}), quiet)
	require.ErrorContains(t, err, cfg.KafkaAddr)
	require.ErrorContains(t, err, cfg.Of(routers.Query))
	require.ErrorContains(t, err, "query")
	require.NotContains(t, err.Error(), "\n")
}
