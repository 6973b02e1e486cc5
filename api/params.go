package api

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/cornjacket/platform-services/event"
)

// Sizes of a page, in items.
const (
	defaultLimit = 20
	maxLimit     = 1000
)

const (
	maxAggregateID = event.MaxAggregateID
	maxType        = event.MaxEventType // of a projection too
)

func limitOf(query url.Values) (int, error) {
	if !query.Has("limit") {
		return defaultLimit, nil
	}
	n, err := strconv.Atoi(query.Get("limit"))
	if err != nil || n < 1 || n > maxLimit {
		return 0, mistake(http.StatusUnprocessableEntity, "limit", fmt.Sprintf("must be a whole number from 1 to %d", maxLimit))
	}
	return n, nil
}

// textOf reads a filter; an absent one is empty.
func textOf(query url.Values, name string, longest int) (string, error) {
	if !query.Has(name) {
		return "", nil
	}
	return checkText(name, query.Get(name), longest)
}

// checkText refuses what no stored text can equal, and what PostgreSQL would not take as text.
func checkText(name, s string, longest int) (string, error) {
	if rule := textRule(s, longest); rule != "" {
		return "", mistake(http.StatusUnprocessableEntity, name, rule)
	}
	return s, nil
}

func textRule(s string, longest int) string {
	switch {
	case s == "":
		return "must not be empty"
	case len(s) > longest:
		return fmt.Sprintf("must be at most %d bytes, is %d", longest, len(s))
	case !utf8.ValidString(s):
		return "must be UTF-8"
	}
	for i, r := range s {
		if unicode.IsControl(r) {
			return fmt.Sprintf("must be printable, has %U at byte %d", r, i)
		}
	}
	return ""
}

// timeOf reads a time; zero if absent. It is rounded up to the microseconds that stored times have: event_time >= from
// and event_time < to then mean the same as with the time as it was given.
func timeOf(query url.Values, name string) (time.Time, error) {
	if !query.Has(name) {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, query.Get(name))
	if err != nil {
		return time.Time{}, mistake(http.StatusUnprocessableEntity, name,
			"must be an RFC 3339 time such as 2026-02-07T10:00:00Z; the '+' of an offset is written %2B in a URL")
	}
	t = t.UTC()
	if t.Year() < 1 || t.Year() > 9999 {
		return time.Time{}, mistake(http.StatusUnprocessableEntity, name, "must be between the years 0001 and 9999 in UTC")
	}
	t = t.Add(time.Microsecond - 1).Truncate(time.Microsecond)
	if t.IsZero() {
		// The first instant of year 1 is a time and not the absence of one; storage drops the nanosecond.
		t = t.Add(time.Nanosecond)
	}
	return t, nil
}

// rangeOf reads from and to.
func rangeOf(query url.Values) (from, to time.Time, err error) {
	if from, err = timeOf(query, "from"); err != nil {
		return from, to, err
	}
	if to, err = timeOf(query, "to"); err != nil {
		return from, to, err
	}
	if !from.IsZero() && !to.IsZero() && from.After(to) {
		err = mistake(http.StatusUnprocessableEntity, "from", "must not be after to")
	}
	return from, to, err
}

// uuidOf reads a UUID from the path.
func uuidOf(r *http.Request, name string) (uuid.UUID, error) {
	return checkUUID(name, r.PathValue(name))
}

func checkUUID(name, s string) (uuid.UUID, error) {
	id, err := uuid.Parse(s)
	if err != nil || len(s) != 36 { // uuid.Parse also takes urn:uuid:, braces and bare hex
		return uuid.Nil, mistake(http.StatusUnprocessableEntity, name, "must be a UUID such as 0190a5c0-7b1e-7c3a-9d3e-5f6a7b8c9d0e")
	}
	return id, nil
}
