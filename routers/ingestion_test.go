package routers_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/internal/pgtest"
	"github.com/cornjacket/platform-services/migrations"
	"github.com/cornjacket/platform-services/pubsub/batch"
	"github.com/cornjacket/platform-services/pubsub/outbox"
	"github.com/cornjacket/platform-services/routers"
)

// feed is a source that sends the batches of a test, one after the other.
type feed struct {
	sender *batch.Sender
	plain  chan *message.Message // of a stock subscriber; may be nil
	ctx    context.Context
	end    context.CancelFunc
}

func newFeed() *feed {
	f := &feed{sender: batch.NewSender(time.Second)}
	f.ctx, f.end = context.WithCancel(context.Background())
	return f
}

func (f *feed) Subscribe(context.Context, string) (<-chan *message.Message, error) {
	out := make(chan *message.Message)
	go func() {
		defer close(out)
		for {
			select {
			case m := <-f.sender.Out():
				out <- m
			case m := <-f.plain:
				out <- m
			case <-f.ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

func (f *feed) Close() error {
	f.end()
	return nil
}

// log is an EventStore that keeps what it is given, unless fail, if set, answers otherwise.
type log struct {
	fail func(events []event.Envelope) error

	mu     sync.Mutex
	events []event.Envelope
}

func (l *log) Store(_ context.Context, events []event.Envelope) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		if err := l.fail(events); err != nil {
			return err
		}
	}
	l.events = append(l.events, events...)
	return nil
}

// box is a DeadLetterStore in memory that is away for the first calls.
type box struct {
	mu      sync.Mutex
	away    int
	letters []deadletter.Entry
}

func (b *box) Add(_ context.Context, letters ...deadletter.Entry) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.away > 0 {
		b.away--
		return errors.New("database is away")
	}
	for _, l := range letters {
		if !slices.ContainsFunc(b.letters, func(had deadletter.Entry) bool {
			return had.ID == l.ID && (l.Offset == nil || *had.Offset == *l.Offset)
		}) {
			b.letters = append(b.letters, l)
		}
	}
	return nil
}

const retryMax = 3

// ingest runs records through the ingestion router, and returns once all are done. woken counts how often dead letters
// were told of.
func ingest(t *testing.T, store routers.EventStore, letters *box, records ...batch.Record) (woken int) {
	t.Helper()
	f := newFeed()
	r, err := routers.NewIngestion(routers.IngestionConfig{
		Stack: stack(), Subscriber: f, Store: store, Letters: letters, Now: func() time.Time { return came }, Added: func() { woken++ },
	})
	require.NoError(t, err)
	through(t, f, r, records...)
	return woken
}

var came = time.Date(2026, 2, 7, 10, 0, 0, 123456000, time.UTC)

func published(topic, body string, headers ...batch.Header) batch.Record {
	return batch.Record{Topic: topic, Partition: -1, Offset: -1, Key: "k", ID: uuid.Must(uuid.NewV7()).String(), At: came,
		Value: []byte(body), Headers: headers}
}

// readings returns one message of each number.
func readings(n int) (all []batch.Record) {
	for i := range n {
		all = append(all, published("devices/d/events/sensor.reading", fmt.Sprintf(`{"value":%d,"unit":"c"}`, i)))
	}
	return all
}

func payloads(events []event.Envelope) (all []string) {
	for _, e := range events {
		all = append(all, string(e.Payload))
	}
	return all
}

func bodies(records []batch.Record) (all []string) {
	for _, r := range records {
		all = append(all, string(r.Value))
	}
	return all
}

func TestIngestionStoresWhatDevicesPublish(t *testing.T) {
	t.Parallel()
	kept, letters, id := &log{}, &box{}, uuid.New()
	plain := published("devices/device-2/events/sensor.reading", `{"value":2,"unit":"c"}`)
	ingest(t, kept, letters, published("devices/device-1/events/sensor.reading", `{"value":1,"unit":"celsius"}`,
		batch.Header{Key: event.MetaEventID, Value: id.String()}, batch.Header{Key: event.MetaEventTime, Value: "2026-01-02T03:04:05Z"},
		batch.Header{Key: event.MetaCorrelationID, Value: "c-9"},
		batch.Header{Key: event.MetaTraceparent, Value: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}), plain)
	require.Empty(t, letters.letters)
	require.Len(t, kept.events, 2)
	e := kept.events[0]
	require.Equal(t, id, e.ID)
	require.Equal(t, "sensor.reading", e.Type)
	require.Equal(t, "device-1", e.AggregateID)
	require.Equal(t, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), e.Time)
	require.Equal(t, came, e.IngestedAt)
	require.Equal(t, "c-9", e.Metadata.CorrelationID)
	require.Equal(t, "mqtt", e.Metadata.Source)
	require.NotEmpty(t, e.Metadata.Traceparent)
	e = kept.events[1]
	require.Equal(t, plain.ID, e.ID.String(), "a message that is handed out again is the same event")
	require.Equal(t, came, e.Time)
}

