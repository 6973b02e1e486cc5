package routers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/handlers"
	"github.com/cornjacket/platform-services/pubsub/batch"
	"github.com/cornjacket/platform-services/store"
)

// Rebuild builds a projection anew from the event log, beside the active version and while events flow. It is the same
// consumer that reads the bus, on a source that is the log and into a table of its own. What it has done is durable after
// each page: it goes on after a crash. Two at once fence each other.
type Rebuild struct {
	Pool       *pgxpool.Pool // the database of the event handler
	Log        *store.Log
	Spread     Spread // all partitions of a topic if nil
	Projection handlers.Projection
	Alone      bool // no other projection is for events of the same family
	Logger     *slog.Logger
	// Progress, if set, is called with each page.
	Progress func(Progress)
}

// Progress is how far a rebuild is, in positions of the log.
type Progress struct {
	Position, End int64
	Events        int64 // of this run
}

var (
	// ErrNoVersion says that there is no version to work on.
	ErrNoVersion = errors.New("there is no such version")
	// ErrBehind says that the event handler has not handled yet what the new version holds.
	ErrBehind = errors.New("the event handler is behind")
)

// version returns the version in a state, the newest.
func (r *Rebuild) version(ctx context.Context, q store.Querier, state string) (*store.Version, error) {
	versions, err := store.Versions(ctx, q)
	if err != nil {
		return nil, err
	}
	for i := len(versions) - 1; i >= 0; i-- {
		if v := &versions[i]; v.Type == r.Projection.Type && v.State == state {
			return v, nil
		}
	}
	return nil, fmt.Errorf("%s, %s: %w", r.Projection.Type, state, ErrNoVersion)
}

// Build builds a new version, or goes on with the one that is being built, until it holds what is published.
func (r *Rebuild) Build(ctx context.Context) (*store.Version, error) {
	v, err := r.version(ctx, r.Pool, store.VersionBuilding)
	if errors.Is(err, ErrNoVersion) {
		err = pgx.BeginFunc(ctx, r.Pool, func(tx pgx.Tx) error {
			created, err := store.CreateVersion(ctx, tx, r.Projection.Type)
			v = &created
			return err
		})
	}
	if err != nil {
		return nil, err
	}
	return v, r.CatchUp(ctx, v)
}

// CatchUp applies to a version what is published and it does not hold yet.
func (r *Rebuild) CatchUp(ctx context.Context, v *store.Version) error {
	b, err := r.begin(ctx, v)
	if err != nil {
		return err
	}
	const near = 10_000 // positions; what comes after them is left to the switch
	for events := int64(0); ; {
		end, err := b.end(ctx, r.Pool)
		if err != nil {
			return err
		}
		from := b.read
		var failed error
		pause := pacer{pool: r.Pool}
		err = r.Log.Each(ctx, from, end, func(page []event.Envelope) bool {
			began := time.Now()
			records := b.records(page)
			if failed = b.drive(ctx, records); failed != nil {
				return false
			}
			b.read = page[len(page)-1].Metadata.Position
			events += int64(len(records))
			if r.Progress != nil {
				r.Progress(Progress{Position: b.read, End: end, Events: events})
			}
			return pause.after(ctx, time.Since(began))
		})
		if err = errors.Join(err, failed); err != nil {
			return err
		}
		if end-from < near {
			return ctx.Err()
		}
		b.read = end
	}
}

// build is one version that is being brought up to date.
type build struct {
	version   *store.Version
	engine    *engine[Application]
	counts    map[string]int
	positions *store.Positions
	parts     []store.Partition
	read      int64 // everything up to here was looked at
}

