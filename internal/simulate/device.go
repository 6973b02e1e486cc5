package simulate

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
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
	session  *session
	link     *link
	again    []*sample // to be sent before new ones: the broker does not know them
	due      time.Time // when the next event is to be sent
}

// sample is one event.
type sample struct {
	id       string
	payload  []byte
	packetID uint16 // of its last sending
	sentAt   time.Time
}

func newDevice(r *run, index int, session string) *device {
	id := fmt.Sprintf("%s%03d", r.cfg.Prefix, index+1)
	random := rand.New(rand.NewPCG(rand.Uint64(), uint64(index)))
	return &device{
		r: r, topic: "devices/" + id + "/events/sensor.reading", clientID: id + "-" + session,
		offset: float64(index) / float64(r.cfg.Devices), random: random, reading: newReading(random), session: newSession(r),
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
		waiting := d.session.waiting()
		if over == nil && waiting+len(d.again) == 0 {
			return true
		}
		pause := time.Hour
		if room := d.link.limit - waiting; room > 0 {
			n, next := len(d.again), pause
			if over != nil && n < room {
				n, next = d.owed(room)
			}
			sent, more, err := d.send(life, min(n, room), over != nil)
			if err != nil {
				d.r.note(err)
				return false
			}
			if !more {
				over = nil // the last event has been claimed
				continue
			}
			if pause = next; sent > 0 && next == 0 {
				continue
			}
		}
		wake.Reset(pause)
		select {
		case <-d.session.acked:
		case <-wake.C:
		case <-d.link.client.Done():
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

// send publishes at most n events, those to be sent again first; more is false when the run's count is used up.
func (d *device) send(ctx context.Context, n int, fresh bool) (sent int, more bool, err error) {
	if n == 0 {
		return 0, true, nil
	}
	flush := d.link.conn.burst()
	for ; sent < n && err == nil && (fresh || len(d.again) > 0); sent++ {
		e := d.next()
		if e == nil {
			return sent, false, flush()
		}
		err = d.publish(ctx, e)
	}
	return sent, true, errors.Join(err, flush())
}

// next returns the next event to be sent, nil when the run's count is used up.
func (d *device) next() *sample {
	if len(d.again) > 0 {
		e := d.again[0]
		d.again = d.again[1:]
		d.r.resent.Add(1)
		return e
	}
	if !d.r.claim() {
		return nil
	}
	d.r.sent.Add(1)
	id := uuid.Must(uuid.NewV7()) // fails only without a source of random numbers
	return &sample{id: id.String(), payload: d.reading.next(d.random), sentAt: time.Now()}
}

// reconnect connects again. It returns false when life ends first.
func (d *device) reconnect(life context.Context) bool {
	d.link.close()
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

func (d *device) disconnect() {
	if d.link != nil {
		d.link.bye()
	}
}
