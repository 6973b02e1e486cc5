// Package config holds the settings of each command: one struct a command, one field a setting. The struct tags give a
// setting its kind (type), variable (var), default, unit and help; its flag is named after the field. [Options] teaches
// the command line parser to read and check them.
package config

import (
	"cmp"
	"fmt"
	"net/url"
	"time"
)

// Run are the settings of `platform run`.
type Run struct {
	Services  []string `type:"services" var:"SERVICES" default:"${services}" placeholder:"NAME,..." help:"Services of this process, a comma-separated list. Default: all, ${services}."`
	Addresses `group:"Addresses (host:port; port 0 takes a free one):"`
	Doors     `group:"Access to the HTTP ports:"`
	Databases `group:"Databases:"`
	Broker    `group:"Bus and MQTT:"`
	Tuning    `group:"Tuning:"`
	Topics    `group:"Topics (used when a topic is created):"`
	Timeouts  `group:"Times:"`
	Log       `group:"Log:" set:"log_format=json"`
}

// Dev are the settings of `platform dev`: those of [Run] without the ones that the development stack decides.
type Dev struct {
	Services     []string `type:"services" var:"SERVICES" default:"${services}" placeholder:"NAME,..." help:"Services to run, a comma-separated list. Default: all, ${services}."`
	DataDir      string   `type:"dir" var:"DATA_DIR" default:"${state_dir}" help:"Folder in which everything is kept between runs. Default: $$XDG_STATE_HOME/cornjacket, or ~/.local/state/cornjacket."`
	Fresh        bool     `var:"FRESH" help:"Throw away what the data folder holds before starting."`
	PostgresAddr string   `group:"Addresses (host:port; port 0 takes a free one):" type:"hostport" var:"DEV_POSTGRES_ADDR" default:"127.0.0.1:5432" help:"Embedded PostgreSQL."`
	KafkaAddr    string   `group:"Addresses (host:port; port 0 takes a free one):" type:"hostport" var:"DEV_KAFKA_ADDR" default:"127.0.0.1:9092" help:"Embedded Kafka API broker."`
	MQTTAddr     string   `name:"mqtt-addr" group:"Addresses (host:port; port 0 takes a free one):" type:"hostport" var:"DEV_MQTT_ADDR" default:"127.0.0.1:1883" help:"Embedded MQTT broker."`
	MQTTUsers    `group:"Embedded MQTT broker:"`
	Addresses    `group:"Addresses (host:port; port 0 takes a free one):"`
	Doors        `group:"Access to the HTTP ports:"`
	Tuning       `group:"Tuning:"`
	Topics       `group:"Topics (used when a topic is created):"`
	Timeouts     `group:"Times:"`
	Log          `group:"Log:" set:"log_format=text"`
}

// Migrate are the settings of `platform migrate`.
type Migrate struct {
	Action         string        `arg:"" type:"oneof" enum:"up,status,reset" help:"up: bring the databases to the newest version. status: say which migrations are applied. reset: drop every table with all its data, then apply all (needs --yes)."`
	Yes            bool          `help:"Confirm that reset may delete all data."`
	Services       []string      `type:"services" var:"SERVICES" default:"${services}" placeholder:"NAME,..." help:"Services whose tables to migrate, a comma-separated list. Default: all, ${services}."`
	StartupTimeout time.Duration `type:"duration" var:"STARTUP_TIMEOUT" default:"30s" help:"How long to wait for a database to answer, a duration."`
	Databases      `group:"Databases:"`
}

// Health are the settings of `platform health`.
type Health struct {
	Addr     []string      `type:"hostports" placeholder:"HOST:PORT,..." help:"Addresses to ask, comma-separated, in place of those of the services."`
	Services []string      `type:"services" var:"SERVICES" default:"${services}" placeholder:"NAME,..." help:"Services to ask, a comma-separated list. Default: all, ${services}."`
	Timeout  time.Duration `type:"duration" var:"HEALTH_TIMEOUT" default:"5s" help:"How long to wait for an answer, a duration."`
	JSON     bool          `name:"json" help:"Print one JSON document a line, with each answer as it came."`
	TLSClient
	Addresses `group:"Addresses of the services (host:port):"`
}

// TLSClient says how a command asks services that speak TLS. Without a file it asks over plain HTTP.
type TLSClient struct {
	CertFile string `name:"tls-cert-file" var:"TLS_CERT_FILE" placeholder:"FILE" help:"Ask over HTTPS, and take only the certificate in this file, whatever names it is for: the one that platform run is given."`
	CAFile   string `name:"tls-ca-file" var:"HEALTH_TLS_CA_FILE" placeholder:"FILE" help:"Ask over HTTPS, and take a certificate that names the host and is from an authority in this file, PEM, in place of that of TLS_CERT_FILE."`
}

// APIClient says how a command asks services for what needs a token.
type APIClient struct {
	APIToken string `name:"api-token" var:"API_TOKEN" help:"Bearer token to send, with the scope that the command needs; none if empty."`
	TLSClient
}

