package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// product is the module that is measured.
const product = "github.com/cornjacket/platform-services"

// buildPlatform builds the binary that is measured, as `make build` does: in its own module, with the versions of its
// go.mod.
func buildPlatform(ctx context.Context, dir string) (string, error) {
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", product).Output()
	if err != nil {
		return "", fmt.Errorf("find the module of the platform: %w", err)
	}
	path, err := filepath.Abs(filepath.Join(dir, "platform"))
	if err != nil {
		return "", fmt.Errorf("find folder of the platform: %w", err)
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "./cmd/platform")
	cmd.Dir = string(bytes.TrimSpace(root))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the platform: %w: %s", err, bytes.TrimSpace(out))
	}
	return path, nil
}

// platform is a running `platform run`.
type platform struct {
	*child
	addrs map[string]string // of its services
}

func (p *platform) ingestion() string { return "http://" + p.addrs["ingestion"] + "/api/v1/events" }
func (p *platform) batch() string     { return p.ingestion() + "/batch" }
func (p *platform) query() string     { return "http://" + p.addrs["query"] + "/api/v1" }

// startPlatform starts services on the rig without waiting until they are ready.
func (r *rig) startPlatform(services string) (*platform, error) {
	env := []string{
		"SERVICES=" + services, "LOG_FORMAT=json", "LOG_LEVEL=info",
		"REDPANDA_BROKERS=" + r.kafkaAddr, "MQTT_URL=" + r.mqttURL, "MQTT_CLIENT_ID=bench", "MQTT_USERNAME=", "MQTT_PASSWORD=",
		fmt.Sprintf("TOPIC_PARTITIONS=%d", partitions), "API_AUTH=auto", "EMBEDDED_MQTT=false",
	}
	for _, name := range []string{"INGESTION", "EVENTHANDLER", "QUERY", "TSDB", "ACTIONS"} {
		env = append(env, name+"_DATABASE_URL="+r.dbURL)
	}
	for _, name := range []string{
		"INGESTION_ADDR", "QUERY_ADDR", "ACTIONS_ADDR", "ACTIONS_HEALTH_ADDR", "EVENTHANDLER_HEALTH_ADDR",
		"TSDB_HEALTH_ADDR", "RELAY_HEALTH_ADDR", "INFERENCE_HEALTH_ADDR",
	} {
		env = append(env, name+"=127.0.0.1:0")
	}
	c, err := r.spawn("platform", env, r.b.platform, "run")
	if err != nil {
		return nil, err
	}
	return &platform{child: c}, nil
}

// ready waits until all services are ready and learns their addresses, from the line that the platform logs then.
func (p *platform) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	return p.await(ctx, "is ready", func() (bool, error) {
		log, err := os.ReadFile(p.log)
		if err != nil {
			return false, err
		}
		for line := range bytes.Lines(log) {
			var said struct {
				Msg       string            `json:"msg"`
				Addresses map[string]string `json:"addresses"`
			}
			if json.Unmarshal(line, &said) == nil && said.Msg == "ready" { // others may be half written
				p.addrs = said.Addresses
				return true, nil
			}
		}
		return false, nil
	})
}

// runPlatform starts services and waits until they are ready.
func (r *rig) runPlatform(ctx context.Context, services string) (*platform, error) {
	p, err := r.startPlatform(services)
	if err != nil {
		return nil, err
	}
	if err := p.ready(ctx); err != nil {
		return nil, err
	}
	return p, nil
}
