package mqtt

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/eclipse/paho.golang/paho"
	"github.com/stretchr/testify/require"
)

// documentedRules returns what docs/mqtt.md tells Mosquitto, with the files in dir and free ports.
func documentedRules(t *testing.T, dir string, devices, platform int) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/mqtt.md")
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(page), "```mosquitto\n")
	require.True(t, found, "the page has the rules")
	rules, _, _ := strings.Cut(rest, "```")
	for old, in := range map[string]string{
		"/etc/mosquitto/": dir + "/", "listener 1883\n": fmt.Sprintf("listener %d 127.0.0.1\n", devices),
		"listener 1884 127.0.0.1\n": fmt.Sprintf("listener %d 127.0.0.1\n", platform), "/var/lib/mosquitto/": dir + "/",
	} {
		require.Contains(t, rules, old)
		rules = strings.ReplaceAll(rules, old, in)
	}
	for _, file := range []string{"devices.acl", "platform.acl"} {
		_, rest, found := strings.Cut(string(page), "```"+file+"\n")
		require.True(t, found, "the page has %s", file)
		text, _, _ := strings.Cut(rest, "```")
		require.NoError(t, os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644))
	}
	for file, users := range map[string]string{"devices.passwd": "device-001:one\ndevice-002:two\n", "platform.passwd": "platform:secret\n"} {
		path := filepath.Join(dir, file)
		require.NoError(t, os.WriteFile(path, []byte(users), 0o644))
		out, err := exec.CommandContext(t.Context(), "mosquitto_passwd", "-U", path).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	return rules
}

// as connects as a user, with a session that begins anew.
func as(t *testing.T, port int, user, password, clientID string) (*paho.Client, error) {
	t.Helper()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	require.NoError(t, err)
	client := paho.NewClient(paho.ClientConfig{Conn: conn})
	t.Cleanup(func() { _ = client.Disconnect(&paho.Disconnect{}) })
	_, err = client.Connect(context.Background(), &paho.Connect{
		ClientID: clientID, CleanStart: true, KeepAlive: 30,
		Username: user, UsernameFlag: true, Password: []byte(password), PasswordFlag: true,
	})
	return client, err
}

// A device that connects under the client ID of ingestion would throw away what waits for it. The rules for Mosquitto
// that the documentation gives keep it from that; without them the same test loses everything.
func TestDevicesCanNotTakeTheSession(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("mosquitto_passwd"); err != nil {
		t.Skip("mosquitto_passwd is not installed: apt-get install mosquitto")
	}
	newBroker(t, "").stop() // skips without Mosquitto
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o755))
	devices, platform := freePort(t), freePort(t)
	b := newBrokerWith(t, documentedRules(t, dir, devices, platform))
	b.port = platform

	login := func(c *Config) { c.Username, c.Password = "platform", "secret" }
	s := subscribe(t, b.url(), login)
	require.EqualValues(t, BrokersMaxPacket, s.waitUp().MaximumPacketSize)
	shut(s)
	device, err := as(t, devices, "device-001", "one", "whatever")
	require.NoError(t, err)
	sent := &publisher{t: t, client: device}
	for _, n := range numbers(0, 20) {
		sent.publish(topic1, n)
	}
	_, err = as(t, devices, "device-002", "two", "cornjacket-ingestion")
	require.NoError(t, err, "it is let in, under its own name")
	_, err = as(t, platform, "device-002", "two", "cornjacket-ingestion")
	require.Error(t, err, "the platform's listener knows no device")

	s = subscribe(t, b.url(), login)
	require.True(t, s.waitUp().SessionPresent)
	require.Equal(t, numbers(0, 20), s.collect(20))
}
