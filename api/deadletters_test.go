package api

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

const dlqPath = "/api/v1/dlq"

// desk keeps dead letters in memory, the newest first.
type desk struct {
	mu      sync.Mutex
	letters []deadletter.Letter
	filter  deadletter.Filter // of the last request
	edit    deadletter.Edit
	reason  string
	rate    float64
	replays []deadletter.Replay
	fail    error
}

func (d *desk) List(_ context.Context, f deadletter.Filter) ([]deadletter.Letter, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.filter = f
	var found []deadletter.Letter
	for _, l := range d.letters {
		after := !f.BeforeTime.IsZero() && (l.FailedAt.After(f.BeforeTime) || l.FailedAt.Equal(f.BeforeTime) && l.ID.String() >= f.BeforeID.String())
		if !after && (f.Status == "" || f.Status == l.Status) && len(found) < f.Limit {
			found = append(found, l)
		}
	}
	return found, d.fail
}

func (d *desk) Letter(_ context.Context, id uuid.UUID) (deadletter.Letter, error) {
	for _, l := range d.letters {
		if l.ID == id {
			return l, d.fail
		}
	}
	return deadletter.Letter{}, fault.ErrNotFound
}

func (d *desk) Count(_ context.Context, f deadletter.Filter) (int64, error) {
	d.filter = f
	return 7, d.fail
}

func (d *desk) Replay(ctx context.Context, id uuid.UUID, edit deadletter.Edit) (deadletter.Letter, error) {
	d.edit = edit
	l, err := d.Letter(ctx, id)
	l.Status, l.ReplayedAt, l.EditedBytes = deadletter.Replayed, &now, edit.Payload
	return l, err
}

func (d *desk) Discard(ctx context.Context, id uuid.UUID, reason string) (deadletter.Letter, error) {
	d.reason = reason
	l, err := d.Letter(ctx, id)
	l.Status, l.DiscardedAt, l.Reason = deadletter.Discarded, &now, reason
	return l, err
}

func (d *desk) StartReplay(_ context.Context, f deadletter.Filter, rate float64) (deadletter.Replay, error) {
	d.filter, d.rate = f, rate
	r := deadletter.Replay{ID: uuid.New(), Status: deadletter.ReplayQueued, Filter: f, Rate: rate, Total: 7, CreatedAt: now}
	d.replays = append(d.replays, r)
	return r, d.fail
}

func (d *desk) BulkReplay(_ context.Context, id uuid.UUID) (deadletter.Replay, error) {
	for _, r := range d.replays {
		if r.ID == id {
			return r, d.fail
		}
	}
	return deadletter.Replay{}, fault.ErrNotFound
}

func (d *desk) BulkReplays(context.Context, int) ([]deadletter.Replay, error) {
	return d.replays, d.fail
}

func (d *desk) CancelReplay(ctx context.Context, id uuid.UUID) (deadletter.Replay, error) {
	r, err := d.BulkReplay(ctx, id)
	r.Status, r.FinishedAt = deadletter.ReplayCancelled, &now
	return r, err
}

func deskServer(t *testing.T, d *desk) string {
	t.Helper()
	mux := http.NewServeMux()
	NewDeadLetters(mux, quiet(), Info{Title: "x", Version: "test"}, DeadLettersConfig{
		Consumers: []string{"ingestion", "relay"}, Reader: d, Mender: d, Replays: d,
	})
	return serve(t, Wrap(quiet(), mux))
}

// fullDesk holds five letters with all kinds of payloads.
func fullDesk() *desk {
	d := &desk{}
	offset, partition := int64(3), int32(0)
	for i, payload := range []string{`{"value":1}`, "temperature=21", "\xff\x00", "", strings.Repeat("ü", 512) + "\xc3"} {
		l := deadletter.Letter{Entry: deadletter.Entry{
			ID: uuid.UUID{0: byte(9 - i), 15: 1}, Consumer: "ingestion", Payload: []byte(payload), Error: "refused", FailedAt: now.Add(-time.Duration(i/2) * time.Second),
			Topic: "devices/d/events/sensor.reading", BusTopic: "sensor-events.dlq",
		}, Status: deadletter.Pending, Size: len(payload)}
		if i == 0 {
			l.EventID, l.EventType, l.Position, l.Offset, l.Partition = uuid.New(), "sensor.reading", 9, &offset, &partition
			l.Properties, l.Key, l.CorrelationID, l.RetriedAt, l.PublishedAt = map[string]string{"event_id": "x"}, "d", "c", &now, &now
		}
		if i == 4 {
			l.Size = 5000
		}
		d.letters = append(d.letters, l)
	}
	return d
}

