package e2e

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cornjacket/platform-services/internal/devstack"
)

// ledgerAnswer is the ledger as the query API shows it.
type ledgerAnswer struct {
	Balanced                                   bool
	Accepted, Duplicates, Sequenced, Published int64
	Applied, Pending                           map[string]int64
	DeadLettered                               map[string]map[string]int64 `json:"dead_lettered"`
	Lag                                        map[string]struct {
		Events  int64
		Seconds float64
	}
	Missing []struct {
		Stage  string
		Events int64
	}
}

// ledger waits until the ledger is as it should be.
func (p *platform) ledger(t testing.TB, why string, right func(c *assert.CollectT, l ledgerAnswer)) (found ledgerAnswer) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		var l ledgerAnswer
		status, err := p.get(t.Context(), "/api/v1/ledger", &l)
		require.NoError(c, err)
		require.Equal(c, http.StatusOK, status)
		right(c, l)
		found = l
	}, wait, 10*tick, why)
	return found
}

func balanced(c *assert.CollectT, l ledgerAnswer) { require.True(c, l.Balanced, "%+v", l) }

// What was accepted is accounted for at each stage: under load, with events that nobody can read, sent twice, and put
// on the bus by others; while the consumer is away, and while the bus is.
func TestTheLedger(t *testing.T) {
	t.Parallel()
	s := startParts(t)
	cfg := devstack.KafkaConfig{Addr: "127.0.0.1:0", Dir: newFolder(t), Log: slog.New(slog.DiscardHandler)}
	bus, err := devstack.StartKafka(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { bus.Close() })
	s.kafka, cfg.Addr = bus.Addr(), bus.Addr()
	consumer := s.run(t, "--services=eventhandler")
	p := s.run(t, "--services=ingestion,relay,query")
	p.ledger(t, "an empty platform balances", balanced)

	l := startLoad(t, p, 3, 6)
	l.reach(t, 500)
	device := connect(t, p.mqtt)
	for range 5 {
		device.publish(t, "devices/"+unique("bad")+"/events/sensor.reading", "not JSON")
	}
	twice, repeated := newID(), unique("twice")
	for range 3 {
		p.send(t, reading(twice, repeated, "2026-02-07T10:00:00Z", 1))
	}
	p.send(t, fmt.Sprintf(`{"event_type":"system.alert","aggregate_id":%q,"payload":{"level":"low","message":"x"}}`, unique("alert")))
	stranger, err := kgo.NewClient(kgo.SeedBrokers(s.kafka))
	require.NoError(t, err)
	defer stranger.Close()
	require.NoError(t, stranger.ProduceSync(t.Context(), &kgo.Record{Topic: "sensor-events", Key: []byte("x"), Value: []byte("?")}).FirstErr())
	l.reach(t, 500)
	l.stop()
	l.proven(t, p)
	books := p.ledger(t, "it balances after the load", func(c *assert.CollectT, l ledgerAnswer) {
		balanced(c, l)
		require.EqualValues(c, 5, l.DeadLettered["ingestion"]["pending"])
		require.EqualValues(c, 1, l.DeadLettered["eventhandler"]["pending"], "the stranger's")
	})
	var stored int64
	require.NoError(t, pool(t, p.database).QueryRow(t.Context(), `SELECT count(*) FROM event_store`).Scan(&stored))
	require.Equal(t, []int64{stored, stored, stored - 1, 2}, []int64{books.Sequenced, books.Published, books.Applied["eventhandler"], books.Duplicates},
		"exact; the alert has no projection")
	require.Equal(t, stored+2, books.Accepted)

	outer := t
	t.Run("the consumer is away", func(t *testing.T) {
		require.NoError(t, consumer.process.kill())
		for i := range 7 {
			p.send(t, reading(newID(), unique("waits"), "2026-02-07T10:00:00Z", i))
		}
		p.ledger(t, "7 wait for it", func(c *assert.CollectT, l ledgerAnswer) {
			require.False(c, l.Balanced)
			require.Equal(c, map[string]int64{"outbox": 0, "relay": 0, "eventhandler": 7}, l.Pending)
			require.EqualValues(c, 7, l.Lag["eventhandler"].Events)
			require.Positive(c, l.Lag["eventhandler"].Seconds)
			require.Len(c, l.Missing, 1)
			require.Equal(c, "eventhandler", l.Missing[0].Stage)
		})
		consumer = s.run(outer, "--services=eventhandler")
		p.ledger(t, "it balances again", balanced)
	})
	t.Run("the bus is away", func(t *testing.T) {
		bus.Close()
		last := ""
		for i := range 9 {
			last = p.send(t, reading(newID(), unique("waits"), "2026-02-07T10:00:00Z", i))
		}
		p.ledger(t, "9 wait for it", func(c *assert.CollectT, l ledgerAnswer) {
			require.EqualValues(c, 9, l.Pending["relay"])
			require.EqualValues(c, 9, l.Lag["relay"].Events)
		})
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			_, h, err := askHealth(t.Context(), p.relay)
			require.NoError(c, err)
			require.EqualValues(c, 9, h.Checks["relay"]["lag_events"])
			require.Positive(c, h.Checks["relay"]["lag_seconds"])
		}, wait, 10*tick)
		require.Equal(t, "relay", p.journey(t, last).WaitingAt)
		earlier := p.journey(t, twice)
		require.Equal(t, "unknown", earlier.stage("published").Status, "nobody can be asked where it is")
		require.Equal(t, "done", earlier.Status)
		bus, err = devstack.StartKafka(cfg)
		require.NoError(t, err)
		p.ledger(t, "it balances again", balanced)
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			_, h, err := askHealth(t.Context(), consumer.eventhandler)
			require.NoError(c, err)
			require.EqualValues(c, 0, h.Checks["consumer"]["lag_events"])
		}, wait, 10*tick)
	})
	p.stop(t)
	consumer.stop(t)
}

