package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
)

// dlq runs a `platform dlq` command against the platform.
func (p *platform) dlq(t testing.TB, args ...string) *process {
	t.Helper()
	address := func(url string) string { return strings.TrimPrefix(url, "http://") }
	return platformCommand(t, []string{
		"INGESTION_ADDR=" + address(p.ingestion), "EVENTHANDLER_HEALTH_ADDR=" + address(p.eventhandler),
		"API_TOKEN=" + os.Getenv("API_TOKEN"),
	}, append([]string{"dlq"}, args...)...)
}

// deadLetter is one as the command shows it.
type deadLetter struct {
	ID         string  `json:"dlq_id"`
	Consumer   string  `json:"consumer"`
	Status     string  `json:"status"`
	EventID    *string `json:"event_id"`
	Error      string  `json:"error_message"`
	RetryCount int     `json:"retry_count"`
	Payload    string  `json:"event_payload"`
	Encoding   string  `json:"payload_encoding"`
	Edited     string  `json:"edited_payload"`
	Reason     string  `json:"reason"`
}

// letters returns what the command lists.
func (p *platform) letters(t testing.TB, args ...string) []deadLetter {
	t.Helper()
	c := p.dlq(t, append([]string{"list", "--json", "--limit", "2000"}, args...)...)
	require.Zero(t, c.code, "%s", c.stderr.tail())
	var list []deadLetter
	for line := range strings.Lines(c.stdout.String()) {
		var l deadLetter
		require.NoError(t, json.Unmarshal([]byte(line), &l), line)
		list = append(list, l)
	}
	return list
}

// one waits for the one letter that the command lists.
func (p *platform) letter(t testing.TB, args ...string) deadLetter {
	t.Helper()
	var list []deadLetter
	require.Eventually(t, func() bool {
		list = p.letters(t, args...)
		return len(list) > 0
	}, wait, tick, "a dead letter: %v", args)
	require.Len(t, list, 1)
	return list[0]
}

// applied returns how many events the projection of an aggregate is made of; zero if there is none.
func (p *platform) applied(t testing.TB, aggregate string) (events int64, state string) {
	t.Helper()
	var found struct {
		EventCount int64           `json:"event_count"`
		State      json.RawMessage `json:"state"`
	}
	status, err := p.get(t.Context(), "/api/v1/projections/sensor_state/"+aggregate, &found)
	require.NoError(t, err)
	require.Contains(t, []int{http.StatusOK, http.StatusNotFound}, status)
	return found.EventCount, string(found.State)
}

// What a device has published by mistake is found, mended and replayed, and then counts once.
func TestABadReadingIsMendedAndReplayed(t *testing.T) {
	t.Parallel()
	p := shared(t)
	device := unique("mended")
	topic := "devices/" + device + "/events/sensor.reading"
	connect(t, p.mqtt).publish(t, topic, `{"value":"21,5","unit":"celsius"}`, "event_time", "2026-02-07T10:00:00Z", "correlation_id", device)
	l := p.letter(t, "--topic", topic)
	require.Equal(t, "ingestion", l.Consumer)
	require.Equal(t, "pending", l.Status)
	require.Equal(t, `{"value":"21,5","unit":"celsius"}`, l.Payload)
	require.Equal(t, "json", l.Encoding)

	c := p.dlq(t, "replay", l.ID)
	require.Equal(t, 1, c.code, "its bytes are as bad as before")
	require.Contains(t, c.oneLine(t), "payload.value")
	shown := p.dlq(t, "show", l.ID)
	require.Zero(t, shown.code)
	require.Contains(t, shown.stdout.String(), "retry_count")
	require.Contains(t, shown.stdout.String(), l.Payload)
	require.Equal(t, 1, p.letter(t, "--topic", topic).RetryCount)

	file := filepath.Join(newFolder(t), "mended.json")
	require.NoError(t, os.WriteFile(file, []byte(`{"value":21.5,"unit":"celsius"}`), 0o600))
	c = p.dlq(t, "replay", "--dry-run", l.ID)
	require.Zero(t, c.code)
	require.Contains(t, c.stdout.String(), "would be replayed")
	c = p.dlq(t, "replay", "--payload-file", file, l.ID)
	require.Zero(t, c.code, "%s", c.stderr.tail())
	stored := p.events(t, device, 1)[0]
	require.JSONEq(t, `{"value":21.5,"unit":"celsius"}`, string(stored.Payload))
	require.Equal(t, "2026-02-07T10:00:00Z", stored.EventTime.Format("2006-01-02T15:04:05Z07:00"), "what its sender said beside the body")
	require.Equal(t, device, stored.Metadata.CorrelationID)
	p.projected(t, "sensor_state", device, stored.Metadata.Position)

	c = p.dlq(t, "replay", "--payload-file", file, l.ID)
	require.Equal(t, 1, c.code, "a second time says so")
	require.Contains(t, c.oneLine(t), "is not pending, it was replayed at")
	require.Len(t, p.events(t, device, 1), 1)
	count, _ := p.applied(t, device)
	require.Equal(t, int64(1), count)

	after := p.letter(t, "--topic", topic, "--status", "replayed")
	require.Equal(t, l.Payload, after.Payload, "what came is kept")
	require.Equal(t, stored.EventID, *after.EventID)
	c = p.dlq(t, "show", "--json", l.ID)
	require.NoError(t, json.Unmarshal([]byte(c.stdout.String()), &after))
	require.Equal(t, `{"value":21.5,"unit":"celsius"}`, after.Edited)
	require.Empty(t, p.letters(t, "--topic", topic), "nothing of it is pending")
}