// begin takes a version, and fences any other rebuild of it.
func (r *Rebuild) begin(ctx context.Context, v *store.Version) (*build, error) {
	counts, _, err := store.Partitions(ctx, r.Pool, Eventhandler)
	if err != nil {
		return nil, err
	}
	if counts, err = r.Spread.over(ctx, counts); err != nil {
		return nil, err
	}
	topic := r.Projection.Topic()
	if counts[topic] == 0 {
		return nil, fmt.Errorf("the event handler has never read %s: start it first", topic)
	}
	b := &build{version: v, counts: counts, positions: store.NewPositions(r.Pool, v.Consumer())}
	for i := range counts[topic] {
		b.parts = append(b.parts, store.Partition{Topic: topic, Partition: int32(i)}) //nolint:gosec // some partitions
	}
	places, err := b.positions.Claim(ctx, nil, b.parts)
	if err != nil {
		return nil, err
	}
	for i, p := range places {
		switch {
		case v.State == store.VersionBuilding: // built in the order of the log: the newest says up to where all were looked at
			b.read = max(b.read, p.Position)
		case i == 0 || p.Position < b.read: // written by the event handler, whose partitions go on by themselves
			b.read = p.Position
		}
	}
	b.engine = &engine[Application]{Consumer: ProjectorOf(v, r.Projection), cfg: ConsumerConfig{
		Pool: r.Pool, Positions: b.positions,
	}, keep: func(ctx context.Context, tx pgx.Tx, letters ...deadletter.Entry) error {
		for _, l := range letters {
			if err := store.AddRefusal(ctx, tx, v, l.EventID, l.Position, l.Error); err != nil {
				return err
			}
		}
		return nil
	}}
	b.engine.letters = &letters{consumer: v.Consumer(), complete: completeBus, now: time.Now, log: r.Logger}
	return b, nil
}

// end returns up to where the log is to be applied: as far as the event handler is in the partition in which it is
// furthest. A version that was ahead of it could not take its place.
func (b *build) end(ctx context.Context, pool *pgxpool.Pool) (end int64, err error) {
	_, live, err := store.Partitions(ctx, pool, Eventhandler)
	for _, part := range b.parts {
		end = max(end, live[part])
	}
	return end, err
}

// records returns the events of a page that are of the topic of the version.
func (b *build) records(page []event.Envelope) []batch.Record {
	records := make([]batch.Record, 0, len(page))
	for i := range page {
		if topic := event.Topic(page[i].Type); topic == b.parts[0].Topic {
			records = append(records, record(&page[i], b.counts))
		}
	}
	return records
}

// drive hands records to the engine, as a router does.
func (b *build) drive(ctx context.Context, records []batch.Record) error {
	if len(records) == 0 {
		return nil
	}
	m := batch.New(ctx, records)
	once := func(h message.HandlerFunc) message.HandlerFunc { return h }
	handle := isolate(0, hopeless, once)(middleware.Recoverer(func(m *message.Message) ([]*message.Message, error) {
		return nil, b.engine.handle(m.Context(), batch.From(m))
	}))
	for rest := batch.From(m); len(rest.Rest()) > 0; {
		_, err := handle(m)
		switch {
		case err == nil:
		case hopeless(err):
			if err := b.engine.refuse(ctx, &rest.Rest()[0], rest.Attempts, err.Error()); err != nil {
				return err
			}
			rest.Done(1)
		default:
			return err
		}
	}
	return nil
}

// pacer leaves the database to the flow: while events are being applied by the event handler, a rebuild works a fifth of
// the time at most.
type pacer struct {
	pool   *pgxpool.Pool
	events int64
	at     time.Time
}

const busyRate = 500 // events a second of the flow, from which a rebuild makes way

func (p *pacer) after(ctx context.Context, took time.Duration) bool {
	var events int64
	err := p.pool.QueryRow(ctx, `SELECT coalesce(sum(events), 0)::bigint FROM consumer_positions WHERE consumer = $1`, Eventhandler).Scan(&events)
	if err != nil {
		return ctx.Err() == nil // the next page says so, if it lasts
	}
	now := time.Now()
	busy := !p.at.IsZero() && float64(events-p.events) > busyRate*now.Sub(p.at).Seconds()
	p.events, p.at = events, now
	if busy {
		return batch.Sleep(ctx, 4*took)
	}
	return ctx.Err() == nil
}
