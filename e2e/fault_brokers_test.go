package e2e

import (
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// signal stops a process without ending it, or lets it go on.
func (r *rig) signal(t *testing.T, p *process, s syscall.Signal) func() {
	return func() {
		t.Helper()
		require.NoError(t, p.signal(s))
	}
}

// stopMosquitto ends the broker cleanly: it writes its data only now and then, and what it has acknowledged must not
// be lost with it.
func (r *rig) stopMosquitto(t *testing.T) {
	t.Helper()
	code, err := r.broker.process.stop()
	require.NoError(t, err)
	require.Zero(t, code)
}

// Everything that happens to the brokers: each is killed, hangs, is cut off, is slow.
func TestFaultsOfBrokers(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	i := r.instance(t)
	l := startTraffic(t, r)
	r.moves(t, time.Now())
	away, frozen := longer(time.Second, 20*time.Second), longer(6*time.Second, 20*time.Second)
	ofBus := map[string]string{"relay": "bus", "eventhandler": "bus"}
	ofMQTT := map[string]string{"ingestion": "mqtt"}

	r.suffer(t, i, fault{
		name: "bus killed", hold: away, heal: func() { r.bus.start(t) },
		steps: []step{{func() { require.NoError(t, r.bus.process.kill()) }, ofBus}},
	})
	bus := r.bus.process
	r.suffer(t, i, fault{
		name: "bus frozen", hold: frozen, heal: r.signal(t, bus, syscall.SIGCONT),
		steps: []step{{r.signal(t, bus, syscall.SIGSTOP), ofBus}},
	})
	r.suffer(t, i, fault{
		name: "MQTT broker stopped", hold: away, heal: func() { r.broker.start(t) },
		steps: []step{{func() { r.stopMosquitto(t) }, ofMQTT}},
	})
	var resume func()
	r.suffer(t, i, fault{
		name: "MQTT broker killed", hold: away, heal: func() { r.broker.start(t); resume() },
		steps: []step{{func() {
			resume = l.pauseDevices() // what Mosquitto has acknowledged and not yet written dies with it, and is not ours to keep
			r.taken(t, l)
			require.NoError(t, r.broker.process.kill())
		}, ofMQTT}},
	})
	broker := r.broker.process
	r.suffer(t, i, fault{
		name: "MQTT broker frozen", hold: frozen, heal: r.signal(t, broker, syscall.SIGCONT),
		steps: []step{{r.signal(t, broker, syscall.SIGSTOP), ofMQTT}},
	})
	for range longer(1, 5) {
		r.suffer(t, i, fault{name: "bus connections cut", heal: func() {}, steps: []step{{r.busNet.cut, nil}}})
		r.suffer(t, i, fault{name: "MQTT connections cut", heal: func() {}, steps: []step{{r.mqttNet.cut, nil}}})
	}
	r.suffer(t, i, fault{
		name: "slow network", hold: longer(2*time.Second, 20*time.Second),
		steps: []step{{func() { r.busNet.slow(100 * time.Millisecond); r.mqttNet.slow(100 * time.Millisecond) }, nil}},
		heal:  func() { r.busNet.slow(0); r.mqttNet.slow(0) },
	})
	if full {
		r.suffer(t, i, fault{
			name: "bus out of reach", hold: away, heal: r.busNet.allow, steps: []step{{r.busNet.refuse, ofBus}},
		})
		r.suffer(t, i, fault{
			name: "MQTT broker out of reach", hold: away, heal: r.mqttNet.allow, steps: []step{{r.mqttNet.refuse, ofMQTT}},
		})
		r.suffer(t, i, fault{
			name: "silent network to bus", hold: away, heal: r.busNet.thaw, steps: []step{{r.busNet.freeze, ofBus}},
		})
		r.suffer(t, i, fault{
			name: "silent network to MQTT", hold: away, heal: r.mqttNet.thaw, steps: []step{{r.mqttNet.freeze, ofMQTT}},
		})
	}
	l.finish(t)
	r.proven(t, l)
	i.p.stop(t)
	r.report(t)
}

// taken waits until all that devices have published has come through to the platform; nothing is published meanwhile.
func (r *rig) taken(t *testing.T, l *traffic) {
	t.Helper()
	l.mu.Lock()
	var ids []string
	for _, e := range l.acked {
		if e.overMQTT {
			ids = append(ids, e.id)
		}
	}
	for id := range l.bad {
		ids = append(ids, id)
	}
	l.mu.Unlock()
	require.Eventually(t, func() bool {
		var n int
		err := r.db.QueryRow(t.Context(), `SELECT count(DISTINCT event_id) FROM (
			SELECT event_id FROM event_store UNION ALL SELECT event_id FROM outbox UNION ALL SELECT event_id FROM dlq
			) e WHERE event_id = ANY ($1::text[]::uuid[])`, ids).Scan(&n)
		return err == nil && n == len(ids)
	}, wait, 4*tick, "all %d messages have come through", len(ids))
}
