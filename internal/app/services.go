package app

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cornjacket/platform-services/api"
	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/internal/health"
	"github.com/cornjacket/platform-services/pubsub/kafka"
	"github.com/cornjacket/platform-services/pubsub/mqtt"
	"github.com/cornjacket/platform-services/pubsub/outbox"
	"github.com/cornjacket/platform-services/routers"
	"github.com/cornjacket/platform-services/store"
)

func newID() uuid.UUID { return uuid.Must(uuid.NewV7()) } // fails only if the system has no randomness

// topics creates the topics in the background, once a process; the channel is closed when they exist.
func (p *platform) topics() <-chan struct{} {
	if p.topicsExist == nil {
		p.topicsExist = make(chan struct{})
		p.background.Go(func() {
			err := kafka.AwaitTopics(p.ctx, p.cfg.RedpandaBrokers, p.log, kafka.TopicConfig{
				Partitions: int(p.cfg.TopicPartitions), Replication: int(p.cfg.TopicReplication), Retention: p.cfg.TopicRetention,
				Security: p.clients.bus,
			}, routers.Topics()...)
			switch {
			case err == nil:
				close(p.topicsExist)
			case p.ctx.Err() == nil:
				p.fail(fmt.Errorf("REDPANDA_BROKERS: %w", err))
			}
		})
	}
	return p.topicsExist
}

// postman publishes the dead letters of some consumers.
func (p *platform) postman(letters *store.DeadLetters, consumers ...string) *routers.Postman {
	pub := &lazyPublisher{brokers: p.cfg.RedpandaBrokers, security: p.clients.bus, log: p.log}
	man := (&routers.Postman{Mailbox: letters, Consumers: consumers, Publisher: pub, Now: p.now, Log: p.log}).Init()
	ctx, cancel := context.WithCancel(p.ctx)
	done := make(chan struct{})
	topics := p.topics()
	p.background.Go(func() {
		defer close(done)
		select {
		case <-topics:
			man.Run(ctx)
		case <-ctx.Done():
		}
	})
	p.onStop(stageClients, "dead letter publisher", func(context.Context) error {
		cancel()
		<-done
		return pub.Close()
	})
	return man
}

func (p *platform) startQuery(ctx context.Context) error {
	if !p.runs(config.Query) {
		return nil
	}
	projections, err := p.owner(ctx, "projections", p.cfg.EventhandlerDatabaseURL)
	if err != nil {
		return err
	}
	events, err := p.owner(ctx, "event_store", p.cfg.IngestionDatabaseURL)
	if err != nil {
		return err
	}
	port := p.port(config.Query)
	reader := store.NewReader(projections, events)
	p.serve(port, func(mux *http.ServeMux) {
		a := api.MountQuery(mux, api.QueryConfig{Reader: reader, Log: p.log, Version: Version})
		api.MountLedger(a, api.LedgerConfig{Accounts: p.accounts(events, projections), Log: p.log})
	})
	checks := []health.Check{postgresCheck(projections)}
	if events != projections {
		log := postgresCheck(events)
		log.Name = "postgres_events"
		checks = append(checks, log)
	}
	p.watch(port, checks...)
	p.onStop(stageFlow, "query API", port.stopTaking)
	return nil
}

// owner returns a pool on the database that has a table: QUERY_DATABASE_URL, which may be a replica, or else that of
// the service that owns the table. It waits for the table, which another process may be about to create.
func (p *platform) owner(ctx context.Context, table, ownerURL string) (*pgxpool.Pool, error) {
	const conns, timeout = 8, 10 * time.Second
	ctx, cancel := context.WithTimeout(ctx, p.cfg.StartupTimeout)
	defer cancel()
	for {
		var last error
		for _, url := range []string{p.cfg.QueryDatabaseURL, ownerURL} {
			pool, err := p.pool(url, "query", conns, timeout)
			if err != nil {
				return nil, fmt.Errorf("QUERY_DATABASE_URL: %w", err)
			}
			found, err := store.Tables(ctx, pool, table)
			if found {
				return pool, nil
			}
			last = err
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return nil, ctx.Err()
			}
			if last == nil {
				last = errors.New("no such table")
			}
			return nil, fmt.Errorf("query: table %s is neither in the database of QUERY_DATABASE_URL nor in that of its owner: %w", table, last)
		}
	}
}

