package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var httpClient = &http.Client{
	Timeout:   answers,
	Transport: &http.Transport{MaxIdleConnsPerHost: 64, IdleConnTimeout: 5 * time.Second}, // no proxy
}

// answer is what came back from an HTTP request.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// request makes one HTTP request; headers are names and values in turn.
func request(ctx context.Context, method, url string, body []byte, headers ...string) (answer, error) {
	r, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return answer{}, fmt.Errorf("make request: %w", err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	resp, err := httpClient.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, fmt.Errorf("read answer of %s: %w", url, err)
	}
	return answer{resp.StatusCode, resp.Header, data}, nil
}

const (
	eventsPath = "/api/v1/events"
	batchPath  = "/api/v1/events/batch"
	typeJSON   = "application/json"
	typeLines  = "application/x-ndjson"
)

// post sends a body to the ingestion API.
func (p *platform) post(t testing.TB, path, contentType, body string, headers ...string) answer {
	t.Helper()
	if contentType != "" {
		headers = append(headers, "Content-Type", contentType)
	}
	a, err := request(t.Context(), http.MethodPost, p.ingestionAPI()+path, []byte(body), headers...)
	require.NoError(t, err)
	return a
}

// send posts one event, which must be accepted, and returns its ID.
func (p *platform) send(t testing.TB, body string, headers ...string) string {
	t.Helper()
	a := p.post(t, eventsPath, typeJSON, body, headers...)
	require.Equal(t, http.StatusAccepted, a.status, "%s", a.body)
	var accepted struct {
		EventID string `json:"event_id"`
		Status  string `json:"status"`
	}
	require.NoError(t, json.Unmarshal(a.body, &accepted))
	require.Equal(t, "accepted", accepted.Status)
	return accepted.EventID
}

// storedEvent is an event as the query API and the bus show it.
type storedEvent struct {
	EventID     string          `json:"event_id"`
	EventType   string          `json:"event_type"`
	AggregateID string          `json:"aggregate_id"`
	EventTime   time.Time       `json:"event_time"`
	IngestedAt  time.Time       `json:"ingested_at"`
	Payload     json.RawMessage `json:"payload"`
	Metadata    struct {
		Source        string `json:"source"`
		CorrelationID string `json:"correlation_id"`
		Traceparent   string `json:"traceparent"`
		SchemaVersion int    `json:"schema_version"`
		Position      int64  `json:"position"`
	} `json:"metadata"`
}

// projection is a projection as the query API shows it.
type projection struct {
	ProjectionType     string          `json:"projection_type"`
	AggregateID        string          `json:"aggregate_id"`
	State              json.RawMessage `json:"state"`
	LastEventID        string          `json:"last_event_id"`
	LastEventTimestamp time.Time       `json:"last_event_timestamp"`
	Position           int64           `json:"position"`
}

// get reads a JSON document of the query API and returns the status.
func (p *platform) get(ctx context.Context, path string, into any) (int, error) {
	a, err := request(ctx, http.MethodGet, p.queryAPI()+path, nil)
	if err != nil {
		return 0, err
	}
	if a.status != http.StatusOK {
		return a.status, nil
	}
	if err := json.Unmarshal(a.body, into); err != nil {
		return a.status, fmt.Errorf("read %s: %w", path, err)
	}
	return a.status, nil
}

// event waits until an event is in the log and returns it.
func (p *platform) event(t testing.TB, id string) (e storedEvent) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		status, err := p.get(t.Context(), eventsPath+"/"+id, &e)
		require.NoError(c, err)
		require.Equal(c, http.StatusOK, status)
	}, wait, tick, "event %s in the log", id)
	return e
}

// events waits until an aggregate has n events in the log and returns them, the newest position first.
func (p *platform) events(t testing.TB, aggregate string, n int) (list []storedEvent) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		var page struct {
			Items []storedEvent `json:"items"`
		}
		status, err := p.get(t.Context(), eventsPath+"?limit=1000&aggregate_id="+url.QueryEscape(aggregate), &page)
		require.NoError(c, err)
		require.Equal(c, http.StatusOK, status)
		require.Len(c, page.Items, n)
		list = page.Items
	}, wait, tick, "%d events of %s in the log", n, aggregate)
	return list
}

