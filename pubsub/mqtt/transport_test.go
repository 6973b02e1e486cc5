package mqtt

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
	"github.com/stretchr/testify/require"
)

func TestTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o755))
	pool := certificate(t, dir)
	port := freePort(t)
	b := newBroker(t, fmt.Sprintf("listener %d 127.0.0.1\ncertfile %s/cert.pem\nkeyfile %s/key.pem", port, dir, dir))
	s := subscribe(t, fmt.Sprintf("mqtts://127.0.0.1:%d", port), func(c *Config) { c.TLS = &tls.Config{RootCAs: pool} })
	deliverAndClose(t, b, s)
	bad := subscribe(t, fmt.Sprintf("mqtts://127.0.0.1:%d", port))
	require.Eventually(t, func() bool {
		var unknown x509.UnknownAuthorityError
		return errors.As(bad.LastError(), &unknown)
	}, wait, 10*time.Millisecond)
}

func TestWebsocket(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	b := newBroker(t, fmt.Sprintf("listener %d 127.0.0.1\nprotocol websockets", port))
	s := subscribe(t, fmt.Sprintf("ws://127.0.0.1:%d", port))
	deliverAndClose(t, b, s)
}

func deliverAndClose(t *testing.T, b *broker, s *testSub) {
	t.Helper()
	s.waitUp()
	p := newPublisher(t, b)
	for _, n := range numbers(0, 100) {
		p.publish(topic1, n)
	}
	require.Equal(t, numbers(0, 100), s.collect(100))
	shut(s)
	nothingLeft(t, b.url(), p)
}

// certificate writes a self-signed one for 127.0.0.1 and returns a pool that trusts it.
func certificate(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	require.NoError(t, os.WriteFile(filepath.Join(dir, "cert.pem"), certPEM, 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "key.pem"), keyPEM, 0o644))
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(certPEM))
	return pool
}

// TestQoS0CannotStallTheConnection floods a subscriber whose handlers are stuck.
func TestQoS0CannotStallTheConnection(t *testing.T) {
	t.Parallel()
	b := newBroker(t, "")
	line := newProxy(t, b.addr())
	s := subscribe(t, line.url(), func(c *Config) { c.Window, c.QoS0Buffer = 4, 100_000; c.CloseTimeout = 100 * time.Millisecond })
	s.waitUp()
	p := newPublisher(t, b)
	body := make([]byte, 1000)
	for s.Dropped() == 0 {
		_, err := p.client.Publish(context.Background(), &paho.Publish{Topic: topic1, Payload: body})
		require.NoError(t, err)
	}
	p.publish(topic1, "kept")
	// Long enough for pings to be sent and answered.
	require.Never(t, func() bool { return !s.Connected() }, 2*pingEvery+time.Second, 50*time.Millisecond)
	for all := []string(nil); !slices.Contains(all, "kept"); {
		all = s.collect(1)
	}
	require.Equal(t, 1, line.accepted())
}

func TestSameClientIDTwice(t *testing.T) {
	t.Parallel()
	b := newBroker(t, "")
	downs := make(chan error, 1000)
	one := subscribe(t, b.url(), func(c *Config) { c.OnDown = func(err error) { downs <- err } })
	one.waitUp()
	subscribe(t, b.url()).waitUp()
	require.ErrorContains(t, <-downs, `client ID "cornjacket-ingestion"`)
}