func TestDeadLetterAnswersKeepTheirSchemas(t *testing.T) {
	t.Parallel()
	d := fullDesk()
	base := deskServer(t, d)
	document, doc := documentOf(t, base)
	require.Len(t, document.Paths, 8)
	one := base + dlqPath + "/" + d.letters[0].ID.String()
	started := post(t, base+dlqPath+"/replay", `{"consumer":"relay","from":"2026-02-07T10:00:00Z","event_id":"`+uuid.NewString()+`"}`)
	require.Equal(t, http.StatusAccepted, started.status, "%s", started.body)
	where := started.header.Get("Location")
	require.NotEmpty(t, where)
	for _, c := range []struct {
		schema string
		status int
		res    answer
	}{
		{"DeadLetterPage", 200, get(t, base+dlqPath)},
		{"DeadLetter", 200, get(t, one)},
		{"DeadLetter", 200, get(t, base+dlqPath+"/"+d.letters[2].ID.String())},
		{"DeadLetter", 200, post(t, one+"/replay", "")},
		{"DeadLetter", 200, post(t, one+"/replay", `{"payload":{"value":2}}`)},
		{"DeadLetter", 200, post(t, one+"/discard", `{"reason":"old"}`)},
		{"BulkReplay", 202, started},
		{"BulkReplay", 200, get(t, base+where)},
		{"BulkReplay", 200, post(t, base+where+"/cancel", "")},
		{"BulkReplayPage", 200, get(t, base+dlqPath+"/replays")},
		{"DryRun", 200, post(t, base+dlqPath+"/replay", `{"dry_run":true}`)},
		{"Problem", 404, get(t, base+dlqPath+"/"+uuid.NewString())},
		{"Problem", 404, get(t, base+dlqPath+"/replays/"+uuid.NewString())},
		{"Problem", 422, get(t, base+dlqPath+"/17")},
	} {
		require.Equal(t, c.status, c.res.status, "%s", c.res.body)
		require.NoError(t, conforms(t, schemaOf(t, doc, "/components/schemas/"+c.schema), c.res.body), "%s", c.res.body)
	}
}

func TestPayloadsOfAnyKindAreShown(t *testing.T) {
	t.Parallel()
	d := fullDesk()
	base := deskServer(t, d)
	for i, want := range []struct{ encoding, payload string }{
		{"json", `{"value":1}`}, {"text", "temperature=21"}, {"base64", base64.StdEncoding.EncodeToString([]byte("\xff\x00"))}, {"text", ""},
		{"text", strings.Repeat("ü", 512)},
	} {
		var got DeadLetter
		get(t, base+dlqPath+"/"+d.letters[i].ID.String()).json(t, &got)
		require.Equal(t, want.encoding, got.Encoding)
		require.Equal(t, want.payload, got.Payload)
		require.Equal(t, i == 4, got.Truncated)
	}
}

func TestDeadLettersInPages(t *testing.T) {
	t.Parallel()
	d := fullDesk()
	base := deskServer(t, d)
	all, pages := walk[DeadLetter](t, base+dlqPath, 2)
	require.Equal(t, 3, pages)
	require.Len(t, all, 5)
	for i, l := range all {
		require.Equal(t, d.letters[i].ID, l.ID)
	}
	var first listed[DeadLetter]
	get(t, base+dlqPath+"?limit=1&status=pending").json(t, &first)
	get(t, base+dlqPath+"?limit=1&status=discarded&cursor="+first.Next).problem(t, 422)
	get(t, base+dlqPath+"?cursor=AAAA").problem(t, 422)
}