// journeyAnswer is a journey as the query API shows it.
type journeyAnswer struct {
	Status    string
	WaitingAt string `json:"waiting_at"`
	Stages    []journeyStage
	Letters   []struct{ Consumer, Status string } `json:"dead_letters"`
}

type journeyStage struct {
	Stage, Consumer, Status, Topic, Detail string
	At                                     *time.Time
	Position                               int64
	Partition                              *int32
	Offset                                 *int64
}

func (j *journeyAnswer) stage(name string) journeyStage {
	for _, s := range j.Stages {
		if s.Stage == name {
			return s
		}
	}
	return journeyStage{}
}

func (p *platform) journey(t testing.TB, id string) (j journeyAnswer) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		var now journeyAnswer
		status, err := p.get(t.Context(), eventsPath+"/"+id+"/journey", &now)
		require.NoError(c, err)
		require.Equal(c, http.StatusOK, status)
		j = now
	}, wait, tick, "journey of %s", id)
	return j
}

func TestJourneys(t *testing.T) {
	t.Parallel()
	p := shared(t)
	began := time.Now()
	aggregate, id := unique("journey"), newID()
	device := connect(t, p.mqtt)
	device.publish(t, "devices/"+aggregate+"/events/sensor.reading", `{"value":1,"unit":"celsius"}`, "event_id", id)
	e := p.event(t, id)
	p.projected(t, "sensor_state", aggregate, e.Metadata.Position)
	j := p.journey(t, id)
	require.Equal(t, "done", j.Status, "%+v", j)
	require.Len(t, j.Stages, 4)
	previous := began.Add(-time.Second)
	for _, s := range j.Stages {
		require.Equal(t, "done", s.Status, s.Stage)
		require.NotNil(t, s.At, s.Stage)
		require.False(t, s.At.Before(previous.Add(-2*time.Millisecond)), "%s is not before the stage before it", s.Stage)
		previous = *s.At
	}
	require.Equal(t, e.Metadata.Position, j.stage("stored").Position)
	require.Equal(t, "eventhandler", j.stage("applied").Consumer)
	published := j.stage("published")
	require.Equal(t, "sensor-events", published.Topic)
	records := p.listen(t, began.Add(-time.Minute), "sensor-events").until(t, func(r []*kgo.Record) bool { return len(ofKey(r, aggregate)) == 1 }, "the record")
	record := ofKey(records, aggregate)[0]
	require.Equal(t, []int64{int64(record.Partition), record.Offset}, []int64{int64(*published.Partition), *published.Offset})

	bad := newID()
	device.publish(t, "devices/"+aggregate+"/events/sensor.reading", `{"value":"hot"}`, "event_id", bad)
	j = p.journey(t, bad)
	require.Equal(t, "dead_lettered", j.Status)
	require.Equal(t, []struct{ Consumer, Status string }{{"ingestion", "pending"}}, j.Letters)
	require.NotEmpty(t, j.stage("received").Detail)

	status, err := p.get(t.Context(), eventsPath+"/"+newID()+"/journey", &journeyAnswer{})
	require.NoError(t, err)
	require.Equal(t, http.StatusNotFound, status)
}

// doctorReport is what `platform doctor --json` prints.
type doctorReport struct {
	Status string
	Checks []struct{ Area, Check, Status, Detail, Advice string }
}

func (r *doctorReport) failed() (names []string) {
	for _, c := range r.Checks {
		if c.Status == "fail" {
			names = append(names, c.Area+": "+c.Check+": "+c.Detail)
		}
	}
	return names
}