// A clock that is not believed costs a device its times, not its events.
func TestIngestionCountsClocksThatAreNotBelieved(t *testing.T) {
	t.Parallel()
	kept, f := &log{}, newFeed()
	odd := map[string]int{}
	r, err := routers.NewIngestion(routers.IngestionConfig{
		Stack: stack(), Subscriber: f, Store: kept, Letters: &box{}, Now: func() time.Time { return came },
		Clock: event.Clock{MaxAhead: time.Minute, Min: came.AddDate(-20, 0, 0)}, Odd: func(kind string) { odd[kind]++ },
	})
	require.NoError(t, err)
	var records []batch.Record
	for _, at := range []string{"2099-01-01T00:00:00Z", "2026-02-07T10:00:30Z", "1970-01-01T00:00:07Z", "2098-01-01T00:00:00Z"} {
		records = append(records, published("devices/d/events/a.b", `{}`, batch.Header{Key: event.MetaEventTime, Value: at}))
	}
	through(t, f, r, records...)
	require.Len(t, kept.events, 4)
	require.Equal(t, map[string]int{"clock_ahead": 2, "clock_unset": 1}, odd)
	require.Equal(t, came, kept.events[0].Time)
	require.NotEqual(t, came, kept.events[1].Time)
}

// Clearing a retained message is no event; an empty body without the flag is a mistake.
func TestIngestionPassesOverWhatClearsARetainedMessage(t *testing.T) {
	t.Parallel()
	kept, letters, f := &log{}, &box{}, newFeed()
	odd := map[string]int{}
	r, err := routers.NewIngestion(routers.IngestionConfig{
		Stack: stack(), Subscriber: f, Store: kept, Letters: letters, Now: func() time.Time { return came }, Odd: func(kind string) { odd[kind]++ },
	})
	require.NoError(t, err)
	const topic = "devices/d/events/sensor.reading"
	flag := batch.Header{Key: event.MetaRetain, Value: "true"}
	through(t, f, r, published(topic, "", flag), published(topic, ""), published(topic, `{"value":1}`, flag), published(topic, "", flag))
	require.Equal(t, []string{`{"value":1}`}, payloads(kept.events))
	require.Len(t, letters.letters, 1)
	require.Contains(t, letters.letters[0].Error, "payload")
	require.Equal(t, map[string]int{"retained_cleared": 2}, odd)
}

func TestIngestionsDeadLetters(t *testing.T) {
	t.Parallel()
	given := uuid.New()
	for name, tc := range map[string]struct {
		topic, body string
		headers     []batch.Header
		busTopic    string
		eventID     uuid.UUID
	}{
		"not JSON":          {"devices/d/events/sensor.reading", "\x00{", nil, "sensor-events.dlq", uuid.Nil},
		"breaks its schema": {"devices/d/events/user.login", `{"user_id":1}`, nil, "user-actions.dlq", uuid.Nil},
		"known by its ID":   {"devices/d/events/sensor.reading", `[]`, []batch.Header{{Key: event.MetaEventID, Value: given.String()}}, "sensor-events.dlq", given},
		"a strange topic":   {"devices/d/what", `{}`, nil, "system-events.dlq", uuid.Nil},
		"a bad envelope":    {"events", `{"event_type":"x"}`, nil, "system-events.dlq", uuid.Nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kept, letters, good := &log{}, &box{}, readings(2)
			bad := published(tc.topic, tc.body, tc.headers...)
			require.Equal(t, 1, ingest(t, kept, letters, good[0], bad, good[1]))
			require.Equal(t, bodies(good), payloads(kept.events))
			require.Len(t, letters.letters, 1)
			l := letters.letters[0]
			require.Equal(t, routers.Ingestion, l.Consumer)
			require.Equal(t, tc.body, string(l.Payload))
			require.Equal(t, tc.topic, l.Topic)
			require.Equal(t, tc.busTopic, l.BusTopic)
			require.Equal(t, tc.eventID, l.EventID, "the ID of a message is not that of an event")
			require.Equal(t, bad.ID, l.CorrelationID)
			require.Equal(t, "k", l.Key)
			require.Equal(t, came, l.FailedAt)
			require.Zero(t, l.RetryCount)
			require.NotEmpty(t, l.Error)
			require.Nil(t, l.Partition, "the source has none")
			require.Nil(t, l.Offset)
			require.Len(t, l.Properties, len(tc.headers))
		})
	}
}

