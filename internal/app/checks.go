package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/cornjacket/platform-services/api"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/health"
	"github.com/cornjacket/platform-services/pubsub/outbox"
	"github.com/cornjacket/platform-services/pubsub/window"
	"github.com/cornjacket/platform-services/routers"
	"github.com/cornjacket/platform-services/store"

	"github.com/google/uuid"
)

// busCheck is a round trip to the brokers.
func busCheck(ping func(context.Context) error) health.Check {
	return health.Check{Name: "bus", Probe: func(ctx context.Context) (health.Details, error) {
		if err := ping(ctx); err != nil {
			return nil, plain(ctx, "bus", err)
		}
		return nil, nil
	}}
}

// routerCheck fails when a router does not run, or has had a message in flight for longer than a handler may take.
func routerCheck(r *routers.Router, oldest func() time.Time, deadline time.Duration, now func() time.Time) health.Check {
	return health.Check{Name: "router", Every: time.Second, Probe: func(context.Context) (health.Details, error) {
		if !r.Running() {
			return nil, errors.New("is not running")
		}
		t := oldest()
		if t.IsZero() {
			return nil, nil
		}
		age := now().Sub(t)
		d := health.Details{"oldest_in_flight_seconds": age.Round(time.Millisecond).Seconds()}
		if age > deadline {
			return d, fmt.Errorf("is stuck: a message is in flight for %s", age.Round(time.Second))
		}
		return d, nil
	}}
}

// relayCheck reads the relay's own round trips: it makes one a second, so that it needs no ping beside.
func relayCheck(sub *outbox.Subscriber, now func() time.Time) health.Check {
	const silent = 3 * time.Second
	return health.Check{Name: "postgres", Every: time.Second, Probe: func(context.Context) (health.Details, error) {
		s := sub.State()
		d := health.Details{"leading": s.Leading}
		if s.Leading {
			d["position"], d["published"] = s.Sequenced, sub.Published()
		}
		switch {
		case s.Err != nil:
			return d, fmt.Errorf("postgres: %w", rootCause(s.Err))
		case s.LastRound.IsZero():
			return d, errors.New("not connected yet")
		case now().Sub(s.LastRound) > silent && sub.Oldest().IsZero(): // while the window is full it makes none
			return d, fmt.Errorf("postgres does not answer for %s", now().Sub(s.LastRound).Round(100*time.Millisecond))
		}
		return d, nil
	}}
}

// flushLog logs when batches begin to fail and when they succeed again, not each attempt.
type flushLog struct {
	what    string
	log     *slog.Logger
	failing atomic.Bool
}

func (f *flushLog) note(items int, err error) {
	switch {
	case err == nil:
		if f.failing.Swap(false) {
			f.log.Info("writing works again", "to", f.what)
		}
	case !event.IsPermanent(err) && !f.failing.Swap(true):
		f.log.Error("writing fails, trying again until it succeeds", "to", f.what, "events", items, "error", err)
	}
}

// apiIngester stores what comes over HTTP.
type apiIngester struct{ publisher *outbox.Publisher }

func (a apiIngester) Ingest(ctx context.Context, events []event.Envelope) error {
	err := a.publisher.Ingest(ctx, events)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, window.ErrFull):
		return api.ErrOverloaded
	case event.IsPermanent(err):
		return &event.Error{Kind: event.Invalid, Field: "payload", Rule: "cannot be stored by the database"}
	case errors.Is(err, window.ErrClosed), ctx.Err() != nil:
		return api.ErrUnavailable
	}
	return err
}

// apiReader reads for the query API.
type apiReader struct{ *store.Reader }

func translate(err error) error {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return api.ErrNotFound
	case errors.Is(err, store.ErrUnavailable):
		return fmt.Errorf("%w: %w", api.ErrUnavailable, err)
	}
	return err
}

func (r apiReader) Projection(ctx context.Context, projectionType, aggregateID string) (event.Projection, error) {
	v, err := r.Reader.Projection(ctx, projectionType, aggregateID)
	return v, translate(err)
}

func (r apiReader) Projections(ctx context.Context, projectionType, after string, limit int) ([]event.Projection, error) {
	v, err := r.Reader.Projections(ctx, projectionType, after, limit)
	return v, translate(err)
}

func (r apiReader) Event(ctx context.Context, id uuid.UUID) (event.Envelope, error) {
	v, err := r.Reader.Event(ctx, id)
	return v, translate(err)
}

func (r apiReader) Events(ctx context.Context, f event.Filter) ([]event.Envelope, error) {
	v, err := r.Reader.Events(ctx, f)
	return v, translate(err)
}
