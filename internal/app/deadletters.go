package app

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/cornjacket/platform-services/api"
	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/handlers"
	"github.com/cornjacket/platform-services/internal/fault"
	"github.com/cornjacket/platform-services/internal/health"
	"github.com/cornjacket/platform-services/pubsub/outbox"
	"github.com/cornjacket/platform-services/routers"
	"github.com/cornjacket/platform-services/store"
)

// lettersPool has connections of its own, so that a bulk replay takes none from the flow.
func (p *platform) lettersPool(url string) (*pgxpool.Pool, error) {
	return p.pool(url, "deadletters", 4, 10*time.Second)
}

// desk is what a service needs for its dead letters.
type desk struct {
	service string
	letters deskLetters // for the API
	replays *loop       // the bulk ones
	check   health.Check
}

// deadLetters builds the desk of a service.
func (p *platform) deadLetters(service, url string, consumers map[string]store.Apply) (*desk, error) {
	pool, err := p.lettersPool(url)
	if err != nil {
		return nil, err
	}
	letters := store.NewLetters(pool, service, consumers)
	replayer := (&routers.Replayer{Queue: replayQueue{letters}, Log: p.log.With("service", service)}).Init()
	return &desk{
		service: service, letters: deskLetters{Letters: letters, started: replayer.Wake}, check: p.pendingCheck(letters),
		replays: &loop{run: replayer.Run},
	}, nil
}

func (d *desk) config() api.DeadLettersConfig {
	return api.DeadLettersConfig{Consumers: routers.DeadLetterConsumers(d.service), Reader: d.letters, Mender: d.letters, Replays: d.letters}
}

// ingestionDesk is the desk for what ingestion and the relay could not handle.
func (p *platform) ingestionDesk() (*desk, error) {
	into := func(read func(*deadletter.Letter) (event.Envelope, error), position func(*deadletter.Letter) int64) store.Apply {
		return func(ctx context.Context, tx pgx.Tx, l *deadletter.Letter) (uuid.UUID, string, error) {
			e, err := read(l)
			if err != nil {
				return uuid.Nil, "", err
			}
			return e.ID, "", outbox.Requeue(ctx, tx, &e, position(l))
		}
	}
	return p.deadLetters(routers.Ingestion, p.cfg.DatabaseOf(routers.Ingestion), map[string]store.Apply{
		routers.Ingestion: into(routers.ReplayIngestion, func(*deadletter.Letter) int64 { return 0 }),
		routers.Relay:     into(routers.ReplayRelay, func(l *deadletter.Letter) int64 { return l.Position }),
	})
}

// eventhandlerDesk is the desk for what the event handler could not apply.
func (p *platform) eventhandlerDesk(projections []handlers.Projection) (*desk, error) {
	return p.deadLetters(routers.Eventhandler, p.cfg.DatabaseOf(routers.Eventhandler), map[string]store.Apply{
		routers.Eventhandler: applyToProjections(projections),
	})
}

// applyToProjections applies an event to its projections unless another letter of the same event has done that.
func applyToProjections(projections []handlers.Projection) store.Apply {
	return func(ctx context.Context, tx pgx.Tx, l *deadletter.Letter) (uuid.UUID, string, error) {
		again, err := routers.ReplayEventhandler(l, projections)
		if err != nil {
			return uuid.Nil, "", err
		}
		id := again.Event.ID
		other, err := store.ReplayedBefore(ctx, tx, routers.Eventhandler, id, l.ID)
		if err != nil {
			return uuid.Nil, "", err
		}
		if other != uuid.Nil {
			return id, fmt.Sprintf("the event was applied by the replay of dead letter %s", other), nil
		}
		return id, "", store.UpdateProjections(ctx, tx, again.Keys, again.Fold)
	}
}

// postman returns the publisher of the dead letters of some consumers, and the component that runs it.
func (p *platform) postman(letters *store.DeadLetters, consumers ...string) (*routers.Postman, component) {
	pub := &lazyPublisher{brokers: p.cfg.RedpandaBrokers, security: p.bus, log: p.log}
	man := (&routers.Postman{Mailbox: letters, Consumers: consumers, Publisher: pub, Now: p.now, Log: p.log}).Init()
	topics := p.topics.created()
	return man, &letterPublishing{pub: pub, loop: loop{run: func(ctx context.Context) {
		select {
		case <-topics:
			man.Run(ctx)
		case <-ctx.Done():
		}
	}}}
}

// letterPublishing is the component that publishes dead letters.
type letterPublishing struct {
	loop
	pub *lazyPublisher
}

// Stop ends the work and closes the connection to the bus.
func (l *letterPublishing) Stop(ctx context.Context) error {
	return errors.Join(l.loop.Stop(ctx), l.pub.Close())
}

// deskLetters are the dead letters of a service for the API.
type deskLetters struct {
	*store.Letters
	started func() // told of each new bulk replay
}

func (d deskLetters) StartReplay(ctx context.Context, f deadletter.Filter, rate float64) (deadletter.Replay, error) {
	v, err := d.Letters.StartReplay(ctx, newID(), f, rate)
	if err == nil {
		d.started()
	}
	return v, err
}

// replayQueue holds the bulk replays of a service for who runs them.
type replayQueue struct{ letters *store.Letters }

func (q replayQueue) ClaimReplay(ctx context.Context, runner uuid.UUID) (deadletter.Replay, bool, error) {
	r, err := q.letters.ClaimReplay(ctx, runner)
	if errors.Is(err, fault.ErrNotFound) {
		return r, false, nil
	}
	return r, err == nil, err
}

func (q replayQueue) RunReplay(ctx context.Context, id, runner uuid.UUID) (bool, error) {
	done, err := q.letters.RunReplay(ctx, id, runner)
	return done, lost(err)
}

func (q replayQueue) HoldReplay(ctx context.Context, id, runner uuid.UUID, keep bool) error {
	return lost(q.letters.HoldReplay(ctx, id, runner, keep))
}

func lost(err error) error {
	if errors.Is(err, store.ErrLost) {
		return fmt.Errorf("%w: %w", routers.ErrReplayLost, err)
	}
	return err
}

// pendingCheck counts the pending dead letters in the background, for /health and /metrics. It never fails: dead letters
// are for people to look at, and do not make a service unready.
func (p *platform) pendingCheck(letters *store.Letters) health.Check {
	gauge := p.pendingLetters()
	var known map[string]int64
	var next time.Time
	return health.Check{Name: "dead_letters", Every: 5 * time.Second, Timeout: 10 * time.Second, Probe: func(ctx context.Context) (health.Details, error) {
		if started := time.Now(); started.After(next) {
			if pending, err := letters.Pending(ctx); err == nil { // else the check of the database tells
				known = pending
				for consumer, n := range pending {
					gauge.WithLabelValues(consumer).Set(float64(n))
				}
			}
			next = started.Add(50 * time.Since(started)) // where there are millions, counting stays a small part of the load
		}
		if known == nil {
			return nil, nil
		}
		return health.Details{"dead_letters_pending": known}, nil
	}}
}

// pendingLetters is one gauge for all services of the process.
func (p *platform) pendingLetters() *prometheus.GaugeVec {
	if p.pending == nil {
		p.pending = prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "cornjacket_dead_letters_pending",
			Help: "Dead letters that wait to be replayed or discarded. Each instance of a service tells the number of all.",
		}, []string{"consumer"})
		p.registry.MustRegister(p.pending)
	}
	return p.pending
}
