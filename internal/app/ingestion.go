package app

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cornjacket/platform-services/api"
	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/internal/health"
	"github.com/cornjacket/platform-services/pubsub/outbox"
	"github.com/cornjacket/platform-services/routers"
)

// ingestionPool returns the connections that ingestion and the relay share.
func (p *platform) ingestionPool() (*pgxpool.Pool, error) {
	return p.pool(p.cfg.DatabaseOf(routers.Ingestion), "ingestion", 4, 0)
}

// outboxWriter is the component through which ingestion stores events. It starts before the relay, which takes no
// notice of what the database tells it about a writer of its own process.
type outboxWriter struct {
	platform *platform
	in       *outbox.Publisher // nil without ingestion
	flushes  *flushLog
}

// Start opens the outbox.
func (w *outboxWriter) Start(context.Context) error {
	p := w.platform
	if !p.runs(routers.Ingestion) {
		return nil
	}
	pool, err := p.ingestionPool()
	if err != nil {
		return err
	}
	w.flushes = &flushLog{what: "outbox", log: p.log, now: p.now}
	w.in = outbox.NewPublisher(pool, outbox.PublisherConfig{
		MaxBatch: p.cfg.BatchSize, MaxQueue: p.cfg.IngestQueue, Wait: p.cfg.IngestTimeout, MaxOutbox: p.cfg.OutboxMax,
		OnFlush: w.flushes.note, OnCommit: p.wake.events, Quiet: p.wake.leads,
	})
	return nil
}

// Stop stores what is left in the queue; no caller waits for it any longer.
func (w *outboxWriter) Stop(ctx context.Context) error {
	if w.in == nil {
		return nil
	}
	return w.in.Shutdown(ctx)
}

// check fails while events are refused because too many wait.
func (w *outboxWriter) check() health.Check {
	return health.Check{Name: "queue", Every: time.Second, Probe: func(ctx context.Context) (health.Details, error) {
		queued := w.in.Queued()
		d := health.Details{"events": queued}
		if rows, full := w.in.Crowd(ctx); full {
			d["outbox_events"] = rows
			return d, errors.New("the outbox is full: no relay takes from it; requests are answered 429, and MQTT messages are not acknowledged")
		}
		if queued >= w.platform.cfg.IngestQueue {
			return d, errors.New("full, requests are answered 429")
		}
		return d, nil
	}}
}

// waker carries wake-ups between ingestion and a relay in the same process; without a relay they go nowhere. It is
// complete before ingestion starts.
type waker struct {
	relay  *outbox.Subscriber
	letter *deadletter.Publisher
}

func (w *waker) events() {
	if w.relay != nil {
		w.relay.Wake()
	}
}

// leads reports whether the relay in this process is the active one.
func (w *waker) leads() bool { return w.relay != nil && w.relay.State().Leading }

func (w *waker) letters() {
	if w.letter != nil {
		w.letter.Wake()
	}
}

// buildIngestion starts what takes events in, over MQTT and HTTP.
func buildIngestion(ctx context.Context, s *service) error {
	pool, err := s.ingestionPool()
	if err != nil {
		return err
	}
	source, err := s.mqttSource()
	if err != nil {
		return err
	}
	in := s.outbox.in
	quota, quotaCheck := s.letterQuota(pool)
	watched := &watchedLetters{DeadLetterStore: quota, now: s.now}
	odd := newOddities(s.registry)
	source.check = odd.tell(source.check)
	router, err := routers.NewIngestion(routers.IngestionConfig{
		Stack: s.stack(), Subscriber: source, Store: in, Letters: watched, Added: s.wake.letters,
		Now: s.now, Clock: s.clock(), Odd: odd.add,
	})
	if err != nil {
		return err
	}
	desk, err := s.ingestionDesk()
	if err != nil {
		return err
	}
	mount := func(mux *http.ServeMux) {
		a := api.MountIngestion(mux, api.IngestionConfig{
			Ingester: in, Now: s.now, NewID: newID, Log: s.log, Version: Version, Clock: s.clock(),
		})
		api.MountDeadLetters(a, desk.config())
	}
	return s.parts.start(ctx, routers.Ingestion, desk.replays, s.routing(router, nil), apiOn{s.port(routers.Ingestion), mount},
		s.checks(routers.Ingestion, desk.check, postgresCheck(pool), source.check, routerCheck(router, source.oldest, s.cfg.HandlerTimeout, s.now),
			s.outbox.flushes.check(func() bool { return in.Queued() > 0 }), watched.check(), quotaCheck, s.outbox.check()))
}