// What is too large for an event fills the database with its beginning only, and the letter says how large it was.
func TestIngestionKeepsTheBeginningOfWhatIsTooLarge(t *testing.T) {
	t.Parallel()
	for size, kept := range map[int]int{event.MaxBody: event.MaxBody, event.MaxBody + 1: 64 << 10, 4 << 20: 64 << 10} {
		letters := &box{}
		ingest(t, &log{}, letters, published("devices/d/events/sensor.reading", strings.Repeat("x", size)))
		require.Len(t, letters.letters, 1)
		l := letters.letters[0]
		require.Len(t, l.Payload, kept)
		require.Equal(t, kept < size, strings.Contains(l.Error, fmt.Sprintf("(%d bytes came, the first 65536 are kept)", size)), l.Error)
	}
}

// Of a batch only those messages become dead letters which can't be stored; all others are stored once, in order,
// whether the database says so, or a bug.
func TestIngestionIsolates(t *testing.T) {
	t.Parallel()
	const panics, refused = 700, 123
	records, letters := readings(1000), &box{}
	alone := 0
	kept := &log{fail: func(events []event.Envelope) error {
		for _, body := range payloads(events) {
			switch body {
			case string(records[panics].Value):
				if len(events) == 1 {
					alone++
				}
				explode()
			case string(records[refused].Value):
				return fault.Permanent(errors.New("the database can't hold it"))
			}
		}
		return nil
	}}
	require.Equal(t, 2, ingest(t, kept, letters, records...))
	require.Equal(t, 1+retryMax, alone)
	require.Len(t, letters.letters, 2)
	for i, want := range []struct {
		index, retries int
		reason         string
	}{{refused, 0, "the database can't hold it"}, {panics, retryMax, "routers_test.explode"}} {
		l := letters.letters[i]
		require.Equal(t, string(records[want.index].Value), string(l.Payload))
		require.Equal(t, want.retries, l.RetryCount)
		require.Contains(t, l.Error, want.reason, "with the stack of a panic")
	}
	records = slices.Delete(slices.Delete(records, panics, panics+1), refused, refused+1)
	require.Equal(t, bodies(records), payloads(kept.events), "each once, in order")
}

func explode() { panic("the roof is on fire") }

func TestIngestionRetriesAPanic(t *testing.T) {
	t.Parallel()
	records, letters, panics := readings(10), &box{}, 0
	kept := &log{fail: func(events []event.Envelope) error {
		if slices.Contains(payloads(events), `{"value":4,"unit":"c"}`) && len(events) == 1 && panics < retryMax || len(events) > 1 && panics == 0 {
			panics++
			explode()
		}
		return nil
	}}
	ingest(t, kept, letters, records...)
	require.Equal(t, bodies(records), payloads(kept.events))
	require.Empty(t, letters.letters)
}

// What is away, database or store of dead letters, costs neither a message nor a second copy.
func TestIngestionWaitsOutAnOutage(t *testing.T) {
	t.Parallel()
	const bad = 3
	records := readings(10)
	records[bad].Value = []byte(`not JSON`)
	letters, tries := &box{away: 2}, [][]event.Envelope{}
	kept := &log{fail: func(events []event.Envelope) error {
		if tries = append(tries, events); len(tries) <= 2 {
			return errors.New("database is away")
		}
		return nil
	}}
	ingest(t, kept, letters, records...)
	require.Len(t, tries, 3)
	require.Equal(t, tries[0], tries[2], "the same events with the same IDs, and all of them")
	require.Equal(t, bodies(slices.Delete(records, bad, bad+1)), payloads(kept.events))
	require.Len(t, letters.letters, 1, "it is known when it is refused again")
}

// The whole way into a database that refuses one event, and takes too long for more than some at once.
func TestIngestionIntoTheOutbox(t *testing.T) {
	t.Parallel()
	const n, refused = 24, 17
	pool := pgtest.Pool(t, "")
	db := stdlib.OpenDBFromPool(pool)
	defer func() { require.NoError(t, db.Close()) }()
	_, err := migrations.Up(t.Context(), db, "ingestion")
	require.NoError(t, err)
	_, err = pool.Exec(t.Context(), fmt.Sprintf(`
		CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF NEW.payload->>'value' = '%d' THEN RAISE EXCEPTION 'no' USING ERRCODE = '22023'; END IF;
			PERFORM pg_sleep(0.03);
			RETURN NEW; END $$;
		CREATE TRIGGER fault BEFORE INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION fault()`, refused))
	require.NoError(t, err)
	p := outbox.NewPublisher(pool, outbox.PublisherConfig{Timeout: 400 * time.Millisecond})
	defer func() { require.NoError(t, p.Close()) }()
	records, letters := readings(n), &box{}
	ingest(t, p, letters, records...)
	require.Len(t, letters.letters, 1)
	require.JSONEq(t, string(records[refused].Value), string(letters.letters[0].Payload))
	var stored string
	require.NoError(t, pool.QueryRow(t.Context(), `SELECT string_agg(payload::text, ' ' ORDER BY id) FROM outbox`).Scan(&stored))
	require.Equal(t, strings.Join(bodies(slices.Delete(records, refused, refused+1)), " "), stored)
}
