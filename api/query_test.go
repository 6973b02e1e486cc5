package api

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/store"
)

// filled holds 45 events of three devices, one a minute, and a projection for each of some odd aggregate IDs.
func filled() *memory {
	m := &memory{}
	for i := range 45 {
		m.events = append(m.events, event.Envelope{
			ID: uuid.Must(uuid.NewV7()), Type: []string{"sensor.reading", "door.opened"}[i%2],
			AggregateID: fmt.Sprintf("device-%d", i%3), Time: now.Add(time.Duration(i) * time.Minute), IngestedAt: now,
			Payload:  jsontext.Value(fmt.Sprintf(`{"value":%d.50,"html":"<b>"}`, i)),
			Metadata: event.Metadata{Source: "http", CorrelationID: "c", SchemaVersion: 1, Position: int64(i + 1)},
		})
	}
	for _, id := range oddIDs {
		m.projections = append(m.projections, store.Projection{
			ID: uuid.New(), Type: "sensor_state", AggregateID: id, State: jsontext.Value(`{"value":1}`),
			LastEventID: uuid.New(), LastEventTimestamp: now, Position: 3, UpdatedAt: now,
		})
	}
	return m
}

var oddIDs = []string{"a b", "tür-7", "100%", "q?x=1&y", "日本", "..a", "semi;colon", "back\\slash", "device-001", `"quoted"`}

type listed[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next_cursor"`
}

// walk reads a list page by page and checks that only the last lacks a cursor.
func walk[T any](t *testing.T, list string, limit int) (all []T, pages int) {
	t.Helper()
	sep := "?"
	if strings.Contains(list, "?") {
		sep = "&"
	}
	cursor := ""
	for {
		res := get(t, fmt.Sprintf("%s%slimit=%d%s", list, sep, limit, cursor))
		require.Equal(t, 200, res.status, "%s", res.body)
		var p listed[T]
		res.json(t, &p)
		require.NotNil(t, p.Items)
		all = append(all, p.Items...)
		pages++
		if p.Next == "" {
			require.NotContains(t, string(res.body), "next_cursor")
			return all, pages
		}
		require.Len(t, p.Items, limit)
		cursor = "&cursor=" + url.QueryEscape(p.Next)
	}
}

func TestEventsPagination(t *testing.T) {
	t.Parallel()
	base := queryServer(t, filled()) + eventPath
	all, pages := walk[event.Envelope](t, base, 10)
	require.Len(t, all, 45)
	require.Equal(t, 5, pages)
	for i, e := range all {
		require.Equal(t, int64(45-i), e.Metadata.Position)
	}
	all, pages = walk[event.Envelope](t, base, 45)
	require.Len(t, all, 45)
	require.Equal(t, 1, pages, "a page that is just full has no successor")
	all, _ = walk[event.Envelope](t, base+"?aggregate_id=device-1&event_type=sensor.reading", 2)
	require.Len(t, all, 7)
	var first listed[event.Envelope]
	get(t, base).json(t, &first)
	require.Len(t, first.Items, 20, "the default limit")
}

func TestEventsByTime(t *testing.T) {
	t.Parallel()
	base := queryServer(t, filled()) + eventPath
	at := func(d time.Duration) string { return url.QueryEscape(now.Add(d).Format(time.RFC3339Nano)) }
	for name, c := range map[string]struct {
		query string
		want  int
	}{
		"from inclusive":        {"from=" + at(40*time.Minute), 5},
		"from a nanosecond on":  {"from=" + at(40*time.Minute+1), 4},
		"to exclusive":          {"to=" + at(5*time.Minute), 5},
		"to a nanosecond on":    {"to=" + at(5*time.Minute+1), 6},
		"both":                  {"from=" + at(time.Minute) + "&to=" + at(2*time.Minute), 1},
		"nothing between":       {"from=" + at(0) + "&to=" + at(0), 0},
		"before all time":       {"to=0001-01-01T00:00:00Z", 0},
		"another zone's offset": {"from=" + url.QueryEscape("2026-02-07T12:40:00+02:00"), 5},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all, _ := walk[event.Envelope](t, base+"?"+c.query, 1000)
			require.Len(t, all, c.want)
		})
	}
}

