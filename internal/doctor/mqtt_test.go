package doctor_test

import (
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/internal/doctor"
	"github.com/cornjacket/platform-services/pubsub/mochi"
	"github.com/cornjacket/platform-services/routers"
)

// broker starts an MQTT broker that is taken for one of its own, and returns settings with which it alone is looked at.
func broker(t *testing.T, cfg mochi.Config) config.Doctor {
	t.Helper()
	cfg.Addr, cfg.Log = "127.0.0.1:0", slog.New(slog.DiscardHandler)
	b, err := mochi.Listen(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	s := only(routers.Ingestion)
	s.MQTTURL, s.MQTTUsername, s.MQTTPassword = "mqtt://"+b.Addr(), cfg.Username, cfg.Password
	return s
}

func TestTheLargestPacketOfABroker(t *testing.T) {
	t.Parallel()
	for size, status := range map[uint32]string{2 << 20: doctor.OK, 2<<20 + 1: doctor.Warn} {
		f := finding(t, doctor.Examine(t.Context(), broker(t, mochi.Config{MaxPacket: size})), "maximum packet")
		require.Equal(t, status, f.Status, "%d: %+v", size, f)
		require.Contains(t, f.Advice, map[string]string{doctor.Warn: "max_packet_size"}[status])
	}
}
