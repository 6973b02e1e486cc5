package event_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/pgtest"
)

// store puts events into columns as those of event_store, and reads every number of theirs as a double.
const store = `
	WITH e AS (
		SELECT id::uuid, type, aggregate, at::timestamptz, payload::jsonb, metadata::jsonb
		FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::text[], $6::text[]) AS u (id, type, aggregate, at, payload, metadata)
	), numbers AS (
		SELECT n #>> '{}' AS n FROM e, jsonb_path_query(payload, 'strict $.** ? (@.type() == "number")') AS n
	)
	SELECT (SELECT count(*) FROM e WHERE octet_length(type || aggregate || at || payload::text || metadata::text) > 0),
		(SELECT count(n::float8) FROM numbers)`

func storeAll(ctx context.Context, conn *pgx.Conn, events []event.Envelope) error {
	var ids, types, aggregates, payloads, metadata []string
	var times []time.Time
	for _, e := range events {
		ids, types, aggregates = append(ids, e.ID.String()), append(types, e.Type), append(aggregates, e.AggregateID)
		times, payloads = append(times, e.Time), append(payloads, string(e.Payload))
		whole, err := e.Marshal()
		if err != nil {
			return err
		}
		metadata = append(metadata, string(whole))
	}
	var n, numbers int
	if err := conn.QueryRow(ctx, store, ids, types, aggregates, times, payloads, metadata).Scan(&n, &numbers); err != nil {
		return err
	}
	if n != len(events) {
		return fmt.Errorf("%d events stored of %d", n, len(events))
	}
	return nil
}

// requireStorable names the one event that PostgreSQL refuses.
func requireStorable(t *testing.T, conn *pgx.Conn, events []event.Envelope) {
	t.Helper()
	err := storeAll(t.Context(), conn, events)
	if err == nil {
		return
	}
	if len(events) == 1 {
		t.Errorf("accepted and not storable: %v: %q %q %.500s", err, events[0].Type, events[0].AggregateID, events[0].Payload)
		return
	}
	requireStorable(t, conn, events[:len(events)/2])
	requireStorable(t, conn, events[len(events)/2:])
}

// Whatever the door accepts, the database can hold.
func TestWhatIsAcceptedCanBeStored(t *testing.T) {
	t.Parallel()
	conn, err := pgx.Connect(t.Context(), pgtest.URL(t))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close(context.Background())) })

	t.Run("the check can fail", func(t *testing.T) {
		good, err := event.Parse(body("a.b", "x", `{}`), origin())
		require.NoError(t, err)
		require.NoError(t, storeAll(t.Context(), conn, []event.Envelope{good}))
		for _, payload := range []string{`{"a":"\u0000"}`, `{"a":"\ud800"}`, `{"a":1e400}`, `{"a":1e-400}`, `{}{}`, strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000)} {
			bad := good
			bad.Payload = []byte(payload)
			require.Error(t, storeAll(t.Context(), conn, []event.Envelope{good, bad}), "%.60s", payload)
		}
		bad := good
		bad.AggregateID = "a\x00"
		require.Error(t, storeAll(t.Context(), conn, []event.Envelope{bad}))
	})

	t.Run("seeds", func(t *testing.T) {
		var events []event.Envelope
		for _, s := range seedEnvelopes() {
			if e, err := event.Parse([]byte(s), origin()); err == nil {
				events = append(events, e)
			}
		}
		for _, p := range seedPayloads {
			if e, err := event.ParseMQTT("devices/x/events/a.b", []byte(p), event.Properties{}, origin()); err == nil {
				events = append(events, e)
			}
		}
		for _, payload := range []string{
			strings.Repeat(`{"a":`, event.MaxDepth) + "1" + strings.Repeat("}", event.MaxDepth),
			`{"a":` + strings.Repeat("9", 308) + `,"b":0.` + strings.Repeat("9", 398) + `,"c":0e400,"d":-0e-400,"e":5e-324}`,
			`{"` + strings.Repeat("x", event.MaxPayload-7) + `":1}`,
			`{"a":[` + strings.Repeat("0,", 100_000) + `0]}`,
		} {
			e, err := event.Parse(body("a.b", "x", payload), origin())
			require.NoError(t, err)
			events = append(events, e)
		}
		require.Greater(t, len(events), 10)
		requireStorable(t, conn, events)
	})

	t.Run("generated", func(t *testing.T) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		g := generator{rand.New(rand.NewPCG(seed, 0))}
		accepted, refused := 0, 0
		for range 20 {
			var events []event.Envelope
			for range 500 {
				e, err := event.ParseMQTT("devices/"+g.text(g.IntN(4))+"/events/a.b", []byte(g.object(3)),
					event.Properties{EventTime: g.pick("", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "1500-06-01T00:00:00+05:30"),
						CorrelationID: g.pick("", g.text(g.IntN(2)))}, origin())
				if err != nil {
					refused++
					continue
				}
				events = append(events, e)
			}
			accepted += len(events)
			requireStorable(t, conn, events)
		}
		require.Greater(t, accepted, 500)
		require.Greater(t, refused, 500)
	})
}

