package mqtt

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho/log"
)

const (
	pingEvery = 2 * time.Second  // how often a sign of life is asked for
	silentFor = 4 * time.Second  // silence that makes the connection count as down for health
	deadAfter = 15 * time.Second // silence that ends the connection
)

// pinger keeps two times apart: health must show a broker that hangs within seconds, but dropping a connection makes
// the broker repeat what is in flight, so a busy machine gets longer before that.
type pinger struct {
	heard  atomic.Int64 // Unix nanoseconds
	paused atomic.Bool  // we are not listening
}

// Run pings until ctx ends, or returns an error when the broker has been silent for too long.
func (p *pinger) Run(ctx context.Context, conn net.Conn, keepAliveSeconds uint16) error {
	interval := pingEvery
	if limit := time.Duration(keepAliveSeconds) * time.Second / 2; limit > 0 {
		interval = min(interval, limit)
	}
	p.PacketReceived()
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if silence := p.silence(); silence >= deadAfter {
			return fmt.Errorf("broker has been silent for %s", silence.Round(time.Millisecond))
		}
		// A broker that no longer reads blocks the write, and those of others, until the deadline.
		if err := conn.SetWriteDeadline(time.Now().Add(deadAfter)); err != nil {
			return fmt.Errorf("send PINGREQ: %w", err)
		}
		if _, err := packets.NewControlPacket(packets.PINGREQ).WriteTo(conn); err != nil {
			return fmt.Errorf("send PINGREQ: %w", err)
		}
	}
}

// silence returns how long the broker has said nothing, as far as we have listened.
func (p *pinger) silence() time.Duration {
	if p.paused.Load() {
		return 0
	}
	return time.Since(time.Unix(0, p.heard.Load()))
}

// pause says that nothing is read from the broker for now, or that it is again.
func (p *pinger) pause(on bool) {
	p.PacketReceived()
	p.paused.Store(on)
}

func (p *pinger) PacketSent()         {}
func (p *pinger) PacketReceived()     { p.heard.Store(time.Now().UnixNano()) }
func (p *pinger) PingResp()           {}
func (p *pinger) SetDebug(log.Logger) {}