// A message whose topic is the mistake is replayed as an envelope; one that is of no use is discarded.
func TestLettersOfBadTopics(t *testing.T) {
	t.Parallel()
	p := shared(t)
	device := unique("topic")
	topic := "devices/" + device + "/events/Sensor.Reading"
	phone := connect(t, p.mqtt)
	phone.publish(t, topic, `{"value":1,"unit":"celsius"}`)
	l := p.letter(t, "--topic", topic)
	file := filepath.Join(newFolder(t), "envelope.json")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, `{"event_type":"sensor.reading","aggregate_id":%q,"payload":{"value":1,"unit":"celsius"}}`, device), 0o600))
	c := p.dlq(t, "replay", "--as-topic", "events", "--payload-file", file, l.ID)
	require.Zero(t, c.code, "%s", c.stderr.tail())
	p.projected(t, "sensor_state", device, p.events(t, device, 1)[0].Metadata.Position)

	topic = "devices/" + unique("topic") + "/events/nothing"
	phone.publish(t, topic, `{}`)
	p.letter(t, "--topic", topic)
	c = p.dlq(t, "discard", "--all", "--dry-run", "--topic", topic)
	require.Zero(t, c.code)
	require.Contains(t, c.stdout.String(), "1 of 1 would be discarded")
	c = p.dlq(t, "discard", "--all", "--topic", topic, "--reason", "a test device")
	require.Zero(t, c.code, "%s", c.stderr.tail())
	l = p.letter(t, "--topic", topic, "--status", "discarded")
	require.Equal(t, "a test device", l.Reason)
	c = p.dlq(t, "replay", l.ID)
	require.Equal(t, 1, c.code)
	require.Contains(t, c.oneLine(t), "it was discarded at")
}

// A record on the bus that nobody can read is replayed with what it should have been. The log does not know the event, so
// that the ledger of its platform is out of balance from then on: it has one of its own.
func TestABadRecordIsMendedAndReplayed(t *testing.T) {
	t.Parallel()
	p := startParts(t).run(t)
	device, id := unique("record"), newID()
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(p.kafka, ",")...))
	require.NoError(t, err)
	t.Cleanup(client.Close)
	broken := fmt.Sprintf(`{"event_id":%q,"event_type":"sensor.reading","aggregate_id":%q,"event_ti`, id, device)
	require.NoError(t, client.ProduceSync(t.Context(), &kgo.Record{
		Topic: "sensor-events", Key: []byte(device), Value: []byte(broken),
		Headers: []kgo.RecordHeader{{Key: "event_id", Value: []byte(id)}},
	}).FirstErr())
	l := p.letter(t, "--consumer", "eventhandler", "--event-id", id)
	require.Equal(t, broken, l.Payload)
	require.Equal(t, "text", l.Encoding)

	path := p.eventhandler + "/api/v1/dlq/" + l.ID + "/replay"
	a, err := request(t.Context(), http.MethodPost, path, nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusUnprocessableEntity, a.status, "%s", a.body)
	envelope := fmt.Sprintf(`{"event_id":%q,"event_type":"sensor.reading","aggregate_id":%q,"event_time":"2026-02-07T10:00:00Z",
		"ingested_at":"2026-02-07T10:00:00Z","payload":{"value":3,"unit":"celsius"},
		"metadata":{"source":"http","correlation_id":"c","schema_version":1,"position":900000000}}`, id, device)
	a, err = request(t.Context(), http.MethodPost, path, []byte(`{"payload":`+envelope+`}`), "Content-Type", typeJSON)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, a.status, "%s", a.body)
	count, state := p.applied(t, device)
	require.Equal(t, int64(1), count)
	require.JSONEq(t, `{"value":3,"unit":"celsius"}`, state)

	// A position that somebody has made up does not make the projection blind for what follows.
	p.send(t, fmt.Sprintf(`{"event_type":"sensor.reading","aggregate_id":%q,"payload":{"value":4,"unit":"celsius"}}`, device))
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		count, state = p.applied(t, device)
		require.Equal(c, int64(2), count)
	}, wait, tick)
	require.JSONEq(t, `{"value":4,"unit":"celsius"}`, state)
}

