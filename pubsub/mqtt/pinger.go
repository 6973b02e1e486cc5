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
	pingEvery = 2 * time.Second  // silence after which a sign of life is asked for
	silentFor = 4 * time.Second  // silence that makes the connection count as down for health
	deadAfter = 15 * time.Second // silence that ends the connection
)

// pinger keeps two times apart: health must show a broker that hangs within seconds, but dropping a connection makes
// the broker repeat what is in flight, so a busy machine gets longer before that.
type pinger struct {
	heard, sent atomic.Int64 // Unix nanoseconds
	paused      atomic.Bool  // we are not listening
}

// Run pings until ctx ends, or returns an error when the broker has been silent for too long.
func (p *pinger) Run(ctx context.Context, conn net.Conn, keepAliveSeconds uint16) error {
	interval := pingEvery
	if limit := time.Duration(keepAliveSeconds) * time.Second / 2; limit > 0 {
		interval = min(interval, limit)
	}
	p.PacketReceived()
	p.PacketSent()
	timer := time.NewTimer(interval)
	defer timer.Stop()
	failed := make(chan error, 1)
	writing := make(chan struct{}, 1)
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return fmt.Errorf("send PINGREQ: %w", err)
		case <-timer.C:
		}
		if silence := p.silence(); silence >= deadAfter {
			return fmt.Errorf("broker has been silent for %s", silence.Round(time.Millisecond))
		}
		next := interval - time.Since(time.Unix(0, min(p.heard.Load(), p.sent.Load())))
		if next > 0 {
			timer.Reset(next)
			continue
		}
		timer.Reset(interval)
		select {
		case writing <- struct{}{}:
			go func() { // the write blocks when the broker no longer reads; closing the connection ends it
				defer func() { <-writing }()
				if _, err := packets.NewControlPacket(packets.PINGREQ).WriteTo(conn); err != nil {
					select {
					case failed <- err:
					default:
					}
					return
				}
				p.PacketSent()
			}()
		default:
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

func (p *pinger) PacketSent()         { p.sent.Store(time.Now().UnixNano()) }
func (p *pinger) PacketReceived()     { p.heard.Store(time.Now().UnixNano()) }
func (p *pinger) PingResp()           {}
func (p *pinger) SetDebug(log.Logger) {}
