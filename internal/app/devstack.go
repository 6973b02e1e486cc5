package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/internal/devstack"
	"github.com/cornjacket/platform-services/routers"
)

// stackStop is the part of the shutdown timeout that is left for the development stack, which has what the services
// leave of theirs too.
const stackStop = 4 * time.Second

// Dev runs services with an embedded PostgreSQL, Kafka API broker and MQTT broker, and prints to out where everything
// is. It ends like [Run].
func Dev(ctx context.Context, cfg config.Dev, out io.Writer, log *slog.Logger) (err error) {
	lock, err := takeFolder(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()

	postgres, err := devstack.StartPostgres(ctx, devstack.PostgresConfig{
		Dir: filepath.Join(cfg.DataDir, "postgres"), Addr: cfg.PostgresAddr,
		User: "cornjacket", Password: "cornjacket", Database: "cornjacket", Log: log,
	})
	if err != nil {
		return fmt.Errorf("embedded PostgreSQL: %w", err)
	}
	var stopping atomic.Pointer[time.Time]
	defer context.AfterFunc(ctx, func() { stopping.Store(new(time.Now())) })()
	defer func() {
		left := stackStop
		if began := stopping.Load(); began != nil {
			left = max(left, cfg.ShutdownTimeout-time.Since(*began))
		}
		stopCtx, cancel := context.WithTimeout(context.Background(), left)
		defer cancel()
		err = errors.Join(err, postgres.Stop(stopCtx))
	}()
	bus, err := devstack.StartKafka(devstack.KafkaConfig{
		Addr: cfg.KafkaAddr, Dir: filepath.Join(cfg.DataDir, "kafka"), Partitions: int(cfg.TopicPartitions), Log: log,
	})
	if err != nil {
		return fmt.Errorf("embedded Kafka API broker: %w", err)
	}
	defer bus.Close()

	run := config.Run{
		Services: cfg.Services, Addresses: cfg.Addresses, Doors: cfg.Doors, Tuning: cfg.Tuning, Topics: cfg.Topics, Timeouts: cfg.Timeouts, Log: cfg.Log,
		Databases: config.OneDatabase(postgres.URL()),
		Broker: config.Broker{
			RedpandaBrokers: []string{bus.Addr()}, MQTTURL: "mqtt://" + cfg.MQTTAddr, EmbeddedMQTT: true, MQTTUsers: cfg.MQTTUsers,
		},
	}
	run.ShutdownTimeout = max(run.ShutdownTimeout-stackStop, time.Second)

	runCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-postgres.Done():
			cancel()
		case <-runCtx.Done():
		}
	}()
	err = runThen(runCtx, run, log, func(addrs map[string]string) {
		_, _ = io.WriteString(out, banner(cfg, postgres.URL(), bus.Addr(), addrs)) // a closed terminal is no reason to stop
	})
	select {
	case <-postgres.Done():
		return errors.Join(err, fmt.Errorf("embedded PostgreSQL: %w", postgres.Err()))
	default:
		return err
	}
}

// takeFolder locks the data folder, and empties it if that is asked for. Nothing is touched before all ports are known
// to be free; one that a killed platform's own PostgreSQL still has is made free.
func takeFolder(cfg config.Dev) (*devstack.Lock, error) {
	lock, err := devstack.LockFolder(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	err = devstack.StopOrphan(filepath.Join(cfg.DataDir, "postgres"))
	if err == nil {
		err = oneLine(devstack.CheckPorts(devPorts(cfg)))
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	if !cfg.Fresh {
		return lock, nil
	}
	if err := lock.Close(); err != nil { // Wipe takes it itself
		return nil, err
	}
	if err := devstack.Wipe(cfg.DataDir); err != nil {
		return nil, fmt.Errorf("--fresh: %w", err)
	}
	return devstack.LockFolder(cfg.DataDir)
}

// devPorts are all ports that `platform dev` takes.
func devPorts(cfg config.Dev) []devstack.Service {
	ports := []devstack.Service{
		{Name: "embedded PostgreSQL", Addr: cfg.PostgresAddr},
		{Name: "embedded Kafka API broker", Addr: cfg.KafkaAddr},
		{Name: "embedded MQTT broker", Addr: cfg.MQTTAddr},
	}
	for _, service := range routers.ServiceNames() {
		if !slices.Contains(cfg.Services, service) {
			continue
		}
		for _, a := range routers.ServiceOf(service).Addresses {
			ports = append(ports, devstack.Service{Name: service, Addr: cfg.Listen.Get(a.Variable)})
		}
	}
	return ports
}

// oneLine joins the lines of an error, so that it stays one line on a terminal.
func oneLine(err error) error {
	if err == nil {
		return nil
	}
	return errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
}

func banner(cfg config.Dev, database, bus string, addrs map[string]string) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	mqtt := cmp.Or(addrs["mqtt"], cfg.MQTTAddr)
	host, port, _ := net.SplitHostPort(mqtt) // it was listened on
	scheme := "http"
	if cfg.TLSCertFile != "" {
		scheme = "https"
	}
	line("")
	line("Cornjacket is running. Data is kept in %s (--fresh wipes it). Ctrl-C stops.", cfg.DataDir)
	line("")
	var health []string // of those without a line of their own
	for _, s := range routers.Services() {
		if addr := addrs[s.Name]; addr != "" && s.Name != routers.Ingestion && s.Name != routers.Query {
			health = append(health, fmt.Sprintf("%s://%s/health (%s)", scheme, addr, strings.ToLower(s.Title)))
		}
	}
	line("  MQTT        mqtt://%s", mqtt)
	line("  Ingestion   %s://%s/api/v1/events", scheme, addrs[routers.Ingestion])
	line("  Query       %s://%s/api/v1/projections/sensor_state", scheme, addrs[routers.Query])
	line("  Health      %s", strings.Join(health, ", "))
	line("  Kafka API   %s", bus)
	line("  PostgreSQL  %s", database)
	line("")
	line("Try:")
	line(`  mosquitto_pub -h %s -p %s -q 1 -t devices/device-001/events/sensor.reading -m '{"value":72.5,"unit":"fahrenheit"}'`, host, port)
	line(`  curl -s -H 'Content-Type: application/json' %s://%s/api/v1/events -d '{"event_type":"sensor.reading","aggregate_id":"device-002","payload":{"value":21.5,"unit":"celsius"}}'`, scheme, addrs[routers.Ingestion])
	line(`  curl -s %s://%s/api/v1/projections/sensor_state/device-001`, scheme, addrs[routers.Query])
	line("")
	return b.String()
}