// Five hundred events that the database refused for a while are replayed in bulk. The platform is killed half-way, and
// each of them is applied once.
func TestBulkReplayThroughAKill(t *testing.T) {
	t.Parallel()
	const letters, devices = 500, 10
	s := startParts(t)
	p := s.run(t)
	db := pool(t, s.eventhandlerDB)
	prefix := unique("refused")
	_, err := db.Exec(t.Context(), `ALTER TABLE projections ADD CONSTRAINT refused CHECK (aggregate_id NOT LIKE '`+prefix+`%')`)
	require.NoError(t, err)
	var batch strings.Builder
	for i := range letters {
		fmt.Fprintf(&batch, `{"event_type":"sensor.reading","aggregate_id":"%s-%d","payload":{"value":%d,"unit":"celsius"}}`+"\n", prefix, i%devices, i)
	}
	a := p.post(t, batchPath, typeLines, batch.String())
	require.Equal(t, http.StatusAccepted, a.status, "%s", a.body)
	require.Eventually(t, func() bool { return len(p.letters(t, "--consumer", "eventhandler")) == letters }, wait, 10*tick)
	c := p.dlq(t, "replay", "--all", "--consumer", "eventhandler", "--rate", "1000")
	require.Equal(t, 1, c.code, "the database still refuses them")
	require.Contains(t, c.stdout.String(), "0 replayed, 500 refused again", "%s", c.stderr.tail())
	_, err = db.Exec(t.Context(), `ALTER TABLE projections DROP CONSTRAINT refused`)
	require.NoError(t, err)

	c = p.dlq(t, "replay", "--all", "--dry-run")
	require.Zero(t, c.code, "%s", c.stderr.tail())
	require.Equal(t, "ingestion: 0 would be replayed\neventhandler: 500 would be replayed\n", c.stdout.String())
	c = p.dlq(t, "replay", "--all", "--no-wait", "--rate", "100", "--json", "--services", "eventhandler")
	require.Zero(t, c.code, "%s", c.stderr.tail())
	var job struct {
		ID                        string `json:"replay_id"`
		Status                    string
		Total, Replayed, Failed   int64
		Remaining, Skipped, Extra int64
	}
	require.NoError(t, json.Unmarshal([]byte(c.stdout.String()), &job))
	require.Equal(t, int64(letters), job.Total)
	ask := func(c require.TestingT) {
		a, err := request(t.Context(), http.MethodGet, p.eventhandler+"/api/v1/dlq/replays/"+job.ID, nil)
		require.NoError(c, err)
		require.Equal(c, http.StatusOK, a.status, "%s", a.body)
		require.NoError(c, json.Unmarshal(a.body, &job))
	}
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		ask(c)
		require.GreaterOrEqual(c, job.Replayed, int64(50))
	}, wait, tick)
	require.NoError(t, p.process.signal(syscall.SIGKILL))
	_, err = p.process.ended(wait)
	require.NoError(t, err)

	var pending int64
	require.NoError(t, db.QueryRow(t.Context(), `SELECT count(*) FROM dlq WHERE status = 'pending'`).Scan(&pending))
	require.Positive(t, pending, "what is not done stays pending")
	require.NoError(t, db.QueryRow(t.Context(), `SELECT $1 - sum(event_count) FROM projections WHERE aggregate_id LIKE $2`, letters, prefix+"%").Scan(&job.Extra))
	require.Equal(t, pending, job.Extra, "what is done is marked")

	p = s.run(t)
	ask(t)
	require.Contains(t, []string{"interrupted", "running"}, job.Status)
	again := p.dlq(t, "replay", "--all", "--services", "eventhandler")
	require.Zero(t, again.code, "%s", again.stderr.tail())
	require.Contains(t, again.stdout.String(), "eventhandler: 0 replayed", "what waits in one bulk replay is left to it")
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		ask(c)
		require.Equal(c, "done", job.Status)
	}, wait, tick)
	require.Equal(t, int64(letters), job.Replayed)
	for i := range devices {
		count, state := p.applied(t, fmt.Sprintf("%s-%d", prefix, i))
		require.Equal(t, int64(letters/devices), count, "each is applied once")
		require.Contains(t, state, fmt.Sprint(letters-devices+i), "the newest is the state")
	}
	require.Empty(t, p.letters(t))
	p.stop(t)
}
