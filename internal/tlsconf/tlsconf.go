// Package tlsconf makes TLS configurations of files: of servers, whose certificate is read again when it changes, and
// of clients, which trust an authority or one certificate. All speak TLS 1.2 or newer.
package tlsconf

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Server returns the configuration of a server with the certificate and the key of two PEM files. At each handshake the
// files are looked at; when one has changed they are read again. Files that can't be used then are logged, and the
// certificate stays what it was: half of a renewal must not close the port.
func Server(certFile, keyFile string, log *slog.Logger) (*tls.Config, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile, log: log}
	stamp, err := c.look()
	if err == nil {
		err = c.read(stamp)
	}
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return c.current(), nil
	}}, nil
}

// certificate is a pair of files and what they held when they were last read.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger

	mu    sync.Mutex
	seen  [2]stamp // of the files when they were last read, or could not be
	valid *tls.Certificate
}

// stamp reports whether a file has changed.
type stamp struct {
	modified time.Time
	size     int64
}

func (c *certificate) current() *tls.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen, err := c.look()
	if err == nil && seen == c.seen {
		return c.valid
	}
	if err == nil {
		err = c.read(seen)
	}
	if err == nil {
		c.log.Info("certificate of the HTTP ports was read again", "file", c.certFile, "not_after", c.valid.Leaf.NotAfter)
		return c.valid
	}
	if seen != c.seen { // once for each change
		c.seen = seen
		c.log.Error("changed certificate can't be used, the HTTP ports keep the one they have", "error", err)
	}
	return c.valid
}

// look returns the stamps of both files.
func (c *certificate) look() (seen [2]stamp, err error) {
	for i, name := range []string{c.certFile, c.keyFile} {
		info, statErr := os.Stat(name)
		if statErr != nil {
			err = errors.Join(err, fmt.Errorf("look at %s: %w", name, statErr))
			continue
		}
		seen[i] = stamp{info.ModTime(), info.Size()}
	}
	return seen, err
}

func (c *certificate) read(seen [2]stamp) error {
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return fmt.Errorf("read certificate %s with key %s: %w", c.certFile, c.keyFile, err)
	}
	c.valid, c.seen = &pair, seen
	return nil
}

// Client returns the configuration of a client that trusts the authorities in a PEM file; those of the system if the
// name is empty.
func Client(caFile string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile == "" {
		return config, nil
	}
	data, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("read certificates of authorities: %w", err)
	}
	config.RootCAs = x509.NewCertPool()
	if !config.RootCAs.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s holds no certificate in PEM form", caFile)
	}
	return config, nil
}

// Pinned returns the configuration of a client that takes the first certificate in a PEM file and no other. Names and
// authorities do not matter: the server has proven that it has this certificate's key.
func Pinned(certFile string) (*tls.Config, error) {
	data, err := os.ReadFile(certFile)
	if err != nil {
		return nil, fmt.Errorf("read certificate to expect: %w", err)
	}
	want, err := firstCertificate(data)
	if err != nil {
		return nil, fmt.Errorf("read certificate to expect from %s: %w", certFile, err)
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, //nolint:gosec // in its place VerifyConnection compares the certificate itself
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 || !bytes.Equal(state.PeerCertificates[0].Raw, want.Raw) {
				return fmt.Errorf("certificate is not the one in %s", certFile)
			}
			return nil
		},
	}, nil
}

func firstCertificate(data []byte) (*x509.Certificate, error) {
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return nil, errors.New("it holds no certificate in PEM form")
		}
		if block.Type == "CERTIFICATE" {
			return x509.ParseCertificate(block.Bytes)
		}
	}
}