// Simulate are the settings of `platform simulate`.
type Simulate struct {
	URL      string        `name:"url" type:"mqtttcpurl" var:"MQTT_URL" default:"mqtt://localhost:1883" help:"MQTT broker to publish to, a URL: mqtt:// or mqtts://."`
	Username string        `var:"MQTT_USERNAME" help:"User at the MQTT broker; none if empty."`
	Password string        `var:"MQTT_PASSWORD" help:"Password at the MQTT broker."`
	Devices  int           `type:"positive" unit:"devices" short:"n" var:"SIMULATE_DEVICES" default:"10" help:"Devices; each has a connection of its own."`
	Rate     float64       `type:"rate" unit:"events a second" short:"r" var:"SIMULATE_RATE" default:"10" help:"Events a second over all devices; 0 is as fast as possible."`
	Duration time.Duration `type:"duration0" short:"d" var:"SIMULATE_DURATION" default:"30s" help:"How long to publish, a duration; 0 is until --count is reached or the command is stopped."`
	Count    int           `type:"natural" unit:"events" short:"c" var:"SIMULATE_COUNT" default:"0" help:"Stop after this many events; 0 is no limit."`
	Prefix   string        `var:"SIMULATE_PREFIX" default:"device-" help:"What the name of each device begins with."`
	Inflight int           `type:"receive" unit:"events" var:"SIMULATE_INFLIGHT" default:"20" help:"Most unacknowledged events of one device; 1 to 65535."`
	JSON     bool          `name:"json" help:"Print the summary as JSON."`
}

// Broker says where the bus and the MQTT broker are.
type Broker struct {
	RedpandaBrokers []string `type:"hostports" var:"REDPANDA_BROKERS" default:"localhost:9092" placeholder:"HOST:PORT,..." help:"Bootstrap addresses of the bus (Kafka API), comma-separated host:port."`
	Bus
	ConsumerGroupSuffix string `type:"groupsuffix" var:"CONSUMER_GROUP_SUFFIX" placeholder:"TEXT" help:"Appended to the names of consumer groups. Event handlers with databases of their own must differ in it, or they share the events out among them."`
	MQTTURL             string `name:"mqtt-url" type:"mqtturl" var:"MQTT_URL" default:"mqtt://localhost:1883" placeholder:"URL" help:"MQTT broker, a URL: mqtt:// and tcp:// are plain, mqtts:// is TLS, ws:// and wss:// are WebSocket."`
	MQTTUsername        string `name:"mqtt-username" var:"MQTT_USERNAME" help:"User at the MQTT broker; none if empty."`
	MQTTPassword        string `name:"mqtt-password" var:"MQTT_PASSWORD" help:"Password at the MQTT broker."`
	MQTTTLSCAFile       string `name:"mqtt-tls-ca-file" var:"MQTT_TLS_CA_FILE" placeholder:"FILE" help:"Certificates of the authorities that the MQTT broker's certificate may be from, PEM; the system's if empty."`
	// MQTTClientID names the durable session in which the MQTT broker keeps what ingestion has not acknowledged.
	MQTTClientID string `name:"mqtt-client-id" type:"clientid" var:"MQTT_CLIENT_ID" default:"${mqtt_client_id}" placeholder:"ID" help:"Name of ingestion's session at the MQTT broker. It must stay the same across restarts, or events waiting in the session are lost, and differ between instances, or they throw each other out. Default: cornjacket-ingestion-<hostname>."`
	// EmbeddedMQTT replaces the MQTT broker by one inside the process, which acknowledges a publish once it is stored.
	EmbeddedMQTT bool `name:"embedded-mqtt" var:"EMBEDDED_MQTT" help:"Run an MQTT broker inside ingestion, on host and port of MQTT_URL, and take events from it. Devices must give MQTT_USERNAME and MQTT_PASSWORD if they are set."`
	MQTTUsers
}

// MQTTUsers are the users of an embedded MQTT broker.
type MQTTUsers struct {
	EmbeddedMQTTUsers string `name:"embedded-mqtt-users" var:"EMBEDDED_MQTT_USERS" placeholder:"FILE" help:"Users of the embedded MQTT broker beside MQTT_USERNAME, a CSV file with the columns user_id,password,is_superuser; none if empty. A user that is no superuser is a device: it may publish below devices/{user_id}/ and read devices/{user_id}/commands/ only."`
}

// Topics are the properties of topics that the platform creates.
type Topics struct {
	TopicPartitions  int32         `type:"positive" unit:"partitions" var:"TOPIC_PARTITIONS" default:"8" help:"Partitions of a topic."`
	TopicReplication int16         `type:"replication" unit:"replicas" var:"TOPIC_REPLICATION" default:"-1" help:"Replicas of a partition; -1 is the broker's default."`
	TopicRetention   time.Duration `type:"duration" var:"TOPIC_RETENTION" default:"168h" help:"How long the bus keeps an event, a duration; the event store keeps it for good."`
}