func TestEventIsItsEnvelope(t *testing.T) {
	t.Parallel()
	m := filled()
	base := queryServer(t, m) + eventPath
	want := m.events[7]
	res := get(t, base+"/"+want.ID.String())
	require.Equal(t, 200, res.status)
	require.Equal(t, mediaJSON, res.header.Get("Content-Type"))
	require.Equal(t, "no-store", res.header.Get("Cache-Control"))
	data, err := want.Marshal()
	require.NoError(t, err)
	require.Equal(t, string(data), string(res.body), "byte for byte: 7.50 stays 7.50, <b> stays <b>")

	get(t, base+"/"+uuid.NewString()).problem(t, 404)
	for _, bad := range []string{"7", "urn:uuid:" + uuid.NewString(), strings.ReplaceAll(uuid.NewString(), "-", ""), "%00"} {
		require.Equal(t, "event_id", get(t, base+"/"+bad).problem(t, 422).Errors[0].Location)
	}
	res = call(t, http.MethodHead, base+"/"+want.ID.String(), nil)
	require.Equal(t, 200, res.status)
	require.Empty(t, res.body)
}

func TestProjections(t *testing.T) {
	t.Parallel()
	m := filled()
	base := queryServer(t, m) + "/api/v1/projections/"
	for _, p := range m.projections {
		res := get(t, base+"sensor_state/"+url.PathEscape(p.AggregateID))
		require.Equal(t, 200, res.status, "%q: %s", p.AggregateID, res.body)
		var got store.Projection
		res.json(t, &got)
		require.Equal(t, p, got)
	}
	all, pages := walk[store.Projection](t, base+"sensor_state", 3)
	require.Len(t, all, len(oddIDs))
	require.Equal(t, 4, pages)
	for i := 1; i < len(all); i++ {
		require.Less(t, all[i-1].AggregateID, all[i].AggregateID)
	}
	require.JSONEq(t, `{"items":[]}`, string(get(t, base+"no_such_state").body))
	get(t, base+"no_such_state/device-001").problem(t, 404)
	get(t, base+"sensor_state/device-999").problem(t, 404)
	get(t, base+"sensor_state/a%2Fb").problem(t, 404)
	for _, bad := range []string{"%00", "%ff", "a%0Ab", strings.Repeat("x", 257)} {
		require.Equal(t, "aggregate_id", get(t, base+"sensor_state/"+bad).problem(t, 422).Errors[0].Location)
		require.Equal(t, "type", get(t, base+bad).problem(t, 422).Errors[0].Location)
	}
}

