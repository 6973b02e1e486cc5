package simulate

import (
	"encoding/json"
	"fmt"
	"math/bits"
	"sync/atomic"
	"time"
)

// startProgress writes progress until the returned function is called.
func (r *run) startProgress() (stop func()) {
	if r.cfg.JSON {
		return func() {}
	}
	every := 5 * time.Second
	if r.cfg.Terminal {
		every = time.Second
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		var before uint64
		last := time.Now()
		for {
			select {
			case <-quit:
				if r.cfg.Terminal {
					_, _ = fmt.Fprint(r.cfg.Out, "\r\x1b[K") // the summary says it all
				}
				return
			case now := <-ticker.C:
				acked := r.acked.Load()
				r.progress(float64(acked-before) / now.Sub(last).Seconds())
				before, last = acked, now
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}

// progress writes one line. A writer that fails is noticed with the summary.
func (r *run) progress(rate float64) {
	line := fmt.Sprintf("%6s  sent %d  acknowledged %d  %.0f/s  p50 %s  p99 %s",
		time.Since(r.begin).Round(time.Second), r.sent.Load(), r.acked.Load(), rate,
		short(r.latency.quantile(0.50)), short(r.latency.quantile(0.99)))
	if n := r.reconnect.Load(); n > 0 {
		line += fmt.Sprintf("  reconnects %d", n)
	}
	if r.cfg.Terminal {
		_, _ = fmt.Fprintf(r.cfg.Out, "\r\x1b[K%s", line)
		return
	}
	_, _ = fmt.Fprintln(r.cfg.Out, line)
}

func (r *run) report(s Summary) error {
	if r.cfg.JSON {
		return json.NewEncoder(r.cfg.Out).Encode(s)
	}
	text := fmt.Sprintf(`devices       %d
sent          %d
acknowledged  %d
failed        %d
duration      %s
rate          %.0f/s
latency       p50 %s, p99 %s, max %s
`, s.Devices, s.Sent, s.Acked, s.Failed, s.Duration.Round(time.Millisecond), s.Rate, short(s.P50), short(s.P99), short(s.Max))
	if s.Reconnects > 0 {
		text += fmt.Sprintf("reconnects    %d (%d events sent again)\n", s.Reconnects, s.Resent)
	}
	if s.Unrouted > 0 {
		text += fmt.Sprintf("unrouted      %d: the broker has no subscriber for them, is the platform running?\n", s.Unrouted)
	}
	_, err := fmt.Fprint(r.cfg.Out, text)
	return err
}

// short rounds a latency to three digits.
func short(d time.Duration) time.Duration {
	switch {
	case d >= time.Second:
		return d.Round(10 * time.Millisecond)
	case d >= time.Millisecond:
		return d.Round(10 * time.Microsecond)
	default:
		return d.Round(time.Microsecond)
	}
}

// histogram counts durations in buckets whose width is an eighth of their power of two: at most 12.5 % too high.
type histogram struct {
	counts [64 * 8]atomic.Uint64
	top    atomic.Int64
}

func (h *histogram) add(d time.Duration) {
	v := uint64(max(d, 1))
	h.counts[bucket(v)].Add(1)
	for {
		top := h.top.Load()
		if int64(v) <= top || h.top.CompareAndSwap(top, int64(v)) {
			return
		}
	}
}

func bucket(v uint64) int {
	exp := bits.Len64(v) - 1
	if exp < 3 {
		return int(v)
	}
	return (exp-2)*8 + int(v>>(exp-3)&7)
}

// upper is the greatest value of a bucket.
func upper(bucket int) uint64 {
	if bucket < 8 {
		return uint64(bucket)
	}
	exp := bucket/8 + 2
	return (uint64(bucket%8)+9)<<(exp-3) - 1
}

// quantile returns a duration that the share q of all is not above; zero if there are none.
func (h *histogram) quantile(q float64) time.Duration {
	var total uint64
	for i := range h.counts {
		total += h.counts[i].Load()
	}
	if total == 0 {
		return 0
	}
	rank := max(uint64(q*float64(total)+0.5), 1)
	var seen uint64
	for i := range h.counts {
		if seen += h.counts[i].Load(); seen >= rank {
			return min(time.Duration(upper(i)), h.max())
		}
	}
	return h.max()
}

func (h *histogram) max() time.Duration { return time.Duration(h.top.Load()) }
