package kafkatest

import (
	"net"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, IgnoreServer()) }

// Where Kafka can't be had, a test says why.
func TestAbsent(t *testing.T) { //nolint:paralleltest // sets a variable
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	err := check()
	require.ErrorIs(t, err, errAbsent)
	require.NotContains(t, err.Error(), "\n")
	require.Regexp(t, `kafka\.sh: (Apache Kafka [0-9.]+ is not here; scripts/kafka\.sh fetch gets it|Java )`, err.Error())
}

func TestBroker(t *testing.T) {
	t.Parallel()
	serves := func(addr string) bool {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	}
	b := Start(t)
	addr := b.Addr()
	require.True(t, serves(addr))
	b.Stop(t)
	require.False(t, serves(addr))
	require.NoFileExists(t, filepath.Join(b.dir, "pid"))
	b.Restart(t)
	require.Equal(t, addr, b.Addr())
	require.True(t, serves(addr))
	b.Kill(t)
	require.False(t, serves(addr))
	b.Kill(t) // again

	one := Shared(t)
	require.True(t, serves(one))
	require.Equal(t, one, Shared(t))
}