func (p *platform) startEventhandler(ctx context.Context) error {
	if !p.runs(config.Eventhandler) {
		return nil
	}
	pool, err := p.eventhandlerPool()
	if err != nil {
		return err
	}
	slot, err := p.slot(ctx, pool, config.Eventhandler)
	if err != nil {
		return err
	}
	sub := kafka.NewSubscriber(kafka.SubscriberConfig{
		Brokers: p.cfg.RedpandaBrokers, Group: routers.Eventhandler, Window: p.cfg.Window, Log: p.log,
		InstanceID: fmt.Sprintf("%s-%d", routers.Eventhandler, slot), Security: p.clients.bus,
	})
	letters := store.NewDeadLetters(pool)
	watched := &watchedLetters{DeadLetterStore: letters, now: p.now}
	man := p.postman(letters, routers.Eventhandler)
	flushes := &flushLog{what: "projections", log: p.log, now: p.now}
	router, err := routers.NewEventhandler(routers.EventhandlerConfig{
		Stack: p.stack(), Subscriber: sub, Store: store.NewProjections(pool), Letters: watched, Added: man.Wake,
		Now: p.now, MaxBatch: 8 * p.cfg.BatchSize, OnFlush: flushes.note,
	})
	if err != nil {
		return err
	}
	p.onStop(stageFlow, "event handler", router.Close)
	desk, err := p.eventhandlerDesk(nil)
	if err != nil {
		return err
	}
	topics := p.topics()
	port := p.port(config.Eventhandler)
	p.serve(port, func(mux *http.ServeMux) {
		api.NewDeadLetters(mux, p.log, api.Info{
			Title: "Cornjacket event handler", Description: "Dead letters of the event handler.", Version: Version,
		}, desk.config(routers.Eventhandler))
	})
	p.onStop(stageFlow, "event handler API", port.stopTaking)
	p.watch(port, desk.check, postgresCheck(pool), busCheck(sub.Ping), routerCheck(router, sub.Oldest, p.cfg.HandlerTimeout, p.now),
		flushes.check(func() bool { return !sub.Oldest().IsZero() }), watched.check(),
		consumerLag(routers.Eventhandler, sub, p.lag, p.cfg.HandlerTimeout, p.now))
	p.background.Go(func() {
		select { // a group that consumes topics that don't exist yet only finds them at the next refresh of metadata
		case <-topics:
		case <-p.ctx.Done():
			return
		}
		if err := router.Run(p.ctx); err != nil {
			p.fail(err)
		}
	})
	return nil
}

// startRelayAndIngestion starts both ends of the outbox; in one process the one wakes the other without the database.
func (p *platform) startRelayAndIngestion(context.Context) error {
	if !p.runs(config.Relay) && !p.runs(config.Ingestion) {
		return nil
	}
	pool, err := p.ingestionPool()
	if err != nil {
		return err
	}
	wake := &waker{}
	var in *outbox.Publisher
	var flushes *flushLog
	if p.runs(config.Ingestion) {
		flushes = &flushLog{what: "outbox", log: p.log, now: p.now}
		in = outbox.NewPublisher(pool, outbox.PublisherConfig{
			MaxBatch: p.cfg.BatchSize, MaxQueue: p.cfg.IngestQueue, Wait: p.cfg.IngestTimeout, OnFlush: flushes.note, OnCommit: wake.events, Quiet: wake.leads,
		})
		p.onStop(stageIngestion, "outbox publisher", in.Shutdown)
	}
	if p.runs(config.Relay) {
		if err := p.startRelay(pool, in, wake); err != nil {
			return err
		}
	}
	if in != nil {
		return p.startIngestion(pool, in, wake, flushes)
	}
	return nil
}

// waker carries wake-ups between ingestion and a relay in the same process; without one they go nowhere.
type waker struct {
	relay  *outbox.Subscriber
	letter *routers.Postman
}

func (w *waker) events() {
	if w.relay != nil {
		w.relay.Wake()
	}
}

// leads tells whether the relay in this process is the active one.
func (w *waker) leads() bool { return w.relay != nil && w.relay.State().Leading }

func (w *waker) letters() {
	if w.letter != nil {
		w.letter.Wake()
	}
}

