package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// containers is a compose project that the tests may kill and stop: E2E_COMPOSE is the command that manages it, with all
// its files, and E2E_LIVE=1 says that it is up.
type containers struct{ command []string }

func compose(t testing.TB) containers {
	t.Helper()
	command := strings.Fields(os.Getenv("E2E_COMPOSE"))
	if !live || len(command) == 0 {
		t.Skip("E2E_COMPOSE names no containers that may be killed; make compose-test does")
	}
	return containers{command}
}

func (c containers) run(t testing.TB, args ...string) string {
	t.Helper()
	return outputOf(t, append(append([]string{}, c.command...), args...)...)
}

// outputOf runs a command, which must succeed, and returns what it prints.
func outputOf(t testing.TB, command ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*wait)
	defer cancel()
	out, err := exec.CommandContext(ctx, command[0], command[1:]...).Output()
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		t.Logf("%s", failed.Stderr)
	}
	require.NoError(t, err, "%v", command)
	return strings.TrimSpace(string(out))
}

// inspect returns what the engine says of a service's container.
func (c containers) inspect(t testing.TB, service, what string) string {
	t.Helper()
	return outputOf(t, "docker", "inspect", "--format", what, c.run(t, "ps", "--all", "--quiet", service))
}

// signal sends a signal to the first process of a container, as if it had crashed: unlike after `docker kill` the engine
// starts it again.
func (c containers) signal(t testing.TB, service string, signal syscall.Signal) {
	t.Helper()
	pid, err := strconv.Atoi(c.inspect(t, service, "{{.State.Pid}}"))
	require.NoError(t, err)
	require.Positive(t, pid, "%s runs", service)
	restarts := c.inspect(t, service, "{{.RestartCount}}")
	require.NoError(t, syscall.Kill(pid, signal))
	require.Eventually(t, func() bool { return c.inspect(t, service, "{{.RestartCount}}") != restarts }, wait, 4*tick,
		"%s is started again", service)
}

func (c containers) healthy(t testing.TB, services ...string) {
	t.Helper()
	for _, service := range services {
		require.Eventually(t, func() bool { return c.inspect(t, service, "{{.State.Health.Status}}") == "healthy" }, 2*wait, 4*tick,
			"%s is healthy", service)
	}
}

// Each container crashes while clients are at work, and comes back by itself; what was acknowledged is there.
func TestContainersKilled(t *testing.T) {
	c := compose(t)
	p := livePlatform()
	for _, victim := range []string{"platform", "postgres", "redpanda", "traefik", "console", "emqx"} {
		l := startLoad(t, p, 2, 4)
		l.reach(t, 200)
		signal := syscall.SIGKILL
		if victim == "emqx" {
			signal = syscall.SIGTERM // Mosquitto, which stands in for it in tests, writes its data only now and then
		}
		began := time.Now()
		c.signal(t, victim, signal)
		c.healthy(t, victim, "platform", "traefik")
		back := time.Since(began)
		l.reach(t, 200)
		l.stop()
		l.proven(t, p)
		l.published(t, p)
		t.Logf("%s: healthy again after %s, %d events acknowledged, none lost", victim, back.Round(100*time.Millisecond), l.total.Load())
	}
	p.arrives(t)
}

// The platform is away while devices are at work, and the broker is restarted meanwhile: what the broker has acknowledged
// waits in the platform's session.
func TestContainerOfThePlatformAway(t *testing.T) {
	c := compose(t)
	p := livePlatform()
	l := startLoad(t, p, 0, 6)
	l.reach(t, 200)
	c.run(t, "stop", "platform")
	before := l.total.Load()
	l.reach(t, 2000)
	l.stop()
	c.run(t, "restart", "emqx")
	c.healthy(t, "emqx")
	c.run(t, "start", "platform")
	c.healthy(t, "platform", "traefik")
	l.proven(t, p)
	l.published(t, p)
	t.Logf("%d events acknowledged while the platform was away, none lost", l.total.Load()-before)
	p.arrives(t)
}