// Timeouts bound how long things may take.
type Timeouts struct {
	StartupTimeout  time.Duration `type:"duration" var:"STARTUP_TIMEOUT" default:"30s" help:"How long to wait for the databases at start, a duration."`
	ShutdownTimeout time.Duration `type:"duration" var:"SHUTDOWN_TIMEOUT" default:"15s" help:"How long a clean stop may take, a duration."`
	HandlerTimeout  time.Duration `type:"duration" var:"HANDLER_TIMEOUT" default:"30s" help:"How long a router's handler may take for one attempt at a message, a duration."`
	IngestTimeout   time.Duration `type:"duration" var:"INGEST_TIMEOUT" default:"5s" help:"How long an HTTP request waits for its events to be stored before it is answered 503, a duration."`
}

// Tuning bounds what is retried, queued and done at once.
type Tuning struct {
	RetryMax      int           `type:"natural" unit:"attempts" var:"RETRY_MAX" default:"3" help:"Times a failed handler is tried again before a dead letter is written; 0 is none. Outages of the platform's own database or bus are waited for without end."`
	RetryInterval time.Duration `type:"duration" var:"RETRY_INTERVAL" default:"100ms" help:"Time before the first new attempt, a duration; it doubles with each."`
	IngestQueue   int           `type:"positive" unit:"events" var:"INGEST_QUEUE" default:"20000" help:"Events waiting to be stored from which HTTP requests are answered 429."`
	DLQMaxBytes   int64         `name:"dlq-max-bytes" type:"natural" unit:"bytes" var:"DLQ_MAX_BYTES" default:"1073741824" help:"What dead letters of refused MQTT messages may fill; 0 is no limit. Beyond it, a source that has a hundredth of it gets no further ones: they are counted and logged."`
	OutboxMax     int64         `type:"natural" unit:"events" var:"OUTBOX_MAX" default:"1000000" help:"Events in the outbox, which no relay has taken, from which HTTP requests are answered 429 and MQTT messages are not acknowledged; 0 is no limit."`
	BatchSize     int           `type:"positive" unit:"events" var:"BATCH_SIZE" default:"1000" help:"Most events of one database transaction; of one that folds them into projections, eight times as many."`
	Window        int           `type:"receive" unit:"messages" var:"WINDOW" default:"2000" help:"Most messages in flight of one source (MQTT session, outbox, partition); 1 to 65535."`

	EventTimeMaxAhead time.Duration `type:"duration" var:"EVENT_TIME_MAX_AHEAD" default:"10m" help:"How far after the platform's clock the time of an event may be, a duration. Beyond it HTTP answers 422, and an event over MQTT gets the time at which it came."`
	EventTimeMin      time.Time     `type:"instant" var:"EVENT_TIME_MIN" default:"2000-01-01T00:00:00Z" help:"Earliest time of an event that is believed, an RFC 3339 time; what is before it is dealt with as what is too far ahead."`
}

// Log says what is logged, and how.
type Log struct {
	LogLevel  string `type:"oneof" enum:"debug,info,warn,error" var:"LOG_LEVEL" default:"info" help:"Least level that is logged: ${enum}."`
	LogFormat string `type:"oneof" enum:"json,text" var:"LOG_FORMAT" default:"${log_format}" help:"Form of the log: ${enum}."`
}

// Validate reports settings that do not go together.
func (r *Run) Validate() error {
	if err := cmp.Or(r.checkDoors(), r.checkBus()); err != nil {
		return err
	}
	if !r.EmbeddedMQTT {
		if r.EmbeddedMQTTUsers != "" { // the operator believes that the broker asks for passwords
			return &Error{
				Env: "EMBEDDED_MQTT_USERS", Flag: "--embedded-mqtt-users", Value: r.EmbeddedMQTTUsers,
				Problem: "holds for an embedded MQTT broker only", Takes: "a file together with --embedded-mqtt",
			}
		}
		return nil
	}
	u, err := url.Parse(r.MQTTURL)
	if err != nil {
		return fmt.Errorf("parse MQTT_URL: %w", err)
	}
	if (u.Scheme != "mqtt" && u.Scheme != "tcp") || (u.Path != "" && u.Path != "/") {
		return &Error{
			Env: "MQTT_URL", Flag: "--mqtt-url", Value: redact(r.MQTTURL), Problem: "is not what --embedded-mqtt can listen on",
			Takes: "mqtt://host:port with it",
		}
	}
	return nil
}

// Validate reports settings that do not go together.
func (d *Dev) Validate() error { return d.checkDoors() }

// EmbeddedMQTTAddr returns the host:port that an embedded MQTT broker listens on; port 1883 if the URL names none.
func (b *Broker) EmbeddedMQTTAddr() (string, error) {
	u, err := url.Parse(b.MQTTURL)
	if err != nil {
		return "", fmt.Errorf("parse MQTT_URL: %w", err)
	}
	return hostPort(u, "1883"), nil
}

// Validate reports settings that do not go together.
func (m *Migrate) Validate() error {
	if m.Action == "reset" && !m.Yes {
		return &Error{Flag: "--yes", Problem: "must be given with reset, which deletes all data"}
	}
	return nil
}
