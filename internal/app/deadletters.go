package app

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/cornjacket/platform-services/api"
	"github.com/cornjacket/platform-services/deadletter"
	"github.com/cornjacket/platform-services/event"
	"github.com/cornjacket/platform-services/internal/health"
	"github.com/cornjacket/platform-services/pubsub/kafka"
	"github.com/cornjacket/platform-services/pubsub/outbox"
	"github.com/cornjacket/platform-services/routers"
	"github.com/cornjacket/platform-services/store"
)

// desk is what a service needs for its dead letters.
type desk struct {
	service string
	letters *deadletter.Store
	replays *loop // the bulk ones
	check   health.Check
}

// deadLetters builds the desk of a service.
func (p *platform) deadLetters(service string, consumers map[string]deadletter.Apply) (*desk, error) {
	// Connections of its own, so that a bulk replay takes none from the flow. An instance that is frozen or cut off in the
	// middle of a replay loses its session, and with it what it holds.
	pool, err := p.poolWith(p.cfg.DatabaseOf(service), store.PoolConfig{
		Name: "deadletters", MaxConns: 4, StatementTimeout: 10 * time.Second, Settings: map[string]string{"idle_in_transaction_session_timeout": "10s"},
	})
	if err != nil {
		return nil, err
	}
	letters, log := deadletter.NewStore(pool, service, consumers), p.log.With("service", service)
	return &desk{
		service: service, letters: letters, check: p.pendingCheck(letters),
		replays: &loop{run: func(ctx context.Context) { letters.RunReplays(ctx, log) }},
	}, nil
}

func (d *desk) config() api.DeadLettersConfig {
	return api.DeadLettersConfig{Consumers: routers.DeadLetterConsumers(d.service), Reader: d.letters, Mender: d.letters, Replays: d.letters}
}

// ingestionDesk is the desk for what ingestion and the relay could not handle.
func (p *platform) ingestionDesk() (*desk, error) {
	into := func(read func(*deadletter.Letter) (event.Envelope, error), position func(*deadletter.Letter) int64) deadletter.Apply {
		return func(ctx context.Context, tx pgx.Tx, l *deadletter.Letter) (uuid.UUID, string, error) {
			e, err := read(l)
			if err != nil {
				return uuid.Nil, "", err
			}
			return e.ID, "", outbox.Requeue(ctx, tx, &e, position(l))
		}
	}
	return p.deadLetters(routers.Ingestion, map[string]deadletter.Apply{
		routers.Ingestion: into(routers.ReplayIngestion(p.clock()), func(*deadletter.Letter) int64 { return 0 }),
		routers.Relay:     into(routers.ReplayRelay, func(l *deadletter.Letter) int64 { return l.Position }),
	})
}

// letterPublishing publishes the dead letters of some consumers. It has a client of its own: a dead letter that the bus
// does not take holds up no event.
type letterPublishing struct {
	loop
	bus     *kafka.Publisher
	letters *deadletter.Publisher
}

func (p *platform) letterPublisher(pool *pgxpool.Pool, consumers ...string) (*letterPublishing, error) {
	bus, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: p.cfg.RedpandaBrokers, Security: p.bus, Topics: p.topicConfig(), Log: p.log})
	if err != nil {
		return nil, fmt.Errorf("REDPANDA_BROKERS: %w", err)
	}
	l := &letterPublishing{bus: bus, letters: deadletter.NewPublisher(deadletter.PublisherConfig{DB: pool, Consumers: consumers, Bus: bus, Log: p.log})}
	topics := p.topics.created()
	l.run = func(ctx context.Context) {
		select {
		case <-topics:
			l.letters.Run(ctx)
		case <-ctx.Done():
		}
	}
	return l, nil
}

// Stop ends the work and closes the connection to the bus. What is still on its way is not waited for: it is in the table,
// and is published again.
func (l *letterPublishing) Stop(ctx context.Context) error {
	l.end()
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_ = l.bus.Shutdown(ended)
	return l.loop.Stop(ctx)
}

// pendingCheck counts the pending dead letters in the background, for /health and /metrics. It never fails: dead letters
// are for people to look at, and do not make a service unready.
func (p *platform) pendingCheck(letters *deadletter.Store) health.Check {
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

// letterQuota bounds what refused MQTT messages fill. The check that belongs to it measures in the background, and never
// fails: a device that sends nonsense does not make ingestion unready.
func (p *platform) letterQuota(pool *pgxpool.Pool) (*deadletter.Quota, health.Check) {
	dropped := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "cornjacket_dead_letters_not_kept_total",
		Help: "Refused MQTT messages that were not kept as dead letters, because those fill DLQ_MAX_BYTES and their source has its share of it.",
	})
	stored := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "cornjacket_dead_letters_bytes", Help: "What the dead letters of ingestion fill. Each instance tells the number of all.",
	})
	p.registry.MustRegister(dropped, stored)
	quota := deadletter.NewQuota(deadletter.QuotaConfig{
		DB: pool, Consumer: routers.Ingestion, MaxBytes: p.cfg.DLQMaxBytes, Dropped: func(n int) { dropped.Add(float64(n)) }, Log: p.log, Now: p.now,
	})
	var next time.Time
	return quota, health.Check{Name: "dead_letters_quota", Every: time.Second, Timeout: 10 * time.Second, Probe: func(ctx context.Context) (health.Details, error) {
		if started := time.Now(); started.After(next) {
			_ = quota.Measure(ctx) // else the check of the database tells
			next = started.Add(max(5*time.Second, 50*time.Since(started)))
		}
		u := quota.Usage()
		stored.Set(float64(u.Bytes))
		d := health.Details{"bytes": u.Bytes, "max_bytes": p.cfg.DLQMaxBytes, "not_kept": u.Dropped}
		if !u.Oldest.IsZero() {
			d["oldest_pending"] = u.Oldest.UTC().Format(time.RFC3339)
		}
		return d, nil
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
