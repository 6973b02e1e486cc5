package event

import "time"

// Clock bounds the event times that are believed. What a bound of zero would bound is not bounded.
type Clock struct {
	MaxAhead time.Duration // after the time at which an event comes: EVENT_TIME_MAX_AHEAD
	Min      time.Time     // EVENT_TIME_MIN
}

// What [Metadata] says of a device's clock that is not believed.
const (
	ClockAhead = "ahead" // of ours
	ClockUnset = "unset" // it counts from its start, or from an epoch
)

// doubt returns what is wrong with the clock that a time is from; nothing if it is believed.
func (c Clock) doubt(t, now time.Time) string {
	switch {
	case c.MaxAhead > 0 && t.After(now.Add(c.MaxAhead)):
		return ClockAhead
	case !c.Min.IsZero() && t.Before(c.Min):
		return ClockUnset
	}
	return ""
}

// setTime sets the time of an event to what its sender said, if that is believed, or else to the time at which it came.
func (e *Envelope) setTime(said string, o *Origin) error {
	e.Time = e.IngestedAt
	if said == "" {
		return nil
	}
	t, err := time.Parse(time.RFC3339Nano, said)
	if err != nil || !strictTime(said) {
		return invalid("event_time", "must be an RFC 3339 time such as 2026-02-07T10:00:00.123456Z")
	}
	doubt := o.Clock.doubt(t, e.IngestedAt)
	switch {
	case doubt == "":
		e.Time, err = normalTime("event_time", t)
		return err
	case o.keep:
		if err := checkHeader("event_time", said); err != nil {
			return err
		}
		e.Metadata.DeviceTime, e.Metadata.Clock = said, doubt
		return nil
	case doubt == ClockAhead:
		return invalid("event_time", "must be at most %s ahead of the platform's clock (EVENT_TIME_MAX_AHEAD)", o.Clock.MaxAhead)
	default:
		return invalid("event_time", "must not be before %s (EVENT_TIME_MIN)", o.Clock.Min.UTC().Format(time.RFC3339Nano))
	}
}
