package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
	"github.com/stretchr/testify/require"
)

// The access rules of a fleet, on the embedded broker and on Mosquitto, which has its own notion of them: a device
// publishes below its own name and reads its own commands.

const usersFile = "user_id,password,is_superuser\nplatform,secret,true\ndevice-001,one,false\ndevice-002,two,false\n"

// mosquittoRules are the same rules in Mosquitto's words: %u is the user.
const mosquittoRules = `pattern write devices/%u/#
pattern read devices/%u/commands/#
user platform
topic readwrite #
`

func TestAccessEmbedded(t *testing.T) {
	t.Parallel()
	own(t)
	users := filepath.Join(newFolder(t), "users.csv")
	require.NoError(t, os.WriteFile(users, []byte(usersFile), 0o600))
	p := dev(t, newFolder(t), "--embedded-mqtt-users", users)
	checkAccess(t, p.mqtt)
	require.Len(t, p.events(t, "device-001", 1), 1)
	var none struct {
		Items []storedEvent `json:"items"`
	}
	status, err := p.get(t.Context(), eventsPath+"?aggregate_id=device-002", &none)
	require.NoError(t, err)
	require.Equal(t, 200, status)
	require.Empty(t, none.Items, "nobody else has sent an event of this device")
	p.stop(t)
}

func TestAccessMosquitto(t *testing.T) {
	t.Parallel()
	own(t)
	hash := needTool(t, "mosquitto_passwd")
	dir := newFolder(t)
	rules, passwords := filepath.Join(dir, "acl"), filepath.Join(dir, "passwords")
	require.NoError(t, os.WriteFile(rules, []byte(mosquittoRules), 0o644))
	require.NoError(t, os.WriteFile(passwords, []byte("platform:secret\ndevice-001:one\ndevice-002:two\n"), 0o644))
	out, err := exec.CommandContext(t.Context(), hash, "-U", passwords).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NoError(t, os.Chmod(passwords, 0o644))
	m := startMosquitto(t, fmt.Sprintf("allow_anonymous false\nacl_file %s\npassword_file %s\n", rules, passwords))
	checkAccess(t, m.addr)
}

func checkAccess(t *testing.T, addr string) {
	t.Helper()
	for user, password := range map[string]string{"": "", "device-001": "two", "stranger": "one"} {
		_, _, err := join(t, addr, user, password)
		require.Error(t, err, "user %q", user)
	}
	send := func(user, password, topic string) error {
		client, _, err := join(t, addr, user, password) // anew: a broker may end the connection of who is refused
		require.NoError(t, err)
		_, err = client.Publish(t.Context(), &paho.Publish{Topic: topic, QoS: 1, Payload: []byte(`{"value":1,"unit":"celsius"}`)})
		return err
	}
	require.NoError(t, send("device-001", "one", "devices/device-001/events/sensor.reading"))
	require.NoError(t, send("device-001", "one", "devices/device-001/status"))
	for _, topic := range []string{"devices/device-002/events/sensor.reading", "devices/device-0011/events/sensor.reading", "events", "devices"} {
		require.Error(t, send("device-001", "one", topic), topic)
	}
	device, commands, err := join(t, addr, "device-001", "one")
	require.NoError(t, err)
	for _, filter := range []string{"#", "devices/device-002/#", "devices/+/commands/#", "devices/device-001/commands/#"} {
		_, _ = device.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter}}}) // refused, or of no effect
	}
	require.NoError(t, send("device-002", "two", "devices/device-002/status"))
	require.NoError(t, send("platform", "secret", "devices/device-002/commands/restart"))
	require.NoError(t, send("platform", "secret", "devices/device-001/commands/restart"))
	select {
	case command := <-commands:
		require.Equal(t, "devices/device-001/commands/restart", command.Topic, "others were sent before")
	case <-time.After(wait):
		require.Fail(t, "no command came")
	}
}

// join connects as a user, without one if the name is empty, and returns what is sent to it.
func join(t *testing.T, addr, user, password string) (*paho.Client, <-chan *paho.Publish, error) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	seen := make(chan *paho.Publish, 10)
	client := paho.NewClient(paho.ClientConfig{Conn: conn, OnPublishReceived: []func(paho.PublishReceived) (bool, error){
		func(r paho.PublishReceived) (bool, error) { seen <- r.Packet; return true, nil },
	}})
	_, err = client.Connect(t.Context(), &paho.Connect{
		ClientID: user + "-" + unique("client"), CleanStart: true, KeepAlive: 60,
		UsernameFlag: user != "", Username: user, PasswordFlag: user != "", Password: []byte(password),
	})
	return client, seen, err
}