// projected waits until a projection has seen the event with that position, and returns it.
func (p *platform) projected(t testing.TB, kind, aggregate string, position int64) (found projection) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		var now projection
		status, err := p.get(t.Context(), "/api/v1/projections/"+kind+"/"+url.PathEscape(aggregate), &now)
		require.NoError(c, err)
		require.Equal(c, http.StatusOK, status)
		require.GreaterOrEqual(c, now.Position, position)
		found = now
	}, wait, tick, "%s of %s", kind, aggregate)
	return found
}

// arrives sends a good reading over HTTP and over MQTT and waits until both are projected: whatever happened before,
// nothing is stuck.
func (p *platform) arrives(t testing.TB) {
	t.Helper()
	over := unique("good")
	p.send(t, fmt.Sprintf(`{"event_type":"sensor.reading","aggregate_id":%q,"payload":{"value":1,"unit":"celsius"}}`, over))
	p.projected(t, "sensor_state", over, 1)
	over = unique("good")
	connect(t, p.mqtt).publish(t, "devices/"+over+"/events/sensor.reading", `{"value":2,"unit":"celsius"}`)
	p.projected(t, "sensor_state", over, 1)
}

// device is an MQTT 5 client.
type device struct {
	client *paho.Client
	conn   net.Conn
}

// connect connects a device, which leaves when the test ends.
func connect(t testing.TB, addr string) *device {
	t.Helper()
	d, err := dial(t.Context(), addr)
	require.NoError(t, err)
	t.Cleanup(d.close)
	return d
}

func dial(ctx context.Context, addr string) (*device, error) {
	ctx, cancel := context.WithTimeout(ctx, answers)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("connect to MQTT broker: %w", err)
	}
	client := paho.NewClient(paho.ClientConfig{Conn: conn, PacketTimeout: wait})
	if _, err := client.Connect(ctx, &paho.Connect{ClientID: unique("client"), CleanStart: true, KeepAlive: 60}); err != nil {
		_ = conn.Close() // it was refused
		return nil, fmt.Errorf("connect to MQTT broker: %w", err)
	}
	return &device{client, conn}, nil
}

func (d *device) close() {
	_ = d.client.Disconnect(&paho.Disconnect{}) // it may be cut off already
	_ = d.conn.Close()
}

var (
	errCutOff = errors.New("the broker has ended the connection")
	// errNobody is what a broker tells an MQTT 5 device when it has dropped an event, since it knows of no subscriber.
	// Mosquitto 2.0.11 does so between its restart and our return: it does not restore shared subscriptions.
	errNobody = errors.New("the broker has acknowledged and dropped it: nobody subscribes")
)

// offer publishes with QoS 1 and waits for the acknowledgement; props are user properties, names and values in turn.
func (d *device) offer(ctx context.Context, topic string, body []byte, props ...string) error {
	m := &paho.Publish{Topic: topic, QoS: 1, Payload: body, Properties: &paho.PublishProperties{}}
	for i := 0; i+1 < len(props); i += 2 {
		m.Properties.User.Add(props[i], props[i+1])
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan struct{})
	defer close(ended)
	go func() { // the client would wait on without its connection
		select {
		case <-d.client.Done():
			cancel(errCutOff)
		case <-ended:
		}
	}()
	ack, err := d.client.Publish(ctx, m)
	if err != nil {
		return fmt.Errorf("publish to %s: %w", topic, errors.Join(context.Cause(ctx), err))
	}
	if ack.ReasonCode == packets.PubackNoMatchingSubscribers {
		return fmt.Errorf("publish to %s: %w", topic, errNobody)
	}
	return nil
}

func (d *device) publish(t testing.TB, topic, body string, props ...string) {
	t.Helper()
	require.NoError(t, d.offer(t.Context(), topic, []byte(body), props...))
}
