package kafka_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/internal/devstack"
	"github.com/cornjacket/platform-services/internal/tlstest"
	"github.com/cornjacket/platform-services/pubsub/kafka"
)

const password = "pass-w0rd"

// secured starts a broker that asks for TLS and a login.
func secured(t *testing.T, mechanism string) (brokers []string, files tlstest.Files) {
	t.Helper()
	files = tlstest.Write(t, t.TempDir())
	k, err := devstack.StartKafka(devstack.KafkaConfig{
		Addr: "127.0.0.1:0", Partitions: 2, TLS: files.Server(t), Log: discard,
		Users: []devstack.KafkaUser{{Mechanism: strings.ToUpper(mechanism), Name: "me", Password: password}},
	})
	require.NoError(t, err)
	t.Cleanup(k.Close)
	return []string{k.Addr()}, files
}

func TestTLSAndLogin(t *testing.T) {
	t.Parallel()
	for _, mechanism := range []string{"plain", "scram-sha-256", "scram-sha-512"} {
		t.Run(mechanism, func(t *testing.T) {
			t.Parallel()
			brokers, files := secured(t, mechanism)
			s := kafka.Security{TLS: files.Client(t), Mechanism: mechanism, Username: "me", Password: password}
			require.NoError(t, kafka.AwaitTopics(t.Context(), brokers, discard, kafka.TopicConfig{Partitions: 2, Replication: 1, Security: s}, "t"))
			pub, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: brokers, Security: s})
			require.NoError(t, err)
			defer func() { require.NoError(t, pub.Close()) }()
			require.NoError(t, pub.Publish("t", message.NewMessage("1", []byte("hello"))))
			require.NoError(t, pub.Ping(t.Context()))
			sub := kafka.NewSubscriber(kafka.SubscriberConfig{Brokers: brokers, Group: "g", Security: s})
			out, err := sub.Subscribe(t.Context(), "t")
			require.NoError(t, err)
			select {
			case m := <-out:
				require.Equal(t, "hello", string(m.Payload))
				m.Ack()
			case <-time.After(soon):
				require.FailNow(t, "no message")
			}
			drain(t, sub, out)
		})
	}
}

// lines is a log that is written concurrently.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func TestWrongSecurityIsAnError(t *testing.T) {
	t.Parallel()
	brokers, files := secured(t, "scram-sha-256")
	others := tlstest.Write(t, t.TempDir())
	log := &lines{}
	ping := func(s kafka.Security) error {
		pub, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: brokers, Security: s,
			Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
		require.NoError(t, err)
		defer func() { require.NoError(t, pub.Close()) }()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		err = pub.Ping(ctx)
		require.Error(t, err)
		require.NotContains(t, err.Error()+log.String(), "w0rd")
		return err
	}
	ok := kafka.Security{TLS: files.Client(t), Mechanism: "scram-sha-256", Username: "me", Password: password}
	wrong := ok
	wrong.Password = "wrong-w0rd"
	_ = ping(wrong)
	wrong = ok
	wrong.TLS = others.Client(t)
	var unknown x509.UnknownAuthorityError
	require.ErrorAs(t, ping(wrong), &unknown)
	wrong = ok
	wrong.TLS = nil
	_ = ping(wrong)
	wrong = ok
	wrong.Mechanism = ""
	_ = ping(wrong)
	wrong.Mechanism = "gssapi"
	_, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: brokers, Security: wrong})
	require.ErrorContains(t, err, `SASL mechanism must be plain, scram-sha-256 or scram-sha-512, is "gssapi"`)
	_, err = kafka.NewSubscriber(kafka.SubscriberConfig{Brokers: brokers, Group: "g", Security: wrong}).Subscribe(t.Context(), "t")
	require.ErrorContains(t, err, "SASL mechanism")
	require.ErrorContains(t, kafka.AwaitTopics(t.Context(), brokers, discard, kafka.TopicConfig{Security: wrong}, "t"), "SASL mechanism")
}
