package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/ledger"
)

// fixedAccounts answers with what it holds.
type fixedAccounts struct {
	ledger  ledger.Ledger
	journey ledger.Journey
	err     error
}

func (f fixedAccounts) Ledger(context.Context) (ledger.Ledger, error) { return f.ledger, f.err }

func (f fixedAccounts) Journey(_ context.Context, id uuid.UUID) (ledger.Journey, error) {
	if f.err == nil && id != f.journey.EventID {
		return ledger.Journey{}, fault.ErrNotFound
	}
	return f.journey, f.err
}

func accountsServer(t *testing.T, f fixedAccounts) string {
	t.Helper()
	mux := http.NewServeMux()
	a := MountQuery(mux, QueryConfig{Reader: &memory{}, Log: quiet(), Version: "test"})
	MountLedger(a, f)
	return serve(t, Wrap(quiet(), mux))
}

// full has every field that a ledger and a journey can have.
func full() fixedAccounts {
	partition, offset, at := int32(0), int64(0), now
	return fixedAccounts{
		ledger: ledger.Ledger{
			At: now, Accepted: 5, Duplicates: 1, Sequenced: 3, Published: 2,
			Applied:      map[string]int64{"eventhandler": 3},
			DeadLettered: map[string]ledger.DeadLetterCounts{"ingestion": {Pending: 1}, "eventhandler": {}},
			Pending:      map[string]int64{"outbox": 1, "relay": 1, "eventhandler": -1},
			Lag:          map[string]ledger.Lag{"relay": {Events: 2, Seconds: 0.5}},
			Missing:      []ledger.Missing{{Stage: "eventhandler", Events: -1, Detail: "twice"}},
			Topics:       []ledger.TopicCounts{{Topic: event.TopicSensor, Sequenced: 3, Published: 2}},
			Consumers:    []ledger.ConsumerCounts{{Consumer: "eventhandler", Topics: []string{event.TopicSensor}, Pending: -1}},
		},
		journey: ledger.Journey{
			EventID: uuid.Must(uuid.NewV7()), EventType: "sensor.reading", AggregateID: "d", CorrelationID: "c", Source: "mqtt",
			Status: ledger.StepWaiting, WaitingAt: "eventhandler",
			Steps: []ledger.Step{
				{Stage: ledger.StageReceived, Status: ledger.StepDone, At: &at},
				{Stage: ledger.StageStored, Status: ledger.StepDone, At: &at, Position: 7},
				{Stage: ledger.StagePublished, Status: ledger.StepUnknown, Topic: event.TopicSensor, Partition: &partition, Offset: &offset, Detail: "x"},
				{Stage: ledger.StageApplied, Consumer: "eventhandler", Status: ledger.StepDone, At: &at, AtLatest: true},
			},
			DeadLetters: []ledger.JourneyLetter{{ID: uuid.New(), Consumer: "relay", Status: "replayed", FailedAt: now, Error: "x"}},
		},
	}
}

func TestLedgerAndJourneyKeepTheirSchemas(t *testing.T) {
	t.Parallel()
	known := full()
	base := accountsServer(t, known)
	d, doc := documentOf(t, base)
	require.Contains(t, d.Paths, "/api/v1/ledger")
	require.Contains(t, d.Paths, "/api/v1/events/{event_id}/journey")
	res := get(t, base+"/api/v1/ledger")
	require.Equal(t, 200, res.status)
	require.NoError(t, conforms(t, schemaOf(t, doc, "/components/schemas/Ledger"), res.body), "%s", res.body)
	var l ledger.Ledger
	res.json(t, &l)
	require.Equal(t, known.ledger, l)

	journey := schemaOf(t, doc, "/components/schemas/Journey")
	res = get(t, base+"/api/v1/events/"+known.journey.EventID.String()+"/journey")
	require.Equal(t, 200, res.status)
	require.NoError(t, conforms(t, journey, res.body), "%s", res.body)
	require.Contains(t, string(res.body), `"partition":0,"offset":0`, "the first record of the first partition is a place")

	letter := fixedAccounts{journey: ledger.Journey{
		EventID: known.journey.EventID, Status: ledger.StepDeadLettered, DeadLetters: []ledger.JourneyLetter{},
		Steps: []ledger.Step{{Stage: ledger.StageReceived, Status: ledger.StepDeadLettered}},
	}}
	res = get(t, accountsServer(t, letter)+"/api/v1/events/"+known.journey.EventID.String()+"/journey")
	require.NoError(t, conforms(t, journey, res.body), "%s", res.body)
	require.NotContains(t, string(res.body), "position")
}

func TestLedgerAndJourneyProblems(t *testing.T) {
	t.Parallel()
	known := full()
	base := accountsServer(t, known)
	for path, want := range map[string]int{
		"/api/v1/events/" + uuid.NewString() + "/journey":                       404,
		"/api/v1/events/17/journey":                                             422,
		"/api/v1/events/" + known.journey.EventID.String() + "/journey?depth=1": 422,
		"/api/v1/ledger?at=now":                                                 422,
	} {
		require.Equal(t, want, get(t, base+path).status, path)
	}
	for name, err := range map[string]error{
		"away":    fmt.Errorf("%w: refused", fault.ErrUnavailable),
		"in time": context.DeadlineExceeded,
	} {
		away := accountsServer(t, fixedAccounts{err: err})
		for _, path := range []string{"/api/v1/ledger", "/api/v1/events/" + uuid.NewString() + "/journey"} {
			res := get(t, away+path)
			require.Equal(t, 503, res.status, name)
			require.NotEmpty(t, res.header.Get("Retry-After"))
			require.NotContains(t, string(res.body), "stored", "nothing was sent")
		}
	}
	broken := accountsServer(t, fixedAccounts{err: errors.New("secret")})
	res := get(t, broken+"/api/v1/ledger")
	require.Equal(t, 500, res.status)
	require.NotContains(t, string(res.body), "secret")
}
