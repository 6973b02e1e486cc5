package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// sent is an event of the traffic that was acknowledged.
type sent struct {
	id, aggregate, kind string
	seq                 int
	overMQTT            bool
	ordered             bool // one door took all events of the aggregate, so that they are in the log in their order
}

// traffic are clients at work over all doors while faults happen. Each sends the events 1, 2, 3 … of aggregates of its
// own, each event with the same ID again until it is acknowledged.
type traffic struct {
	doors []string // ingestion APIs, by their URLs
	mqtt  string
	label string

	stopping chan struct{}
	once     sync.Once
	ctx      context.Context // ends what does not end by itself
	cancel   context.CancelFunc
	running  sync.WaitGroup
	mqttGate sync.RWMutex // held by whoever pauses the devices
	total    atomic.Int64
	refused  atomic.Int64 // offers that were not acknowledged

	mu    sync.Mutex
	acked []sent
	bad   map[string]string // body of the dead letter to come, by event ID
	wrong []string          // answers to requests that had to be refused
}

// startTraffic starts some 50 aggregates. shared says that several instances take from the MQTT broker, which then
// promises no order.
func startTraffic(t *testing.T, r *rig) *traffic {
	t.Helper()
	l := &traffic{
		mqtt: r.mqttNet.addr, label: unique("faults"), stopping: make(chan struct{}),
		bad: map[string]string{},
	}
	for _, i := range r.instances {
		l.doors = append(l.doors, i.p.ingestion)
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	t.Cleanup(func() { l.cancel(); l.running.Wait() })
	alone := len(r.instances) == 1
	for n := range 20 {
		l.running.Go(func() { l.device(fmt.Sprintf("%s-mqtt-%d", l.label, n), alone, n == 0) })
	}
	for n := range 15 {
		l.running.Go(func() { l.client(fmt.Sprintf("%s-http-%d", l.label, n), n) })
	}
	for n := range 3 {
		l.running.Go(func() { l.batches(fmt.Sprintf("%s-batch-%d", l.label, n), n) })
	}
	l.running.Go(l.mistakes)
	return l
}

// finish lets every client get its last event acknowledged. After it, what was acknowledged is what was sent.
func (l *traffic) finish(t *testing.T) {
	t.Helper()
	l.once.Do(func() { close(l.stopping) })
	ended := make(chan struct{})
	go func() { l.running.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(wait):
		l.cancel()
		<-ended
		t.Fatal("clients do not get their last events acknowledged")
	}
}

// pause tells whether to go on after a moment.
func (l *traffic) pause() bool {
	select {
	case <-time.After(100*time.Millisecond + rand.N(200*time.Millisecond)):
		return true
	case <-l.stopping:
	case <-l.ctx.Done():
	}
	return false
}

// until offers something again and again; false means that the traffic was broken off.
func (l *traffic) until(offer func() error) bool {
	for offer() != nil {
		l.refused.Add(1)
		select {
		case <-time.After(4 * tick):
		case <-l.ctx.Done():
			return false
		}
	}
	return true
}

func (l *traffic) note(events ...sent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acked = append(l.acked, events...)
	l.total.Add(int64(len(events)))
}

// next makes the next event of an aggregate. Most are of the aggregate's own kind, so that each has both projections.
// Now and then the clock of the sender jumps back by years.
func next(aggregate string, seq int, ordered bool) (e sent, at, payload string) {
	e = sent{id: newID(), aggregate: aggregate, kind: "sensor.reading", seq: seq, ordered: ordered}
	if (seq+len(aggregate))%4 == 0 {
		e.kind = "user.login"
	}
	moment := time.Date(2026, 2, 7, 10, 0, 0, 0, time.UTC).Add(time.Duration(seq) * time.Second)
	switch seq % 17 {
	case 5:
		moment = moment.AddDate(-9, 0, 0)
	case 11:
		moment = moment.AddDate(0, 0, -rand.IntN(3000))
	}
	if e.kind == "user.login" {
		payload = fmt.Sprintf(`{"user_id":%q,"ip":"192.0.2.1","seq":%d}`, aggregate, seq)
	} else {
		payload = fmt.Sprintf(`{"value":%d.5,"unit":"celsius","seq":%d}`, seq%40, seq)
	}
	return e, moment.Format(time.RFC3339), payload
}

func submission(e sent, at, payload string) string {
	return fmt.Sprintf(`{"event_id":%q,"event_type":%q,"aggregate_id":%q,"event_time":%q,"payload":%s}`, e.id, e.kind, e.aggregate, at, payload)
}

// device publishes over MQTT. The broker's acknowledgement counts if somebody subscribes: see errNobody.
func (l *traffic) device(aggregate string, ordered, faulty bool) {
	var d *device
	defer func() {
		if d != nil {
			d.close()
		}
	}()
	offer := func(topic, payload string, props ...string) func() error {
		return func() (err error) {
			l.mqttGate.RLock()
			defer l.mqttGate.RUnlock()
			ctx, cancel := context.WithTimeout(l.ctx, answers)
			defer cancel()
			if d == nil {
				if d, err = dial(ctx, l.mqtt); err != nil {
					d = nil
					return err
				}
			}
			if err = d.offer(ctx, topic, []byte(payload), props...); err != nil && !errors.Is(err, errNobody) {
				d.close()
				d = nil
			}
			return err
		}
	}
	for seq := 1; ; seq++ {
		e, at, payload := next(aggregate, seq, ordered)
		e.overMQTT = true
		if !l.until(offer("devices/"+aggregate+"/events/"+e.kind, payload, "event_id", e.id, "event_time", at)) {
			return
		}
		l.note(e)
		if faulty && seq%5 == 0 { // its firmware has a bug
			id, body := newID(), fmt.Sprintf(`{"value":"broken","unit":%d}`, seq)
			l.mu.Lock()
			l.bad[id] = body
			l.mu.Unlock()
			if !l.until(offer("devices/"+aggregate+"/events/sensor.reading", body, "event_id", id)) {
				return
			}
		}
		if !l.pause() {
			return
		}
	}
}

// ask posts to one door after the other until one takes it.
func (l *traffic) ask(door *int, path, contentType, body string) func() error {
	return func() error {
		ctx, cancel := context.WithTimeout(l.ctx, answers)
		defer cancel()
		a, err := request(ctx, http.MethodPost, l.doors[*door%len(l.doors)]+path, []byte(body), "Content-Type", contentType)
		if err == nil && a.status == http.StatusAccepted && path == batchPath {
			var r struct {
				Accepted int   `json:"accepted"`
				Rejected []any `json:"rejected"`
			}
			if err = json.Unmarshal(a.body, &r); err == nil && len(r.Rejected) > 0 {
				err = fmt.Errorf("rejected: %s", a.body)
			}
		}
		if err == nil && a.status != http.StatusAccepted {
			err = fmt.Errorf("answered %d: %s", a.status, a.body)
		}
		if err != nil {
			*door++
		}
		return err
	}
}

// client posts single events.
func (l *traffic) client(aggregate string, door int) {
	for seq := 1; ; seq++ {
		e, at, payload := next(aggregate, seq, true)
		if !l.until(l.ask(&door, eventsPath, typeJSON, submission(e, at, payload))) {
			return
		}
		l.note(e)
		if !l.pause() {
			return
		}
	}
}

// batches posts ten events at a time, two of each of five aggregates.
func (l *traffic) batches(label string, door int) {
	for seq := 1; ; seq += 2 {
		var events []sent
		var lines []string
		for n := range 10 {
			e, at, payload := next(fmt.Sprintf("%s-%d", label, n%5), seq+n/5, true)
			events, lines = append(events, e), append(lines, submission(e, at, payload))
		}
		if !l.until(l.ask(&door, batchPath, typeLines, strings.Join(lines, "\n")+"\n")) {
			return
		}
		l.note(events...)
		if !l.pause() {
			return
		}
	}
}

// mistakes posts what the door must refuse, whatever state the platform is in.
func (l *traffic) mistakes() {
	door := 0
	for l.pause() {
		id := newID()
		body := fmt.Sprintf(`{"event_id":%q,"event_type":"sensor.reading","aggregate_id":"%s-mistake","payload":{"value":"hot"}}`, id, l.label)
		ctx, cancel := context.WithTimeout(l.ctx, answers)
		a, err := request(ctx, http.MethodPost, l.doors[door%len(l.doors)]+eventsPath, []byte(body), "Content-Type", typeJSON)
		cancel()
		if err != nil {
			door++
			continue
		}
		if a.status < 400 { // 4xx, or 5xx when the platform is busy
			l.mu.Lock()
			l.wrong = append(l.wrong, fmt.Sprintf("%s: %d %s", id, a.status, a.body))
			l.mu.Unlock()
		}
	}
}

// pauseDevices keeps the devices from publishing until the function that it returns is called; none is in the middle
// of an offer.
func (l *traffic) pauseDevices() (resume func()) {
	l.mqttGate.Lock()
	return l.mqttGate.Unlock
}
