package simulate

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
)

const (
	quantum     = 5 * time.Millisecond // a device wakes at most this often, and sends what is due by then
	forgiveness = time.Second          // how far behind its rate a device may fall and still catch up
)

// device is one sensor. Its events are sent in order, over one connection at a time.
type device struct {
	r        *run
	offset   float64 // 0–1, where in the first interval it begins, so that devices do not send in step
	topic    string
	clientID string
	random   *rand.Rand
	reading  reading
	link     *link
	due      time.Time // when the next event is to be sent

	mu      sync.Mutex
	pending []*inflight // in the order of sending
	lastID  uint16
}

// inflight is one event that is not yet acknowledged.
type inflight struct {
	id     uint16
	packet []byte
	sentAt time.Time
}

func newDevice(r *run, index int, session string) *device {
	id := fmt.Sprintf("%s%03d", r.cfg.Prefix, index+1)
	random := rand.New(rand.NewPCG(rand.Uint64(), uint64(index)))
	return &device{
		r: r, topic: "devices/" + id + "/events/sensor.reading", clientID: id + "-" + session,
		offset: float64(index) / float64(r.cfg.Devices), random: random, reading: newReading(random),
	}
}

// run sends until sending ends, then waits for the missing acknowledgements until life ends.
func (d *device) run(sending, life context.Context) {
	defer d.disconnect()
	d.due = d.r.begin.Add(time.Duration(d.offset * float64(d.interval())))
	for !d.serve(sending, life) {
		if !d.reconnect(life) {
			return
		}
	}
}

// interval is the time between two events of this device; 0 if there is no rate to keep.
func (d *device) interval() time.Duration {
	if d.r.cfg.Rate == 0 {
		return 0
	}
	ns := float64(time.Second) * float64(d.r.cfg.Devices) / d.r.cfg.Rate
	return time.Duration(max(1, min(ns, math.MaxInt64/4)))
}

// serve uses the connection; it returns true when nothing is left to do and false when the connection is lost.
func (d *device) serve(sending, life context.Context) bool {
	wake := time.NewTimer(time.Hour)
	defer wake.Stop()
	over := sending.Done()
	for {
		if sending.Err() != nil {
			over = nil
		}
		waiting := d.waiting()
		if over == nil && waiting == 0 {
			return true
		}
		pause := pingAfter
		if over != nil && waiting < d.link.limit {
			n, next := d.owed(d.link.limit - waiting)
			sent, more, err := d.send(n)
			if err != nil {
				d.r.note(err)
				d.link.close()
				return false
			}
			if !more {
				over = nil // the last event has been claimed
				continue
			}
			if pause = min(pause, next); sent > 0 && next == 0 {
				continue
			}
		}
		wake.Reset(pause)
		select {
		case <-d.link.acked:
		case <-wake.C:
			if err := d.link.pingIfIdle(); err != nil {
				d.r.note(err)
				d.link.close()
				return false
			}
		case <-d.link.lost:
			return false
		case <-over:
		case <-life.Done():
			return true
		}
	}
}

// owed returns how many events are due, at most room, and how long until the next is; 0 if it is due now.
func (d *device) owed(room int) (n int, next time.Duration) {
	interval := d.interval()
	if interval == 0 {
		return room, 0
	}
	now := time.Now()
	if now.Sub(d.due) > forgiveness {
		d.due = now.Add(-forgiveness)
	}
	for n < room && !d.due.After(now) {
		d.due = d.due.Add(interval)
		n++
	}
	return n, max(d.due.Sub(now), quantum)
}

// send publishes n events; more is false when the run's count is used up.
func (d *device) send(n int) (sent int, more bool, err error) {
	more = true
	for sent < n {
		if !d.r.claim() {
			more = false
			break
		}
		p, err := d.next()
		if err != nil {
			return sent, false, err
		}
		d.r.sent.Add(1)
		sent++
		if _, err := d.link.w.Write(p.packet); err != nil {
			return sent, more, fmt.Errorf("publish: %w", err)
		}
	}
	if sent > 0 {
		if err := d.link.flush(); err != nil {
			return sent, more, fmt.Errorf("publish: %w", err)
		}
	}
	return sent, more, nil
}

// next makes an event and puts it among the pending, so that it is sent again if the connection is lost.
func (d *device) next() (*inflight, error) {
	eventID, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("make event ID: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lastID++ // a free one: the pending are few and in order
	if d.lastID == 0 {
		d.lastID = 1
	}
	for slices.ContainsFunc(d.pending, func(p *inflight) bool { return p.id == d.lastID }) {
		if d.lastID++; d.lastID == 0 {
			d.lastID = 1
		}
	}
	packet, err := encodePublish(d.topic, d.lastID, eventID.String(), d.reading.next(d.random))
	if err != nil {
		return nil, err
	}
	p := &inflight{id: d.lastID, packet: packet, sentAt: time.Now()}
	d.pending = append(d.pending, p)
	return p, nil
}

// acknowledged takes an event off the pending.
func (d *device) acknowledged(id uint16, reason byte) {
	d.mu.Lock()
	i := slices.IndexFunc(d.pending, func(p *inflight) bool { return p.id == id })
	if i < 0 {
		d.mu.Unlock()
		return // of an event that was sent twice
	}
	p := d.pending[i]
	d.pending = slices.Delete(d.pending, i, i+1)
	d.mu.Unlock()
	if reason >= 0x80 {
		d.r.refused.Add(1)
		d.r.note(fmt.Errorf("broker refused an event of %s with reason code %#x", d.topic, reason))
		return
	}
	if reason == noSubscribers {
		d.r.unrouted.Add(1)
	}
	d.r.latency.add(time.Since(p.sentAt))
	d.r.acked.Add(1)
}

func (d *device) waiting() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.pending)
}

// reconnect connects again and sends again what is pending, with the same packet and event IDs. It returns false when
// life ends first.
func (d *device) reconnect(life context.Context) bool {
	d.link.close()
	<-d.link.lost // its reader has ended
	for attempt := 0; ; attempt++ {
		pause := min(100*time.Millisecond<<min(attempt, 10), 2*time.Second)
		select {
		case <-time.After(pause/2 + rand.N(pause/2)):
		case <-life.Done():
			return false
		}
		err := d.connect(life)
		if err == nil {
			d.r.reconnect.Add(1)
			return true
		}
		d.r.note(err)
	}
}

func (d *device) resend(l *link, sessionPresent bool) error {
	d.mu.Lock()
	var again bytes.Buffer
	for _, p := range d.pending {
		if sessionPresent {
			p.packet[0] |= dupFlag
		} else {
			p.packet[0] &^= dupFlag
		}
		again.Write(p.packet)
	}
	n := len(d.pending)
	d.mu.Unlock()
	if n == 0 {
		return nil
	}
	d.r.resent.Add(uint64(n))
	if _, err := l.w.Write(again.Bytes()); err != nil {
		return fmt.Errorf("publish again: %w", err)
	}
	if err := l.flush(); err != nil {
		return fmt.Errorf("publish again: %w", err)
	}
	return nil
}

func (d *device) disconnect() {
	if d.link != nil {
		d.link.bye()
		<-d.link.lost
	}
}