func TestBadParameters(t *testing.T) {
	t.Parallel()
	base := queryServer(t, filled()) + "/api/v1/"
	var p listed[event.Envelope]
	get(t, base+"events?limit=1").json(t, &p)
	ofEvents := p.Next
	get(t, base+"projections/sensor_state?limit=1").json(t, &p)
	ofStates := p.Next
	forged := func(l listing, key any) string { return l.cursor(key) }
	events := newListing("events", "", "", time.Time{}.Format(time.RFC3339Nano), time.Time{}.Format(time.RFC3339Nano))
	states := newListing("projections", "sensor_state")
	require.Equal(t, 200, get(t, base+"events?cursor="+ofEvents).status)
	for query, location := range map[string]string{
		"events?limit=0":                         "limit",
		"events?limit=1001":                      "limit",
		"events?limit=-1":                        "limit",
		"events?limit=ten":                       "limit",
		"events?limit=":                          "limit",
		"events?limit=99999999999999999999":      "limit",
		"events?limit=1&limit=2":                 "limit",
		"events?from=yesterday":                  "from",
		"events?from=":                           "from",
		"events?to=2026-02-30T00:00:00Z":         "to",
		"events?to=%2B292278994-08-17T07:12:55Z": "to",
		"events?to=9999-12-31T23:59:59-01:00":    "to",
		"events?from=2026-02-02T00:00:00Z&to=2026-02-01T00:00:00Z": "from",
		"events?aggregate_id=":                                       "aggregate_id",
		"events?aggregate_id=%00":                                    "aggregate_id",
		"events?event_type=%FF":                                      "event_type",
		"events?event_typ=sensor.reading":                            "event_typ",
		"events?cursor=":                                             "cursor",
		"events?cursor=!":                                            "cursor",
		"events?cursor=AAAA":                                         "cursor",
		"events?cursor=" + ofStates:                                  "cursor",
		"events?event_type=a.b&cursor=" + ofEvents:                   "cursor",
		"events?cursor=" + forged(events, "short"):                   "cursor",
		"events?cursor=" + forged(events, 1.5):                       "cursor",
		"events?cursor=" + forged(events, uint64(math.MaxUint64)):    "cursor",
		"projections/sensor_state?cursor=" + forged(states, 7):       "cursor",
		"projections/sensor_state?cursor=" + forged(states, []int{}): "cursor",
		"projections/sensor_state?cursor=" + ofEvents:                "cursor",
		"projections/user_session?cursor=" + ofStates:                "cursor",
		"projections/sensor_state?aggregate_id=x":                    "aggregate_id",
		"projections/sensor_state/device-001?limit=3":                "limit",
	} {
		t.Run(query, func(t *testing.T) {
			t.Parallel()
			p := get(t, base+query).problem(t, 422)
			require.Equal(t, location, p.Errors[0].Location, p.Detail)
		})
	}
	for query, detail := range map[string]string{
		"events?colour=red":      "colour: is not known, query parameters are aggregate_id, cursor, event_type, from, limit, to",
		"events?limit=0":         "limit: must be at least 1",
		"events?limit=1001":      "limit: must be at most 1000",
		"events?limit=1&limit=2": "limit: must be given once",
		"events?cursor=!":        "cursor: must be a next_cursor that this API has given out",
		"events?aggregate_id=":   "aggregate_id: must not be empty",
		"events/7":               "event_id: must be a UUID such as 0190a5c0-7b1e-7c3a-9d3e-5f6a7b8c9d0e",
		"events?from=now":        "from: must be an RFC 3339 time such as 2026-02-07T10:00:00Z; the '+' of an offset is written %2B in a URL",
	} {
		require.Equal(t, detail, get(t, base+query).problem(t, 422).Detail)
	}
	for _, query := range []string{"events?limit=%zz", "events?a=1;b=2"} {
		get(t, base+query).problem(t, 400)
	}
	raw, err := base64.RawURLEncoding.DecodeString(ofEvents)
	require.NoError(t, err)
	require.Equal(t, byte(cursorVersion), raw[0])
}

func TestReadErrors(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fail   func(context.Context) error
		status int
	}{
		"unavailable": {func(context.Context) error { return fmt.Errorf("select: %w", fault.ErrUnavailable) }, 503},
		"hanging":     {func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, 503},
		"bug":         {func(context.Context) error { return errors.New("hunter2") }, 500},
	} {
		for _, path := range []string{"events", "events/" + uuid.NewString(), "projections/a", "projections/a/b"} {
			t.Run(name+" "+path, func(t *testing.T) {
				t.Parallel()
				log := &logged{}
				base := serve(t, NewQuery(QueryConfig{
					Reader: &memory{fail: c.fail}, Log: slog.New(slog.NewTextHandler(log, nil)), Timeout: 20 * time.Millisecond,
				}))
				res := get(t, base+"/api/v1/"+path)
				res.problem(t, c.status)
				require.NotContains(t, string(res.body), "hunter2")
				require.Equal(t, c.status == 500, strings.Contains(log.String(), "hunter2"))
				require.Equal(t, c.status == 503, res.header.Get("Retry-After") != "")
			})
		}
	}
}

func TestLargePageIsWhole(t *testing.T) {
	t.Parallel()
	m := filled()
	for i := range m.events {
		m.events[i].Payload = jsontext.Value(`{"a":"` + strings.Repeat("x", 20_000) + `"}`)
	}
	all, pages := walk[event.Envelope](t, queryServer(t, m)+eventPath, 40)
	require.Len(t, all, 45)
	require.Equal(t, 2, pages)
}
