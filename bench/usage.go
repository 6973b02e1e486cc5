package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// clockTick is the unit of processor time in /proc, USER_HZ: 10 ms on every architecture that Go supports.
const clockTick = 10 * time.Millisecond

// stat is what /proc/<pid>/stat tells of a process; see proc_pid_stat(5).
type stat struct {
	parent int
	own    time.Duration // processor time, user and system
	reaped time.Duration // that of its children that have ended
}

func readStat(pid int) (stat, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, fmt.Errorf("read processor time: %w", err)
	}
	return parseStat(string(text))
}

func parseStat(text string) (stat, error) {
	// The name in parentheses may hold anything; the fields after it are the third and following.
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 15 {
		return stat{}, fmt.Errorf("read processor time: %q has too few fields", text)
	}
	var n [5]int64
	for i, at := range []int{1, 11, 12, 13, 14} { // ppid, utime, stime, cutime, cstime
		v, err := strconv.ParseInt(fields[at], 10, 64)
		if err != nil {
			return stat{}, fmt.Errorf("read processor time: %w", err)
		}
		n[i] = v
	}
	return stat{parent: int(n[0]), own: time.Duration(n[1]+n[2]) * clockTick, reaped: time.Duration(n[3]+n[4]) * clockTick}, nil
}

// cpuTime returns the processor time that a process has used, with its children, also those that have ended.
func cpuTime(pid int) (time.Duration, error) {
	root, err := readStat(pid)
	if err != nil {
		return 0, err
	}
	total := root.own + root.reaped
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, fmt.Errorf("list processes: %w", err)
	}
	for _, dir := range all {
		other, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		if s, err := readStat(other); err == nil && s.parent == pid { // one that has just ended is among the reaped soon
			total += s.own
		}
	}
	return total, nil
}

// memory returns the resident memory of a process now and at its peak, in bytes.
func memory(pid int) (now, peak float64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, fmt.Errorf("read memory: %w", err)
	}
	return field(string(text), "VmRSS:"), field(string(text), "VmHWM:"), nil
}

// field returns a value in kB of a file such as /proc/meminfo, in bytes; 0 if it is not there.
func field(text, name string) float64 {
	_, rest, found := strings.Cut(text, name)
	words := strings.Fields(rest)
	if !found || len(words) == 0 {
		return 0
	}
	kb, err := strconv.ParseFloat(words[0], 64)
	if err != nil {
		return 0
	}
	return kb * 1024
}

// cpuMeter measures the processor time of some processes over a while.
type cpuMeter struct {
	pids  map[string]int
	begin map[string]time.Duration
}

// meter starts measuring; on a system without /proc it measures nothing.
func (r *rig) meter(key string, p *child) (*cpuMeter, error) {
	m := &cpuMeter{pids: map[string]int{
		key: p.PID(), "postgres": r.b.pg.PID(), "kafka": r.kafka.PID(), "mosquitto": r.mosquitto.PID(),
	}}
	var err error
	m.begin, err = m.read()
	return m, err
}

func (m *cpuMeter) read() (map[string]time.Duration, error) {
	used := make(map[string]time.Duration, len(m.pids))
	for name, pid := range m.pids {
		t, err := cpuTime(pid)
		if errors.Is(err, os.ErrNotExist) {
			if _, none := os.Stat("/proc/self/stat"); none != nil {
				return nil, nil
			}
		}
		if err != nil {
			return nil, err
		}
		used[name] = t
	}
	return used, nil
}

// per100k returns processor seconds per 100,000 events by process since the start.
func (m *cpuMeter) per100k(events int) (map[string]float64, error) {
	end, err := m.read()
	if err != nil {
		return nil, err
	}
	used := make(map[string]float64, len(end))
	for name, t := range end {
		used[name] = (t - m.begin[name]).Seconds() * 100_000 / float64(events)
	}
	return used, nil
}
