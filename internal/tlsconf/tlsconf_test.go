package tlsconf

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/internal/tlstest"
)

// server listens with the files until the test ends.
func server(t *testing.T, files tlstest.Files, log *slog.Logger) string {
	t.Helper()
	config, err := Server(files.Cert, files.Key, log)
	require.NoError(t, err)
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			_ = conn.(*tls.Conn).HandshakeContext(context.Background())
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		require.NoError(t, l.Close())
		<-done
	})
	return l.Addr().String()
}

// dial shakes hands and returns the server's certificate.
func dial(t *testing.T, addr string, config *tls.Config) (*x509.Certificate, error) {
	t.Helper()
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", addr, config)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	return conn.ConnectionState().PeerCertificates[0], nil
}

func TestClientTrustsAnAuthority(t *testing.T) {
	t.Parallel()
	files, others := tlstest.Write(t, t.TempDir()), tlstest.Write(t, t.TempDir())
	addr := server(t, files, slog.New(slog.DiscardHandler))
	config, err := Client(files.CA)
	require.NoError(t, err)
	_, err = dial(t, addr, config)
	require.NoError(t, err)

	var unknown x509.UnknownAuthorityError
	for _, ca := range []string{others.CA, ""} {
		config, err := Client(ca)
		require.NoError(t, err)
		_, err = dial(t, addr, config)
		require.ErrorAs(t, err, &unknown)
	}
	config.MinVersion, config.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	_, err = dial(t, addr, config)
	require.ErrorContains(t, err, "protocol version")
}

func TestPinnedTakesOneCertificate(t *testing.T) {
	t.Parallel()
	files, others := tlstest.Write(t, t.TempDir()), tlstest.Write(t, t.TempDir())
	addr := server(t, files, slog.New(slog.DiscardHandler))
	config, err := Pinned(files.Cert)
	require.NoError(t, err)
	config.ServerName = "elsewhere.example"
	_, err = dial(t, addr, config)
	require.NoError(t, err)
	config, err = Pinned(others.Cert)
	require.NoError(t, err)
	_, err = dial(t, addr, config)
	require.ErrorContains(t, err, "certificate is not the one in "+others.Cert)
}

func TestFilesThatCanNotBeUsed(t *testing.T) {
	t.Parallel()
	files, others := tlstest.Write(t, t.TempDir()), tlstest.Write(t, t.TempDir())
	missing := filepath.Join(t.TempDir(), "missing.pem")
	log := slog.New(slog.DiscardHandler)
	_, err := Server(files.Cert, missing, log)
	require.ErrorContains(t, err, missing)
	_, err = Server(files.Cert, others.Key, log)
	require.ErrorContains(t, err, "does not match")
	_, err = Server(files.Key, files.Key, log)
	require.ErrorContains(t, err, files.Key)
	_, err = Client(missing)
	require.ErrorContains(t, err, missing)
	_, err = Client(files.Key)
	require.ErrorContains(t, err, "no certificate")
	_, err = Pinned(missing)
	require.ErrorContains(t, err, missing)
	_, err = Pinned(files.Key)
	require.ErrorContains(t, err, "no certificate")
}

func TestServerReadsChangedFilesAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	files := tlstest.Write(t, dir)
	var log bytes.Buffer // written while a handshake of ours waits
	addr := server(t, files, slog.New(slog.NewTextHandler(&log, nil)))
	pinned := func() *tls.Config {
		config, err := Pinned(files.Cert)
		require.NoError(t, err)
		return config
	}
	before := pinned()
	first, err := dial(t, addr, before)
	require.NoError(t, err)

	tlstest.Write(t, dir)
	second, err := dial(t, addr, pinned())
	require.NoError(t, err)
	require.NotEqual(t, first.SerialNumber, second.SerialNumber)
	_, err = dial(t, addr, before)
	require.Error(t, err, "the old one is gone")

	after := pinned()
	require.NoError(t, os.WriteFile(files.Key, []byte("half a"), 0o600))
	for range 3 {
		_, err = dial(t, addr, after)
		require.NoError(t, err, "a key that can't be read leaves the certificate as it is")
	}
	require.Equal(t, 1, bytes.Count(log.Bytes(), []byte("level=ERROR")), "%s", log.String())
	require.NoError(t, os.Remove(files.Key))
	_, err = dial(t, addr, after)
	require.NoError(t, err)
	tlstest.Write(t, dir)
	third, err := dial(t, addr, pinned())
	require.NoError(t, err)
	require.NotEqual(t, second.SerialNumber, third.SerialNumber)
}
