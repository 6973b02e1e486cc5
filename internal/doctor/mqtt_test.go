package doctor_test

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
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

func TestWhoCanTakeOverASession(t *testing.T) {
	t.Parallel()
	users, err := mochi.ReadUsers(strings.NewReader("user_id,password,is_superuser\ndevice-1,one,false\noperator,two,true\n"))
	require.NoError(t, err)
	for name, tc := range map[string]struct {
		cfg                mochi.Config
		device, password   string
		status, says, more string
	}{
		"everyone":                {mochi.Config{}, "", "", doctor.Warn, "everyone can connect", "docs/mqtt.md"},
		"nobody without a user":   {mochi.Config{Username: "platform", Password: "p"}, "", "", doctor.OK, "everyone can't connect", "--device-username"},
		"no device":               {mochi.Config{Username: "platform", Password: "p", Users: users}, "device-1", "one", doctor.OK, "a device can't connect", ""},
		"one that may everything": {mochi.Config{Username: "platform", Password: "p", Users: users}, "operator", "two", doctor.Warn, "a device can connect", "docs/mqtt.md"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := broker(t, tc.cfg)
			s.DeviceUsername, s.DevicePassword, s.Timeout = tc.device, tc.password, 2*time.Second
			f := finding(t, doctor.Examine(t.Context(), s), "sessions")
			require.Equal(t, tc.status, f.Status, "%+v", f)
			require.Contains(t, f.Detail, tc.says)
			require.Contains(t, f.Detail+f.Advice, tc.more)
		})
	}
}

// A broker that gives each user one client ID would end ingestion's session with the check's: it is left as it is.
func TestASessionThatIsNotTheDoctorsIsLeftAlone(t *testing.T) {
	t.Parallel()
	b := newMosquitto(t, "use_username_as_clientid true\nallow_anonymous true\n")
	expiry := uint32(3600)
	connect := func() (*paho.Client, *paho.Connack) {
		conn, err := net.Dial("tcp", b)
		require.NoError(t, err)
		client := paho.NewClient(paho.ClientConfig{Conn: conn})
		ack, err := client.Connect(t.Context(), &paho.Connect{
			ClientID: "cornjacket-ingestion", Username: "platform", UsernameFlag: true, KeepAlive: 30,
			Properties: &paho.ConnectProperties{SessionExpiryInterval: &expiry},
		})
		require.NoError(t, err)
		return client, ack
	}
	client, _ := connect()
	_, err := client.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "events", QoS: 1}}})
	require.NoError(t, err)
	require.NoError(t, client.Disconnect(&paho.Disconnect{}))

	s := only(routers.Ingestion)
	s.MQTTURL, s.MQTTUsername = "mqtt://"+b, "platform"
	f := finding(t, doctor.Examine(t.Context(), s), "client ID")
	require.Equal(t, doctor.Fail, f.Status)
	client, ack := connect()
	require.True(t, ack.SessionPresent, "it is still there")
	require.NoError(t, client.Disconnect(&paho.Disconnect{}))
}

// newMosquitto starts a broker and returns its address.
func newMosquitto(t *testing.T, extra string) string {
	t.Helper()
	binary := "/usr/sbin/mosquitto"
	if _, err := os.Stat(binary); err != nil {
		if binary, err = exec.LookPath("mosquitto"); err != nil {
			t.Skip("mosquitto is not installed: apt-get install mosquitto")
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := l.Addr().(*net.TCPAddr)
	require.NoError(t, l.Close())
	conf := filepath.Join(t.TempDir(), "conf")
	require.NoError(t, os.WriteFile(conf, fmt.Appendf(nil, "listener %d 127.0.0.1\nuser root\n%s", addr.Port, extra), 0o600))
	cmd := exec.Command(binary, "-c", conf)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	require.Eventually(t, func() bool {
		conn, err := net.Dial("tcp", addr.String())
		if err != nil {
			return false
		}
		return conn.Close() == nil
	}, 20*time.Second, 10*time.Millisecond)
	return addr.String()
}

func TestTheLargestPacketOfABroker(t *testing.T) {
	t.Parallel()
	for size, status := range map[uint32]string{2 << 20: doctor.OK, 2<<20 + 1: doctor.Warn} {
		f := finding(t, doctor.Examine(t.Context(), broker(t, mochi.Config{MaxPacket: size})), "maximum packet")
		require.Equal(t, status, f.Status, "%d: %+v", size, f)
		require.Contains(t, f.Advice, map[string]string{doctor.Warn: "max_packet_size"}[status])
	}
}
