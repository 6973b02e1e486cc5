package mochi_test

import (
	"net"
	"strings"
	"testing"

	"github.com/eclipse/paho.golang/packets"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/pubsub/mochi"
)

const usersFile = `user_id,password,is_superuser
device-1,one,false
device-2,two,false
operator,secret,true
`

func readUsers(t *testing.T) *mochi.Users {
	t.Helper()
	users, err := mochi.ReadUsers(strings.NewReader(usersFile))
	require.NoError(t, err)
	return users
}

// connectAs sends a CONNECT and returns the connection and the reason code of the answer.
func connectAs(t *testing.T, b *mochi.Broker, user, password string, change ...func(*packets.Connect)) (net.Conn, byte) {
	t.Helper()
	nc, err := net.Dial("tcp", b.Addr())
	require.NoError(t, err)
	t.Cleanup(func() { _ = nc.Close() })
	connect := packets.NewControlPacket(packets.CONNECT)
	p := connect.Content.(*packets.Connect)
	p.ClientID, p.KeepAlive, p.CleanStart = user+"-client", 60, true
	if user != "" {
		p.UsernameFlag, p.Username = true, user
		p.PasswordFlag, p.Password = true, []byte(password)
	}
	for _, c := range change {
		c(p)
	}
	_, err = connect.WriteTo(nc)
	require.NoError(t, err)
	answer, err := packets.ReadPacket(nc)
	require.NoError(t, err)
	return nc, answer.Content.(*packets.Connack).ReasonCode
}

func TestOnlyUsersConnect(t *testing.T) {
	t.Parallel()
	b := listen(t, mochi.Config{Users: readUsers(t)})
	for _, c := range []struct {
		user, password string
		code           byte
	}{
		{"device-1", "one", 0}, {"operator", "secret", 0},
		{"device-1", "two", packets.ConnackBadUsernameOrPassword},
		{"device-9", "one", packets.ConnackBadUsernameOrPassword}, {"", "", packets.ConnackBadUsernameOrPassword},
	} {
		_, code := connectAs(t, b, c.user, c.password)
		require.Equal(t, c.code, code, "%s with %q", c.user, c.password)
	}
}

// A client that connects under the ID of another takes over its session: who may is a matter of the user.
func TestClientIDsAreTheUsers(t *testing.T) {
	t.Parallel()
	users, err := mochi.ReadUsers(strings.NewReader(usersFile + "device-1-2,three,false\ncornjacket,four,false\n"))
	require.NoError(t, err)
	b := listen(t, mochi.Config{Username: "platform", Password: "p", Users: users})
	victim, code := connectAs(t, b, "device-1", "one", func(p *packets.Connect) { p.ClientID = "device-1" })
	require.Zero(t, code)
	for _, c := range []struct {
		user, password, id string
		ok                 bool
	}{
		{"device-2", "two", "device-1", false}, // of the victim
		{"device-2", "two", "device-2", true},
		{"device-2", "two", "device-2-a", true},
		{"device-2", "two", "device-2a", false},
		{"device-2", "two", "device-20", false},
		{"device-2", "two", "", true}, // the broker makes one up
		{"device-2", "two", "cornjacket-ingestion", false},
		{"cornjacket", "four", "cornjacket-ingestion", false}, // the platform's, whatever a device is called
		{"cornjacket", "four", "cornjacket", true},
		{"device-1", "one", "device-1-2", false}, // a device of its own
		{"device-1", "one", "device-1-2-a", false},
		{"device-1", "one", "device-1-20", true},
		{"device-1-2", "three", "device-1-2-a", true},
		{"operator", "secret", "device-9", true},
		{"platform", "p", "cornjacket-ingestion", true},
	} {
		_, code := connectAs(t, b, c.user, c.password, func(p *packets.Connect) { p.ClientID = c.id })
		require.Equal(t, c.ok, code == 0, "%s as %q", c.user, c.id)
	}
	_, err = packets.NewControlPacket(packets.PINGREQ).WriteTo(victim)
	require.NoError(t, err)
	answer, err := packets.ReadPacket(victim)
	require.NoError(t, err)
	require.Equal(t, packets.PINGRESP, answer.Type, "it is still connected")
}

func TestUsernameMayDoEverythingBesideUsers(t *testing.T) {
	t.Parallel()
	b := listen(t, mochi.Config{Username: "platform", Password: "p", Users: readUsers(t)})
	for _, c := range [][2]string{{"platform", "p"}, {"device-1", "one"}} {
		_, code := connectAs(t, b, c[0], c[1])
		require.Zero(t, code, c[0])
	}
	_, code := connectAs(t, b, "platform", "one")
	require.Equal(t, byte(packets.ConnackBadUsernameOrPassword), code)
	nc, _ := connectAs(t, b, "platform", "p")
	sub := packets.NewControlPacket(packets.SUBSCRIBE)
	p := sub.Content.(*packets.Subscribe)
	p.PacketID, p.Subscriptions = 1, []packets.SubOptions{{Topic: "#"}}
	_, err := sub.WriteTo(nc)
	require.NoError(t, err)
	answer, err := packets.ReadPacket(nc)
	require.NoError(t, err)
	require.Equal(t, []byte{0}, answer.Content.(*packets.Suback).Reasons)
}

