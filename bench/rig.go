package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/cornjacket/platform-services/internal/devstack"
)

// partitions of every topic, for the platform and for the stock pipeline.
const partitions = 8

// roles are what this program does when it starts itself again as another process.
var roles = map[string]func(ctx context.Context, args []string) error{
	"kafka": serveKafka,
	"stock": serveStock,
}

// rig is what one measurement runs on: a database, a Kafka API broker and an MQTT broker, all empty. PostgreSQL itself
// is shared.
type rig struct {
	b         *bench
	name      string
	dir       string
	dbURL     string
	kafka     *child
	kafkaAddr string
	mosquitto *child
	mqttURL   string
	children  []*child // in the order of their start
}

// newRig starts the servers of a measurement. Topics are created beforehand.
func (b *bench) newRig(ctx context.Context, topics ...string) (*rig, error) {
	b.rigs++
	r := &rig{b: b, name: "rig_" + strconv.Itoa(b.rigs)}
	r.dir = filepath.Join(b.dir, r.name)
	if err := os.Mkdir(r.dir, 0o755); err != nil {
		return nil, fmt.Errorf("create folder of a measurement: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if err := r.start(ctx, topics); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

func (r *rig) start(ctx context.Context, topics []string) (err error) {
	if r.dbURL, err = r.b.createDatabase(ctx, r.name); err != nil {
		return err
	}
	if err := r.startKafka(ctx, topics); err != nil {
		return err
	}
	return r.startMosquitto(ctx)
}

// close ends everything and deletes its data. Errors are those of processes that did not end as they should.
func (r *rig) close() error {
	var errs []error
	for i := len(r.children) - 1; i >= 0; i-- {
		errs = append(errs, r.children[i].stop())
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	errs = append(errs, r.b.dropDatabase(ctx, r.name))
	if !r.b.opts.keep {
		if err := os.RemoveAll(r.dir); err != nil {
			errs = append(errs, fmt.Errorf("delete data of a measurement: %w", err))
		}
	}
	return errors.Join(errs...)
}

// spawn starts a process that ends with the rig.
func (r *rig) spawn(name string, env []string, program string, args ...string) (*child, error) {
	c, err := startChild(name, filepath.Join(r.dir, fmt.Sprintf("%s-%d.log", name, len(r.children))), env, program, args...)
	if err != nil {
		return nil, err
	}
	r.children = append(r.children, c)
	return c, nil
}

// stop ends one process before the rig ends.
func (r *rig) stop(c *child) error {
	for i := range r.children {
		if r.children[i] == c {
			r.children = append(r.children[:i], r.children[i+1:]...)
			break
		}
	}
	return c.stop()
}

// self starts this program in another role.
func (r *rig) self(role string, args ...string) (*child, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own program: %w", err)
	}
	return r.spawn(role, nil, program, append([]string{role}, args...)...)
}

func (r *rig) startKafka(ctx context.Context, topics []string) (err error) {
	announced := filepath.Join(r.dir, "kafka.addr")
	if r.kafka, err = r.self("kafka", append([]string{filepath.Join(r.dir, "kafka"), announced}, topics...)...); err != nil {
		return err
	}
	r.kafkaAddr, err = r.kafka.announced(ctx, announced)
	return err
}

// serveKafka is a Kafka API broker as a process of its own: data folder, file for its address, topics.
func serveKafka(ctx context.Context, args []string) error {
	if len(args) < 2 {
		return errors.New("kafka takes a folder and a file")
	}
	ctx, cancel := withParent(ctx)
	defer cancel()
	k, err := devstack.StartKafka(devstack.KafkaConfig{
		Addr: "127.0.0.1:0", Dir: args[0], Partitions: partitions, Topics: args[2:], Log: slog.Default(),
	})
	if err != nil {
		return err
	}
	defer k.Close()
	if err := announce(args[1], k.Addr()); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// mosquittoConf keeps all that subscribers have not acknowledged, on disk, and limits nobody's window: the settings
// that the platform asks for in a broker.
const mosquittoConf = `listener %d 127.0.0.1
allow_anonymous true
persistence true
persistence_location %s/
max_queued_messages 0
max_inflight_messages 0
set_tcp_nodelay true
connection_messages false
log_dest stderr
`

func mosquittoProgram() (string, error) {
	if path, err := exec.LookPath("mosquitto"); err == nil {
		return path, nil
	}
	const debian = "/usr/sbin/mosquitto" // not in every user's PATH
	if _, err := os.Stat(debian); err != nil {
		return "", errors.New("mosquitto is not installed: apt-get install mosquitto (make setup)")
	}
	return debian, nil
}

// startMosquitto starts the MQTT broker, which can't pick a port itself; another try is made if the one that was free
// has been taken meanwhile.
func (r *rig) startMosquitto(ctx context.Context) error {
	const tries = 5
	program, err := mosquittoProgram()
	if err != nil {
		return err
	}
	for try := 1; ; try++ {
		err := r.tryMosquitto(ctx, program)
		if err == nil || try == tries || !strings.Contains(err.Error(), "Address already in use") {
			return err
		}
	}
}

func (r *rig) tryMosquitto(ctx context.Context, program string) error {
	port, err := freePort()
	if err != nil {
		return err
	}
	data := filepath.Join(r.dir, "mosquitto")
	if err := os.MkdirAll(data, 0o755); err != nil {
		return fmt.Errorf("create folder of mosquitto: %w", err)
	}
	conf := fmt.Sprintf(mosquittoConf, port, data)
	if os.Getuid() == 0 {
		conf += "user root\n" // else it becomes a user who can't write to the folder
	}
	path := filepath.Join(r.dir, "mosquitto.conf")
	if err := os.WriteFile(path, []byte(conf), 0o644); err != nil {
		return fmt.Errorf("configure mosquitto: %w", err)
	}
	c, err := r.spawn("mosquitto", nil, program, "-c", path)
	if err != nil {
		return err
	}
	err = c.await(ctx, "runs", func() (bool, error) {
		log, err := os.ReadFile(c.log)
		return strings.Contains(string(log), " running"), err
	})
	if err != nil {
		r.children = r.children[:len(r.children)-1] // told already
		if c.failure() == nil {
			c.kill()
		}
		return err
	}
	r.mosquitto, r.mqttURL = c, "mqtt://127.0.0.1:"+strconv.Itoa(port)
	return nil
}

func freePort() (int, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("pick a port: %w", err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	if err := ln.Close(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return 0, fmt.Errorf("pick a port: %w", err)
	}
	return port, nil
}
