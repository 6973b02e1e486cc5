package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	redpandaData = "/var/lib/redpanda/data"
	adminAddr    = "0.0.0.0:9644"
	askTimeout   = 3 * time.Second
)

// rpk stands in for Redpanda's image, whose entrypoint it is: `rpk redpanda start` is the broker, `rpk cluster health`
// and `rpk cluster info` are how the health check asks for it.
func rpk(ctx context.Context, args []string) error {
	switch {
	case starts(args, "redpanda", "start"):
		settings, err := parseRedpanda(args[2:])
		if err != nil {
			return err
		}
		return redpanda(ctx, settings)
	case starts(args, "cluster", "health"):
		return fetch(ctx, "http://127.0.0.1:9644/v1/status/ready", io.Discard)
	case starts(args, "cluster", "info"):
		brokers := "127.0.0.1:9092"
		for i, arg := range args[:len(args)-1] {
			if arg == "--brokers" {
				brokers = args[i+1]
			}
		}
		return ping(ctx, brokers)
	default:
		return fmt.Errorf("unknown command %q", strings.Join(args, " "))
	}
}

func starts(args []string, with ...string) bool {
	return len(args) >= len(with) && strings.Join(args[:len(with)], " ") == strings.Join(with, " ")
}

// redpandaSettings are what the broker is told on its command line.
type redpandaSettings struct {
	listen    map[string]string // by the listener's name: the address to listen on
	advertise map[string]string // and the one to tell clients
	create    bool              // topics on demand
}

// flags of Redpanda that have no meaning for the stand-in. Any other one is refused, as rpk does.
var ignoredFlags = []string{
	"--smp=", "--memory=", "--reserve-memory=", "--overprovisioned", "--node-id=", "--check=", "--unsafe-bypass-fsync=",
	"--default-log-level=", "--rpc-addr=", "--advertise-rpc-addr=",
}

func parseRedpanda(args []string) (redpandaSettings, error) {
	s := redpandaSettings{create: true}
	var err error
	for i := 0; i < len(args) && err == nil; i++ {
		name, value, _ := strings.Cut(args[i], "=")
		switch {
		case name == "--kafka-addr":
			s.listen, err = listeners(value)
		case name == "--advertise-kafka-addr":
			s.advertise, err = listeners(value)
		case args[i] == "--set" && i+1 < len(args):
			i++
			err = s.set(args[i])
		case !ignored(args[i]):
			err = fmt.Errorf("unknown flag %s", args[i])
		}
	}
	if err != nil {
		return s, err
	}
	if len(s.listen) == 0 {
		return s, errors.New("--kafka-addr is missing")
	}
	for name := range s.listen {
		if s.advertise[name] == "" {
			return s, fmt.Errorf("--advertise-kafka-addr has no listener %s", name)
		}
	}
	return s, nil
}

func (s *redpandaSettings) set(property string) error {
	switch property {
	case "redpanda.auto_create_topics_enabled=false":
		s.create = false
	case "redpanda.write_caching_default=disabled": // it has none
	default:
		return fmt.Errorf("unknown property %s", property)
	}
	return nil
}

func ignored(arg string) bool {
	for _, flag := range ignoredFlags {
		if arg == flag || strings.HasSuffix(flag, "=") && strings.HasPrefix(arg, flag) {
			return true
		}
	}
	return false
}

// listeners reads name://host:port,…
func listeners(list string) (map[string]string, error) {
	found := make(map[string]string)
	for item := range strings.SplitSeq(list, ",") {
		name, addr, ok := strings.Cut(item, "://")
		if !ok {
			return nil, fmt.Errorf("listener %q: want name://host:port", item)
		}
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return nil, fmt.Errorf("listener %s: %w", name, err)
		}
		found[name] = addr
	}
	return found, nil
}

// redpanda serves the Kafka API and as much of the admin API as a health check asks for, until ctx ends.
func redpanda(ctx context.Context, s redpandaSettings) error {
	entries, err := openEntries(s.listen, s.advertise)
	if err != nil {
		return err
	}
	opts := []kfake.Opt{
		kfake.NumBrokers(1), kfake.ClusterID("standin"), kfake.DefaultNumPartitions(1),
		kfake.DataDir(redpandaData), kfake.SyncWrites(),
		kfake.ListenFn(func(string, string) (net.Listener, error) { return entries, nil }),
		kfake.WithLogger(kfake.BasicLogger(os.Stderr, kfake.LogLevelWarn)),
	}
	if s.create {
		opts = append(opts, kfake.AllowAutoTopicCreation())
	}
	cluster, err := kfake.NewCluster(opts...)
	if err != nil {
		return errors.Join(fmt.Errorf("start the broker: %w", err), entries.Close())
	}
	defer cluster.Close()

	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status/ready", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"status":"ready"}`) // a client that has gone
	})
	fmt.Fprintln(os.Stderr, "stand-in for Redpanda: ready")
	return serve(ctx, adminAddr, mux)
}

// serve answers HTTP until ctx ends.
func serve(ctx context.Context, addr string, handler http.Handler) error {
	server := &http.Server{Addr: addr, Handler: handler, ReadHeaderTimeout: askTimeout}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() }) // ends ListenAndServe
	defer stop()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP: %w", err)
	}
	return nil
}

// ping asks a broker for its metadata, and the address that this names too.
func ping(ctx context.Context, brokers string) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(brokers, ",")...))
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if err := client.Ping(ctx); err != nil {
		return fmt.Errorf("ask %s: %w", brokers, err)
	}
	return nil
}
