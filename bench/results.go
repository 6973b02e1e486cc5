package main

import (
	"cmp"
	"slices"
	"time"
)

const mib = 1 << 20

// results are the values of all rounds by key. They are added by one goroutine.
type results struct {
	values  map[string][]float64
	samples map[string][]time.Duration // of all rounds together
}

func newResults() *results {
	return &results{values: make(map[string][]float64), samples: make(map[string][]time.Duration)}
}

func (r *results) add(key string, value float64) { r.values[key] = append(r.values[key], value) }

func (r *results) sample(key string, took []time.Duration) {
	r.samples[key] = append(r.samples[key], took...)
}

func (r *results) empty() bool { return len(r.values) == 0 }

// median returns the middle value of a key; ok is false if it was not measured.
func (r *results) median(key string) (value float64, ok bool) {
	all := slices.Sorted(slices.Values(r.values[key]))
	if len(all) == 0 {
		return 0, false
	}
	half := len(all) / 2
	if len(all)%2 == 1 {
		return all[half], true
	}
	return (all[half-1] + all[half]) / 2, true
}

// ratio returns the median of one key over that of another.
func (r *results) ratio(key, over string) (value float64, ok bool) {
	a, found := r.median(key)
	b, also := r.median(over)
	if !found || !also || b == 0 {
		return 0, false
	}
	return a / b, true
}

// quantile returns the smallest duration that q of all do not exceed (nearest rank); 0 if there is none.
func quantile(all []time.Duration, q float64) time.Duration {
	if len(all) == 0 {
		return 0
	}
	sorted := slices.Clone(all)
	slices.SortFunc(sorted, cmp.Compare[time.Duration])
	rank := int(q*float64(len(sorted)) + 0.999999) // rounded up, but for what floating point adds
	return sorted[min(max(rank, 1), len(sorted))-1]
}