// generator writes JSON, and what is nearly JSON.
type generator struct{ *rand.Rand }

func (g generator) pick(options ...string) string { return options[g.IntN(len(options))] }

func (g generator) object(depth int) string {
	var members []string
	for range g.IntN(4) {
		members = append(members, `"`+g.escaped()+`":`+g.value(depth-1))
	}
	return "{" + strings.Join(members, g.pick(",", " ,\n")) + "}"
}

func (g generator) value(depth int) string {
	if depth > 0 && g.IntN(3) == 0 {
		if g.IntN(2) == 0 {
			return g.object(depth)
		}
		return "[" + g.value(depth-1) + "," + g.value(depth-1) + "]"
	}
	switch g.IntN(8) {
	case 0, 1, 2:
		return `"` + g.escaped() + `"`
	case 3, 4, 5:
		return g.number()
	default:
		return g.pick("null", "true", "false", "[]", "{}", `""`, "-0")
	}
}

func (g generator) number() string {
	s := g.pick("", "-") + strconv.Itoa(g.IntN(1000))
	if g.IntN(2) == 0 {
		s += "." + strings.Repeat(g.pick("0", "9", "7"), g.IntN(200)) + strconv.Itoa(g.IntN(100))
	}
	if g.IntN(3) == 0 {
		s += g.pick("e", "E", "e+", "e-") + strconv.Itoa(g.IntN(450))
	}
	return s
}

func (g generator) escaped() string {
	var b strings.Builder
	for range g.IntN(4) {
		switch g.IntN(12) {
		case 0:
			fmt.Fprintf(&b, `\u%04x`, g.IntN(1<<16))
		case 1:
			fmt.Fprintf(&b, `\uD%03X\ud%03x`, 0x800+g.IntN(0x400), 0xc00+g.IntN(0x400))
		case 2:
			b.WriteString(g.pick(`\n`, `\"`, `\\`, `\/`, `\b`, `\\u0000`))
		case 3:
			if g.IntN(10) == 0 {
				b.WriteString(g.pick(`\u0000`, "\x00", "\xff", `\ud800`, `\uDFFF\uD800`, "\xed\xa0\x80"))
			}
		default:
			b.WriteString(strings.NewReplacer(`"`, "", `\`, "").Replace(g.text(1)))
		}
	}
	return b.String()
}

// text returns n characters of any kind, most of them harmless.
func (g generator) text(n int) string {
	var b strings.Builder
	for range n {
		switch r := rune(g.IntN(utf8.MaxRune + 1)); g.IntN(6) {
		case 0:
			b.WriteRune(r)
		case 1:
			b.WriteRune(r % 0x3000)
		default:
			b.WriteRune(' ' + r%95)
		}
	}
	return b.String()
}