func TestFiltersOfDeadLetters(t *testing.T) {
	t.Parallel()
	d := fullDesk()
	base := deskServer(t, d)
	id := uuid.New()
	want := deadletter.Filter{
		Status: "pending", Consumer: "relay", EventID: id, EventType: "sensor.reading", Topic: "devices/d/events/x.y", Error: "100% hot",
		From: now.Truncate(time.Second), To: now.Truncate(time.Second).Add(time.Hour),
	}
	query := fmt.Sprintf("?status=pending&consumer=relay&event_id=%s&event_type=sensor.reading&topic=devices/d/events/x.y&error=100%%25%%20hot&from=2026-02-07T10:00:00Z&to=2026-02-07T11:00:00Z", id)
	require.Equal(t, 200, get(t, base+dlqPath+query).status)
	d.filter.Limit = 0
	require.Equal(t, want, d.filter)
	require.Equal(t, 202, post(t, base+dlqPath+"/replay"+query, `{"rate":2.5}`).status)
	require.Equal(t, want, d.filter)
	require.InDelta(t, 2.5, d.rate, 0)
	require.Equal(t, 202, post(t, base+dlqPath+"/replay?consumer=relay", `{"error":"hot","status":"pending"}`).status)
	require.Equal(t, deadletter.Filter{Status: "pending", Consumer: "relay", Error: "hot"}, d.filter)
	require.InDelta(t, 100, d.rate, 0)
	require.Equal(t, 202, call(t, http.MethodPost, base+dlqPath+"/replay", nil).status, "without a body it is all")
	require.Equal(t, deadletter.Filter{Status: "pending"}, d.filter)

	for _, q := range []string{"status=new", "consumer=eventhandler", "event_id=17", "from=now", "event_type=", "color=red", "limit=0", "from=2026-02-08T00:00:00Z&to=2026-02-07T00:00:00Z"} {
		require.Equal(t, 422, get(t, base+dlqPath+"?"+q).status, q)
	}
	for body, want := range map[string]int{
		`{"rate":0}`: 422, `{"rate":1e9}`: 422, `{"status":"replayed"}`: 422, `{"color":"red"}`: 422, `{"rate":"fast"}`: 400, `[]`: 400, `{`: 400, `{"consumer":7}`: 400,
	} {
		post(t, base+dlqPath+"/replay", body).problem(t, want)
	}
	post(t, base+dlqPath+"/replay?consumer=relay", `{"consumer":"relay"}`).problem(t, 422)
	post(t, base+dlqPath+"/replay", `{}`, "Content-Type", "text/plain").problem(t, 415)
}

func TestEditsOfAReplay(t *testing.T) {
	t.Parallel()
	d := fullDesk()
	one := deskServer(t, d) + dlqPath + "/" + d.letters[0].ID.String() + "/replay"
	for body, want := range map[string]deadletter.Edit{
		``:                                        {},
		`{}`:                                      {},
		`{"payload":{"a": 1.50}}`:                 {Payload: []byte(`{"a": 1.50}`)},
		`{"payload":[1]}`:                         {Payload: []byte(`[1]`)},
		`{"payload":null}`:                        {Payload: []byte(`null`)},
		`{"payload":"{\"a\":1}"}`:                 {Payload: []byte(`{"a":1}`)},
		`{"payload":"","topic":"events"}`:         {Payload: []byte{}, Topic: "events"},
		`{"payload":"{}","encoding":"json"}`:      {Payload: []byte(`{}`)},
		`{"payload":{},"encoding":"json"}`:        {Payload: []byte(`{}`)},
		`{"payload":"/wA=","encoding":"base64"}`:  {Payload: []byte("\xff\x00")},
		`{"topic":"devices/d/events/user.login"}`: {Topic: "devices/d/events/user.login"},
	} {
		res := post(t, one, body)
		require.Equal(t, 200, res.status, "%s: %s", body, res.body)
		require.Equal(t, want, d.edit, body)
	}
	for body, want := range map[string]int{
		`{"payload":"!","encoding":"base64"}`: 422, `{"payload":"x","encoding":"latin1"}`: 422, `{"payload":{},"encoding":"base64"}`: 422,
		`{"encoding":"text"}`: 422, `{"topic":""}`: 422, `{"topic":7}`: 400, `{"payloads":{}}`: 422, `{"payload":`: 400,
	} {
		post(t, one, body).problem(t, want)
	}
	post(t, one, `{"payload":"`+strings.Repeat("x", maxOptionalBody)+`"}`).problem(t, 413)
}