// doctorEnv are the variables by which `platform doctor` finds a platform.
func (p *platform) doctorEnv() []string {
	return append(p.healthEnv(), "INGESTION_DATABASE_URL="+p.database, "EVENTHANDLER_DATABASE_URL="+p.projectionsDB,
		"QUERY_DATABASE_URL="+p.projectionsDB, "REDPANDA_BROKERS="+p.kafka, "MQTT_URL=mqtt://"+p.mqtt)
}

func doctor(t testing.TB, env []string, args ...string) (r doctorReport, code int) {
	t.Helper()
	c := platformCommand(t, env, append([]string{"doctor", "--json"}, args...)...)
	require.NoError(t, json.Unmarshal([]byte(c.stdout.String()), &r), "%s%s", c.stdout.String(), c.stderr.tail())
	return r, c.code
}

func TestDoctor(t *testing.T) {
	t.Parallel()
	p := shared(t)
	p.arrives(t)
	var r doctorReport
	require.EventuallyWithT(t, func(c *assert.CollectT) { // other tests work this platform hard
		var code int
		r, code = doctor(t, p.doctorEnv())
		require.Zero(c, code, "a platform that is well: %v", r.failed())
	}, wait, 10*tick)
	require.Empty(t, r.failed())
	areas := map[string]int{}
	for _, c := range r.Checks {
		areas[c.Area]++
		require.True(t, c.Status == "ok" || c.Advice != "", "%+v says what to do", c)
	}
	for _, area := range []string{"settings", "database", "bus", "mqtt", "health", "ledger"} {
		require.Positive(t, areas[area], area)
	}
	table := platformCommand(t, p.doctorEnv(), "doctor")
	require.Regexp(t, `(?m)^\d+ ok, \d+ warn, \d+ fail$`, table.stdout.String())

	t.Run("everything is away", func(t *testing.T) {
		t.Parallel()
		closed := "127.0.0.1:1"
		r, code := doctor(t, []string{
			"INGESTION_DATABASE_URL=postgres://cornjacket:s3cret@" + closed + "/cornjacket", "EVENTHANDLER_DATABASE_URL=" + p.projectionsDB,
			"QUERY_DATABASE_URL=" + p.projectionsDB, "REDPANDA_BROKERS=" + closed, "MQTT_URL=mqtt://" + closed,
			"INGESTION_ADDR=" + closed, "QUERY_ADDR=127.0.0.1:2", "EVENTHANDLER_HEALTH_ADDR=127.0.0.1:3", "RELAY_HEALTH_ADDR=127.0.0.1:4",
		}, "--timeout=3s")
		require.Equal(t, 1, code)
		require.Equal(t, "fail", r.Status)
		all := strings.Join(r.failed(), "\n")
		for _, what := range []string{"database: ingestion:", "bus: brokers:", "mqtt: connect:", "health: ingestion:", "health: relay:", "ledger: balance:"} {
			require.Contains(t, all, what)
		}
		require.NotContains(t, all, "s3cret")
		require.NotContains(t, all, "database: eventhandler")
	})
	t.Run("a port that hangs", func(t *testing.T) {
		t.Parallel()
		silent := taken(t) // takes connections and says nothing
		env := append(p.doctorEnv(), "INGESTION_DATABASE_URL=postgres://u:p@"+silent+"/d?sslmode=disable", "REDPANDA_BROKERS="+silent, "MQTT_URL=mqtt://"+silent, "RELAY_HEALTH_ADDR="+silent)
		began := time.Now()
		r, code := doctor(t, env, "--timeout=1s")
		require.Equal(t, 1, code)
		require.Less(t, time.Since(began), wait/2)
		all := strings.Join(r.failed(), "\n")
		for _, what := range []string{"database: ingestion: ", "bus: brokers: ", "mqtt: connect: ", "health: relay: "} {
			require.Contains(t, all, what)
		}
	})
}

// With a broker of somebody else's it says what that grants, and does not take the platform's session.
func TestDoctorWithMosquitto(t *testing.T) {
	t.Parallel()
	s := startParts(t)
	p := s.run(t)
	p.arrives(t)
	r, code := doctor(t, append(p.doctorEnv(), "MQTT_CLIENT_ID="+s.session))
	require.Equal(t, 1, code)
	require.Len(t, r.failed(), 2, "the databases of tests: %s", r.failed())
	require.Contains(t, r.failed()[0], "fsync is off")
	said := map[string]string{}
	for _, c := range r.Checks {
		said[c.Area+" "+c.Check] = c.Status + " " + c.Detail
	}
	require.Equal(t, "ok granted with QoS 1", said["mqtt shared subscriptions"])
	require.Equal(t, "ok 720h0m0s", said["mqtt session expiry"])
	require.Contains(t, said, "mqtt receive maximum")
	require.NotContains(t, s.mosquitto.process.stderr.String(), "Client "+s.session+" already connected")
	p.arrives(t)
	p.stop(t)
}