// What the containers may take adds up to what the compose file promises.
func TestContainerLimits(t *testing.T) {
	c := compose(t)
	var project struct {
		Services map[string]struct {
			Image, Restart string
			Deploy         struct {
				Resources struct {
					Limits struct {
						CPUs   float64 `json:"cpus"`
						Memory string  `json:"memory"`
					} `json:"limits"`
				} `json:"resources"`
			} `json:"deploy"`
		} `json:"services"`
	}
	require.NoError(t, json.Unmarshal([]byte(c.run(t, "config", "--format", "json")), &project))
	var cpus float64
	var memory int64
	for name, service := range project.Services {
		limits := service.Deploy.Resources.Limits
		bytes, err := strconv.ParseInt(limits.Memory, 10, 64)
		require.NoError(t, err, name)
		require.Positive(t, limits.CPUs, name)
		require.Equal(t, "unless-stopped", service.Restart, name)
		require.Equal(t, strconv.FormatInt(bytes, 10), c.inspect(t, name, "{{.HostConfig.Memory}}"), "the engine knows the limit of %s", name)
		require.Equal(t, "healthy", c.inspect(t, name, "{{.State.Health.Status}}"), name)
		cpus += limits.CPUs
		memory += bytes
	}
	size, err := strconv.ParseInt(outputOf(t, "docker", "image", "inspect", "--format", "{{.Size}}", project.Services["platform"].Image), 10, 64)
	require.NoError(t, err)
	require.Less(t, size, int64(40_000_000), "size of the platform's image in bytes")
	require.Len(t, project.Services, 6)
	require.LessOrEqual(t, cpus, 1.0001)
	require.LessOrEqual(t, memory, int64(2<<30))
}

// With users and rules on, a device may do what its name allows. The broker has been started so: E2E_MQTT_ACCESS=1.
func TestContainerAccess(t *testing.T) {
	compose(t)
	if os.Getenv("E2E_MQTT_ACCESS") != "1" {
		t.Skip("E2E_MQTT_ACCESS=1 says that the broker asks for users")
	}
	p := livePlatform()
	for user, password := range map[string]string{"": "", "device-001": "wrong", "stranger": "stranger"} {
		_, _, err := join(t, p.mqtt, user, password)
		require.Error(t, err, "user %q", user)
	}

	device, commands, err := join(t, p.mqtt, "device-001", "device-001")
	require.NoError(t, err)
	publish := func(client *paho.Client, topic string) error {
		_, err := client.Publish(t.Context(), &paho.Publish{Topic: topic, QoS: 1, Payload: []byte(`{"value":1,"unit":"celsius"}`)})
		return err
	}
	before := eventCounts(t, p)
	require.NoError(t, publish(device, "devices/device-001/events/sensor.reading"))
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.Equal(c, before["device-001"]+1, eventCounts(t, p)["device-001"])
	}, wait, 4*tick)
	for _, topic := range []string{"devices/device-002/events/sensor.reading", "events"} {
		other, _, err := join(t, p.mqtt, "device-001", "device-001") // a broker may end the connection
		require.NoError(t, err)
		require.Error(t, publish(other, topic), topic)
	}
	for _, filter := range []string{"#", "devices/device-002/commands/#", "devices/device-001/commands/#"} {
		_, _ = device.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: 1}}}) // refused or ignored
	}
	platform, _, err := join(t, p.mqtt, "platform", "platform")
	require.NoError(t, err)
	require.Error(t, publish(platform, "devices/device-001/events/sensor.reading"), "it is no device")
	platform, _, err = join(t, p.mqtt, "platform", "platform")
	require.NoError(t, err)
	for _, name := range []string{"device-002", "device-001"} {
		require.NoError(t, publish(platform, "devices/"+name+"/commands/restart"))
	}
	select {
	case command := <-commands:
		require.Equal(t, "devices/device-001/commands/restart", command.Topic, "the command of the other device came before")
	case <-time.After(wait):
		require.Fail(t, "no command came")
	}
	require.Equal(t, before["device-002"], eventCounts(t, p)["device-002"])
}

// eventCounts counts the events of the two devices that the broker knows.
func eventCounts(t testing.TB, p *platform) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for _, device := range []string{"device-001", "device-002"} {
		items, err := p.eventsOf(t.Context(), device)
		require.NoError(t, err)
		counts[device] = len(items)
	}
	return counts
}

// Topics are the platform's own: with the partitions and the retention that it is told, dead letters among them.
func TestContainerTopics(t *testing.T) {
	compose(t)
	p := livePlatform()
	console := outputOf(t, "curl", "--silent", "--show-error", "--fail", "http://127.0.0.1:8088/")
	require.NotEmpty(t, console)
	for _, topic := range []string{"sensor-events", "user-actions", "system-events"} {
		for _, name := range []string{topic, topic + ".dlq"} {
			partitions, retention := p.topic(t, name)
			require.Equal(t, 8, partitions, name)
			require.Equal(t, strconv.Itoa(int((7 * 24 * time.Hour).Milliseconds())), retention, name)
		}
	}
}