func (p *platform) startRelay(pool *pgxpool.Pool, in *outbox.Publisher, wake *waker) error {
	pub, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: p.cfg.RedpandaBrokers, Security: p.clients.bus, Log: p.log})
	if err != nil {
		return fmt.Errorf("REDPANDA_BROKERS: %w", err)
	}
	p.onStop(stageClients, "bus publisher", pub.Shutdown)
	cfg := outbox.SubscriberConfig{Window: p.cfg.Window, MaxBatch: p.cfg.BatchSize, Log: p.log}
	if in != nil {
		cfg.Ignore = in.ID()
	}
	sub := outbox.NewSubscriber(pool, cfg)
	letters := store.NewDeadLetters(pool)
	watched := &watchedLetters{DeadLetterStore: letters, now: p.now}
	wake.relay, wake.letter = sub, p.postman(letters, routers.Ingestion, routers.Relay)
	router, err := routers.NewRelay(routers.RelayConfig{
		Stack: p.stack(), Subscriber: sub, Publisher: pub, Letters: watched, Added: wake.letters, Now: p.now,
	})
	if err != nil {
		return err
	}
	p.onStop(stageFlow, "relay", router.Close)
	p.watch(p.port(config.Relay),
		relayCheck(sub, p.now), busCheck(pub.Ping), routerCheck(router, sub.Oldest, p.cfg.HandlerTimeout, p.now), watched.check(),
		relayLag(sub, p.lag, p.cfg.HandlerTimeout, p.now))
	p.goRun(router)
	return nil
}

func (p *platform) startIngestion(pool *pgxpool.Pool, in *outbox.Publisher, wake *waker, flushes *flushLog) error {
	source, check, err := p.mqttSource()
	if err != nil {
		return err
	}
	watched := &watchedLetters{DeadLetterStore: store.NewDeadLetters(pool), now: p.now}
	router, err := routers.NewIngestion(routers.IngestionConfig{
		Stack: p.stack(), Subscriber: source, Store: in, Letters: watched, Added: wake.letters,
		Now: p.now,
	})
	if err != nil {
		return err
	}
	desk, err := p.ingestionDesk()
	if err != nil {
		return err
	}
	port := p.port(config.Ingestion)
	p.serve(port, func(mux *http.ServeMux) {
		a := api.MountIngestion(mux, api.IngestionConfig{
			Ingester: in, Now: p.now, NewID: newID, Log: p.log, Version: Version,
		})
		api.MountDeadLetters(a, desk.config(routers.Ingestion, routers.Relay))
	})
	p.watch(port, desk.check, postgresCheck(pool), check, routerCheck(router, source.Oldest, p.cfg.HandlerTimeout, p.now),
		flushes.check(func() bool { return in.Queued() > 0 }), watched.check(),
		health.Check{Name: "queue", Every: time.Second, Probe: func(context.Context) (health.Details, error) {
			queued := in.Queued()
			d := health.Details{"events": queued}
			if queued >= p.cfg.IngestQueue {
				return d, errors.New("full, requests are answered 429")
			}
			return d, nil
		}})
	p.onStop(stageDoors, "ingestion API", port.stopTaking)
	p.onStop(stageDoors, "ingestion router", router.Close)
	p.goRun(router)
	return nil
}

// mqttSource returns where MQTT messages come from, and its health check.
func (p *platform) mqttSource() (source interface {
	message.Subscriber
	Oldest() time.Time
}, check health.Check, err error) {
	if p.broker != nil {
		return p.broker, health.Check{Name: "mqtt", Probe: func(context.Context) (health.Details, error) {
			return health.Details{"broker": "embedded"}, nil
		}}, nil
	}
	sub, err := mqtt.NewSubscriber(mqtt.Config{
		URL: p.cfg.MQTTURL, Username: p.cfg.MQTTUsername, Password: p.cfg.MQTTPassword, ClientID: p.cfg.MQTTClientID, TLS: p.clients.mqtt,
		Window: p.cfg.Window, Batch: p.cfg.BatchSize, CloseTimeout: p.cfg.ShutdownTimeout / 3, Log: p.log,
	})
	if err != nil {
		return nil, health.Check{}, fmt.Errorf("MQTT_URL: %w", err)
	}
	return sub, health.Check{Name: "mqtt", Every: 500 * time.Millisecond, Probe: func(context.Context) (health.Details, error) {
		if sub.Connected() {
			return nil, nil
		}
		if err := sub.LastError(); err != nil {
			return nil, fmt.Errorf("not connected: %w", err)
		}
		return nil, errors.New("not connected yet")
	}}, nil
}
