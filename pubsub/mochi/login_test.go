package mochi_test

import (
	"net"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/pubsub/mochi"
)

// login connects with a user and a password and returns the reason code of the answer.
func login(t *testing.T, b *mochi.Broker, user, password string) byte {
	t.Helper()
	conn, err := net.Dial("tcp", b.Addr())
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	require.NoError(t, conn.SetDeadline(time.Now().Add(soon)))
	connect := packets.NewControlPacket(packets.CONNECT)
	p := connect.Content.(*packets.Connect)
	p.ClientID, p.KeepAlive, p.CleanStart = "one", 60, true
	p.Username, p.UsernameFlag, p.Password, p.PasswordFlag = user, user != "", []byte(password), password != ""
	_, err = connect.WriteTo(conn)
	require.NoError(t, err)
	answer, err := packets.ReadPacket(conn)
	require.NoError(t, err)
	return answer.Content.(*packets.Connack).ReasonCode
}

func TestLogin(t *testing.T) {
	t.Parallel()
	b := listen(t, mochi.Config{Username: "me", Password: "pass-w0rd"})
	require.Zero(t, login(t, b, "me", "pass-w0rd"))
	for _, wrong := range [][2]string{{"", ""}, {"me", ""}, {"me", "pass-w0r"}, {"Me", "pass-w0rd"}, {"", "pass-w0rd"}, {"mepass-w0rd", ""}} {
		require.GreaterOrEqual(t, login(t, b, wrong[0], wrong[1]), byte(0x80), "%v", wrong)
	}
	open := listen(t, mochi.Config{})
	require.Zero(t, login(t, open, "anyone", "x"))
	require.Zero(t, login(t, open, "", ""))
}