func TestDeviceKeepsToItsTopics(t *testing.T) {
	t.Parallel()
	b := listen(t, mochi.Config{Users: readUsers(t)})
	out := subscribe(t, b)
	go func() {
		for msg := range out {
			msg.Ack()
		}
	}()
	for _, c := range []struct {
		user, password, topic string
		ok                    bool
	}{
		{"device-1", "one", "devices/device-1/events/sensor.reading", true},
		{"device-1", "one", "devices/device-1/status", true},
		{"device-1", "one", "devices/device-2/events/sensor.reading", false},
		{"device-1", "one", "devices/device-10/events/sensor.reading", false},
		{"device-1", "one", "events", false}, // an envelope may name any device
		{"device-1", "one", "other", false},
		{"operator", "secret", "events", true},
		{"operator", "secret", "devices/device-2/commands/restart", true},
	} {
		nc, code := connectAs(t, b, c.user, c.password)
		require.Zero(t, code)
		pub := packets.NewControlPacket(packets.PUBLISH)
		p := pub.Content.(*packets.Publish)
		p.Topic, p.QoS, p.PacketID, p.Payload = c.topic, 1, 1, []byte(`{}`)
		_, err := pub.WriteTo(nc)
		require.NoError(t, err)
		answer, err := packets.ReadPacket(nc)
		require.NoError(t, err)
		want := byte(packets.PubackSuccess)
		if !c.ok {
			want = packets.PubackNotAuthorized
		}
		require.Equal(t, want, answer.Content.(*packets.Puback).ReasonCode, "%s publishes to %s", c.user, c.topic)
	}
}

func TestDeviceReadsItsCommandsOnly(t *testing.T) {
	t.Parallel()
	b := listen(t, mochi.Config{Users: readUsers(t)})
	nc, code := connectAs(t, b, "device-1", "one")
	require.Zero(t, code)
	filters := map[string]bool{
		"devices/device-1/commands/#": true, "devices/device-1/commands/restart": true, "$share/g/devices/device-1/commands/+": true,
		"#": false, "devices/#": false, "devices/+/commands/#": false, "devices/device-2/commands/#": false,
		"devices/device-1/events/#": false, "$share/g/devices/+/events/+": false, "$share/g/#": false, "$SYS/#": false,
	}
	for filter, ok := range filters {
		sub := packets.NewControlPacket(packets.SUBSCRIBE)
		p := sub.Content.(*packets.Subscribe)
		p.PacketID, p.Subscriptions = 1, []packets.SubOptions{{Topic: filter}}
		_, err := sub.WriteTo(nc)
		require.NoError(t, err)
		answer, err := packets.ReadPacket(nc)
		require.NoError(t, err)
		want := byte(0)
		if !ok {
			want = packets.SubackNotauthorized
		}
		require.Equal(t, []byte{want}, answer.Content.(*packets.Suback).Reasons, filter)
	}
}

func TestLastWillKeepsToTheTopicsToo(t *testing.T) {
	t.Parallel()
	b := listen(t, mochi.Config{Users: readUsers(t)})
	will := func(topic string) func(*packets.Connect) {
		return func(p *packets.Connect) {
			p.WillFlag, p.WillTopic, p.WillMessage, p.WillProperties = true, topic, []byte(`{}`), &packets.Properties{}
		}
	}
	_, code := connectAs(t, b, "device-1", "one", will("devices/device-2/events/device.gone"))
	require.Equal(t, byte(packets.ConnackBadUsernameOrPassword), code)
	_, code = connectAs(t, b, "device-1", "one", will("devices/device-1/events/device.gone"))
	require.Zero(t, code)
}

func TestReadUsersRefuses(t *testing.T) {
	t.Parallel()
	const head = "user_id,password,is_superuser\n"
	for text, problem := range map[string]string{
		"":                                 "line 1: must be user_id,password,is_superuser",
		"name,password\na,b\n":             "read users: record on line 1: wrong number of fields",
		"name,password,admin\na,b,false\n": "line 1: must be user_id,password,is_superuser",
		head + "a,b\n":                     "record on line 2: wrong number of fields",
		head + ",b,false\n":                "line 2: user_id: must not be empty",
		head + "a/b,c,false\n":             "line 2: user_id: must not be empty nor contain",
		head + "+,c,false\n":               "line 2: user_id: must not be empty nor contain",
		head + "a,,false\n":                "line 2: password of a: must not be empty",
		head + "a,b,yes\n":                 `line 2: is_superuser of a: must be true or false, is "yes"`,
		head + "a,b,false\nc,d,false\na,e,true\n": `line 4: user_id: "a" is there already`,
	} {
		_, err := mochi.ReadUsers(strings.NewReader(text))
		require.ErrorContains(t, err, problem, "%q", text)
	}
}

// Sessions end a day after their clients, and there are no more clients than may be.
func TestClientsAndSessionsAreBounded(t *testing.T) {
	t.Parallel()
	b := listen(t, mochi.Config{MaxClients: 2})
	nc, err := net.Dial("tcp", b.Addr())
	require.NoError(t, err)
	t.Cleanup(func() { _ = nc.Close() })
	connect := packets.NewControlPacket(packets.CONNECT)
	p := connect.Content.(*packets.Connect)
	forever := uint32(1<<32 - 1)
	p.ClientID, p.KeepAlive, p.Properties.SessionExpiryInterval = "a", 60, &forever
	_, err = connect.WriteTo(nc)
	require.NoError(t, err)
	answer, err := packets.ReadPacket(nc)
	require.NoError(t, err)
	require.EqualValues(t, 24*60*60, *answer.Content.(*packets.Connack).Properties.SessionExpiryInterval)
	_, code := connectAs(t, b, "b", "x")
	require.Zero(t, code)
	_, code = connectAs(t, b, "c", "x")
	require.NotZero(t, code)
}
