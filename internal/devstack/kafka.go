package devstack

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

// DefaultPartitions is the number of partitions of a topic when [KafkaConfig] does not say.
const DefaultPartitions = 8

// groupMinSession lets tests notice dead consumers sooner than Kafka's 6 s would.
const groupMinSession = 500 * time.Millisecond

// KafkaConfig configures a [Kafka].
type KafkaConfig struct {
	// Addr is the address to listen on and to tell clients, host:port; port 0 picks a free one.
	Addr string
	// Advertise is the address to tell clients in its place, host:port, such as that of a proxy.
	Advertise string
	// Dir is where topics, records and offsets are kept. Empty keeps them in memory.
	Dir string
	// Partitions of topics that are created without a number of their own. Zero means DefaultPartitions.
	Partitions int
	// Topics are created at the start if they are not there.
	Topics []string
	// TLS makes clients speak it, with this certificate; nil means plain text.
	TLS *tls.Config
	// Users may log in, and if there are any nobody else may do anything.
	Users []KafkaUser
	// Log takes the broker's warnings and errors. Nil means slog.Default.
	Log *slog.Logger
}

// KafkaUser is a user of a [Kafka]; Mechanism is PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.
type KafkaUser struct{ Mechanism, Name, Password string }

// Kafka is one broker with the Kafka API in this process.
type Kafka struct {
	cluster *kfake.Cluster
	addr    string
}

// StartKafka starts a broker. The caller must see to it that no other one uses the same folder.
//
// Records survive a kill -9 of the process: each is written to its file before the producer has its acknowledgement,
// and the kernel keeps what was written. They are not synced to the disk one by one, as in Kafka's own default: a
// power failure may lose the last ones, which the event log in Postgres still has, and syncing each batch of each
// partition would cost more than the rest of the pipeline.
func StartKafka(cfg KafkaConfig) (*Kafka, error) {
	if cfg.Partitions == 0 {
		cfg.Partitions = DefaultPartitions
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	opts := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.ClusterID("cornjacket-dev"),
		kfake.DefaultNumPartitions(cfg.Partitions),
		kfake.AllowAutoTopicCreation(),
		kfake.GroupMinSessionTimeout(groupMinSession),
		kfake.ListenFn(cfg.listen),
		kfake.WithLogger(kafkaLog{cfg.Log}),
	}
	if cfg.TLS != nil {
		opts = append(opts, kfake.TLS(cfg.TLS))
	}
	if len(cfg.Users) > 0 {
		opts = append(opts, kfake.EnableSASL())
	}
	for _, u := range cfg.Users {
		opts = append(opts, kfake.Superuser(u.Mechanism, u.Name, u.Password))
	}
	if cfg.Dir != "" {
		if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
			return nil, fmt.Errorf("create folder of the Kafka broker: %w", err)
		}
		opts = append(opts, kfake.DataDir(cfg.Dir))
	}
	cluster, err := kfake.NewCluster(opts...)
	if err != nil {
		return nil, fmt.Errorf("start Kafka broker on %s: %w", cfg.Addr, err)
	}
	k := &Kafka{cluster: cluster, addr: cluster.ListenAddrs()[0]}
	for _, topic := range cfg.Topics {
		if cluster.TopicInfo(topic) != nil {
			continue
		}
		if err := cluster.CreateTopic(topic, int32(cfg.Partitions), nil); err != nil {
			k.Close()
			return nil, fmt.Errorf("create topic %s: %w", topic, err)
		}
	}
	return k, nil
}

// listen listens on Addr. Clients are told the address that the listener says it has.
func (c *KafkaConfig) listen(network, _ string) (net.Listener, error) {
	l, err := net.Listen(network, c.Addr)
	if err != nil || c.Advertise == "" {
		return l, err
	}
	told, err := net.ResolveTCPAddr(network, c.Advertise)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read address to tell clients: %w", err), l.Close())
	}
	return advertised{l, told}, nil
}

// advertised is a listener that is reached at another address.
type advertised struct {
	net.Listener
	addr net.Addr
}

func (a advertised) Addr() net.Addr { return a.addr }

// Addr returns the address that clients are told, host:port.
func (k *Kafka) Addr() string { return k.addr }

// Close stops the broker and syncs its files.
func (k *Kafka) Close() { k.cluster.Close() }

// kafkaLog passes warnings and errors on.
type kafkaLog struct{ log *slog.Logger }

func (l kafkaLog) Logf(level kfake.LogLevel, format string, args ...any) {
	to := slog.LevelWarn
	switch level {
	case kfake.LogLevelError:
		to = slog.LevelError
	case kfake.LogLevelWarn:
	default:
		return
	}
	l.log.Log(context.Background(), to, "kafka broker: "+fmt.Sprintf(format, args...))
}
