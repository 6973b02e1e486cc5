package app

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/internal/devstack"
	"github.com/cornjacket/platform-services/internal/pgtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, pgtest.IgnoreServer()) }

const (
	soon  = 30 * time.Second
	every = 20 * time.Millisecond
	free  = "127.0.0.1:0"
)

var quiet = slog.New(slog.DiscardHandler)

// client keeps no connections: what is closed must be seen to be closed.
var client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func bus(t *testing.T) *devstack.Kafka {
	t.Helper()
	return busIn(t, "", free)
}

// busIn starts a broker with the data of a folder.
func busIn(t *testing.T, dir, addr string) *devstack.Kafka {
	t.Helper()
	k, err := devstack.StartKafka(devstack.KafkaConfig{Addr: addr, Dir: dir, Log: quiet})
	require.NoError(t, err)
	t.Cleanup(k.Close)
	return k
}

// settings are those of all services on one database, on free ports.
func settings(t *testing.T, database, brokers string) config.Run {
	t.Helper()
	cfg, err := config.Defaults()
	require.NoError(t, err)
	cfg.Addresses, cfg.Databases = config.EveryAddress(free), config.OneDatabase(database)
	cfg.RedpandaBrokers = []string{brokers}
	cfg.MQTTURL, cfg.EmbeddedMQTT = "mqtt://"+free, true
	cfg.TopicPartitions, cfg.TopicReplication = 2, 1
	return cfg
}

// running is a platform in this process.
type running struct {
	addrs map[string]string
	ready chan map[string]string
	ended chan error
	stop  func() error // stops it and returns its error
}

// start runs a platform until stop is called or the test ends, and waits until it is ready.
func start(t *testing.T, cfg config.Run) *running {
	t.Helper()
	return launch(t, func(ctx context.Context, ready func(map[string]string)) error {
		return runThen(ctx, cfg, quiet, ready)
	})
}

// launch is start for anything that runs.
func launch(t *testing.T, run func(ctx context.Context, ready func(map[string]string)) error) *running {
	t.Helper()
	r := begin(t, run)
	select {
	case r.addrs = <-r.ready:
	case err := <-r.ended:
		r.ended <- err
		require.FailNow(t, "the platform has ended", "%v", err)
	case <-time.After(soon):
		require.FailNow(t, "the platform is not ready")
	}
	return r
}

// begin is launch that does not wait.
func begin(t *testing.T, run func(ctx context.Context, ready func(map[string]string)) error) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{ready: make(chan map[string]string, 1), ended: make(chan error, 1)}
	go func() { r.ended <- run(ctx, func(addrs map[string]string) { r.ready <- addrs }) }()
	r.stop = sync.OnceValue(func() error {
		cancel()
		return <-r.ended
	})
	t.Cleanup(func() { require.NoError(t, r.stop()) })
	return r
}

// get returns the status and the body of an answer; status 0 when there was none.
func get(t *testing.T, url string) (int, map[string]any) {
	t.Helper()
	resp, err := client.Get(url)
	if err != nil {
		return 0, nil
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	var body map[string]any
	require.NoError(t, json.Unmarshal(data, &body), "%s: %s", url, data)
	return resp.StatusCode, body
}

// post sends a reading over HTTP and returns the status.
func post(t *testing.T, addr, aggregate string, value int) int {
	t.Helper()
	body := fmt.Sprintf(`{"event_type":"sensor.reading","aggregate_id":%q,"payload":{"value":%d,"unit":"celsius"}}`, aggregate, value)
	resp, err := client.Post("http://"+addr+"/api/v1/events", "application/json", strings.NewReader(body))
	require.NoError(t, err)
	_, _ = io.Copy(io.Discard, resp.Body)
	require.NoError(t, resp.Body.Close())
	return resp.StatusCode
}

// arrives waits until the projection of an aggregate has a value.
func arrives(t *testing.T, query, aggregate string, value int) {
	t.Helper()
	require.Eventually(t, func() bool {
		status, body := get(t, "http://"+query+"/api/v1/projections/sensor_state/"+aggregate)
		state, _ := body["state"].(map[string]any)
		return status == http.StatusOK && state["value"] == float64(value)
	}, soon, every, "%s never becomes %d", aggregate, value)
}

// failing returns the names of the checks that /health says fail, and whether it is ready.
func failing(t *testing.T, addr string) ([]any, bool) {
	t.Helper()
	status, body := get(t, "http://"+addr+"/health")
	names, _ := body["failing"].([]any)
	return names, status == http.StatusOK
}

// taken returns an address that somebody listens on until the test ends.
func taken(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", free)
	require.NoError(t, err)
	t.Cleanup(func() { _ = ln.Close() })
	return ln.Addr().String()
}

// unused returns an address that nobody listens on.
func unused(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", free)
	require.NoError(t, err)
	require.NoError(t, ln.Close())
	return ln.Addr().String()
}