func TestMistakesInABodyAreNamed(t *testing.T) {
	t.Parallel()
	d := fullDesk()
	base := deskServer(t, d) + dlqPath
	long := strings.Repeat("x", 70_000)
	for _, c := range []struct {
		path, body string
		status     int
		location   string
	}{
		{"/replay", `{"colour":"red"}`, 422, "colour"},
		{"/replay", `{"Consumer":"relay"}`, 422, "Consumer"},
		{"/replay", `{"` + long + `":1}`, 422, long[:64] + "…"},
		{"/replay", `{"consumer":"nobody"}`, 422, "consumer"},
		{"/replay", `{"consumer":7}`, 400, "consumer"},
		{"/replay", `{"from":"0000-01-01T00:00:00Z"}`, 422, "body"},
		{"/replay", `{"from":"2026-02-08T00:00:00Z","to":"2026-02-07T00:00:00Z"}`, 422, "from"},
		{"/replay?from=2026-02-08T00:00:00Z", `{"to":"2026-02-07T00:00:00Z"}`, 422, "from"},
		{"/replay", `{"event_id":"urn:uuid:0190a5c0-7b1e-7c3a-9d3e-5f6a7b8c9d0e"}`, 422, "event_id"},
		{"/replay", `{"topic":"` + long + `"}`, 422, "topic"},
		{"/replay", `{"error":"a\u0000"}`, 422, "error"},
		{"/replay", `{"rate":1,"rate":2}`, 400, "body"},
		{"/replay", `null`, 400, "body"},
		{"/replay", `[{}]`, 400, "body"},
		{"/replay", "{\"error\":\"\xff\"}", 400, "body"},
	} {
		res := post(t, base+c.path, c.body)
		p := res.problem(t, c.status)
		require.Equal(t, c.location, p.Errors[0].Location, "%s", res.body)
		require.Equal(t, p.Errors[0].Location+": "+p.Errors[0].Message, p.Detail)
		require.NotContains(t, p.Detail, "EXTRA", "texts have the verbs that the framework fills")
		require.Less(t, len(res.body), 4096)
	}
	many := post(t, base+"/replay", "{"+manyMembers(5000)+"}")
	require.Len(t, many.problem(t, 422).Errors, 10, "a problem stays readable")
	require.Empty(t, d.replays)
	require.Equal(t, 202, post(t, base+"/replay", " \n", "Content-Type", "Application/JSON; charset=UTF-8").status, "a body of white space is none")
}

func manyMembers(n int) string {
	var members []string
	for i := range n {
		members = append(members, fmt.Sprintf(`"m%d":1`, i))
	}
	return strings.Join(members, ",")
}

// failingDesk answers each change with an error.
type failingDesk struct {
	desk
	err error
}

func (d *failingDesk) Replay(context.Context, uuid.UUID, deadletter.Edit) (deadletter.Letter, error) {
	return deadletter.Letter{}, d.err
}

func TestWhatAReplayIsRefusedFor(t *testing.T) {
	t.Parallel()
	id := uuid.New()
	for _, c := range []struct {
		err    error
		status int
		detail string
	}{
		{fault.ErrNotFound, 404, "no dead letter " + id.String()},
		{fault.ErrUnavailable, 503, "try again"},
		{&deadletter.NotPendingError{ID: id, Status: "replayed", At: now}, 409, "it was replayed at 2026-02-07T10:00:00Z"},
		{&deadletter.RefusedError{Err: errors.New("payload.value: is bad\ngoroutine 1")}, 422, "refused again: payload.value: is bad"},
		{&deadletter.RefusedError{Err: fmt.Errorf("x %w", deadletter.ErrNeedsRebuild)}, 409, "needs a rebuild"},
		{errors.New("SELECT secret"), 500, "correlation ID"},
	} {
		d := &failingDesk{err: c.err}
		mux := http.NewServeMux()
		NewDeadLetters(mux, quiet(), Info{}, DeadLettersConfig{Consumers: []string{"relay"}, Reader: d, Mender: d, Replays: d})
		p := post(t, serve(t, Wrap(quiet(), mux))+dlqPath+"/"+id.String()+"/replay", "").problem(t, c.status)
		require.Contains(t, p.Detail, c.detail)
		require.NotContains(t, p.Detail, "goroutine")
		require.NotContains(t, p.Detail, "secret")
	}
}

func TestDiscardTakesAReason(t *testing.T) {
	t.Parallel()
	d := fullDesk()
	one := deskServer(t, d) + dlqPath + "/" + d.letters[0].ID.String() + "/discard"
	require.Equal(t, 200, post(t, one, `{"reason":"a test device"}`).status)
	require.Equal(t, "a test device", d.reason)
	require.Equal(t, 200, call(t, http.MethodPost, one, nil).status)
	require.Empty(t, d.reason)
	post(t, one, `{"reason":7}`).problem(t, 400)
	post(t, one, `{"reason":"a\u0000"}`).problem(t, 422)
}
