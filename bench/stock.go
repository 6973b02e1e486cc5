package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	wsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"golang.org/x/sync/errgroup"

	"github.com/cornjacket/platform-services/event"
)

// The stock pipeline is what Watermill's documentation of the Forwarder and of its Pub/Subs leads to, with default
// settings: the SQL publisher into an outbox, the Forwarder to Kafka, a Router that does one upsert a message. It keeps
// the order of events of a device, as the platform does, by Watermill's partitioning marshaler. It does less than the
// platform does: it has no event log, no MQTT broker in front, and its events are stored by this process directly.
const (
	stockTopic   = "stock-events"
	stockGroup   = "stock"
	stockWarmUp  = 200       // events that are sent first, so that consumers have joined when the clock starts
	stockWriters = httpConns // goroutines that publish
	// stockOldest starts a new consumer group at the first event (sarama.OffsetOldest), as in Watermill's example.
	stockOldest = -2
)

const stockSchema = `CREATE TABLE stock_projections (
	aggregate_id   text PRIMARY KEY,
	state          jsonb NOT NULL,
	last_event_id  uuid NOT NULL,
	updated_at     timestamptz NOT NULL DEFAULT now(),
	applied        bigint NOT NULL DEFAULT 1
)`

const stockUpsert = `INSERT INTO stock_projections (aggregate_id, state, last_event_id) VALUES ($1, $2::jsonb, $3)
	ON CONFLICT (aggregate_id) DO UPDATE SET state = excluded.state, last_event_id = excluded.last_event_id,
		updated_at = now(), applied = stock_projections.applied + 1`

var stockMarshaler = kafka.NewWithPartitioningMarshaler(func(_ string, m *message.Message) (string, error) {
	return m.Metadata.Get(event.MetaAggregateID), nil
})

// openStockDB keeps as many connections as it opens: with Go's default of two idle ones most of the time would go into
// connecting, which is no work of Watermill's.
func openStockDB(url string) (*sql.DB, error) {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("read database URL: %w", err)
	}
	db := stdlib.OpenDB(*cfg)
	db.SetMaxOpenConns(stockWriters)
	db.SetMaxIdleConns(stockWriters)
	return db, nil
}

// serveStock is the Forwarder and the Router as a process of their own: database, Kafka address, file to announce.
func serveStock(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return errors.New("stock takes a database, a Kafka address and a file")
	}
	ctx, cancel := withParent(ctx)
	defer cancel()
	db, err := openStockDB(args[0])
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }() // the process ends
	logger := watermill.NewSlogLogger(slog.New(slog.DiscardHandler))
	fwd, err := stockForwarder(db, args[1], logger)
	if err != nil {
		return err
	}
	router, err := stockRouter(db, args[1], logger)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return fwd.Run(ctx) })
	g.Go(func() error { return router.Run(ctx) })
	g.Go(func() error {
		for _, running := range []chan struct{}{fwd.Running(), router.Running()} {
			select {
			case <-running:
			case <-ctx.Done():
				return nil
			}
		}
		return announce(args[2], "ready")
	})
	return g.Wait()
}

func stockForwarder(db *sql.DB, broker string, logger watermill.LoggerAdapter) (*forwarder.Forwarder, error) {
	sub, err := wsql.NewSubscriber(db, wsql.SubscriberConfig{
		SchemaAdapter: wsql.DefaultPostgreSQLSchema{}, OffsetsAdapter: wsql.DefaultPostgreSQLOffsetsAdapter{},
		InitializeSchema: true,
	}, logger)
	if err != nil {
		return nil, fmt.Errorf("create SQL subscriber: %w", err)
	}
	pub, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: []string{broker}, Marshaler: stockMarshaler}, logger)
	if err != nil {
		return nil, fmt.Errorf("create Kafka publisher: %w", err)
	}
	fwd, err := forwarder.NewForwarder(sub, pub, logger, forwarder.Config{})
	if err != nil {
		return nil, fmt.Errorf("create Forwarder: %w", err)
	}
	return fwd, nil
}

func stockRouter(db *sql.DB, broker string, logger watermill.LoggerAdapter) (*message.Router, error) {
	settings := kafka.DefaultSaramaSubscriberConfig()
	settings.Consumer.Offsets.Initial = stockOldest
	sub, err := kafka.NewSubscriber(kafka.SubscriberConfig{
		Brokers: []string{broker}, Unmarshaler: stockMarshaler, ConsumerGroup: stockGroup, OverwriteSaramaConfig: settings,
	}, logger)
	if err != nil {
		return nil, fmt.Errorf("create Kafka subscriber: %w", err)
	}
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	if err != nil {
		return nil, fmt.Errorf("create router: %w", err)
	}
	router.AddMiddleware(middleware.Recoverer)
	router.AddConsumerHandler("projections", stockTopic, sub, func(m *message.Message) error {
		e, err := event.Unmarshal(m.Payload)
		if err != nil {
			return err
		}
		_, err = db.ExecContext(m.Context(), stockUpsert, e.AggregateID, string(e.Payload), e.ID.String())
		return err
	})
	return router, nil
}

func measureStock(ctx context.Context, b *bench) (err error) {
	r, err := b.newRig(ctx, stockTopic)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	db, err := openStockDB(r.dbURL)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if _, err := db.ExecContext(ctx, stockSchema); err != nil {
		return fmt.Errorf("create table of the stock pipeline: %w", err)
	}
	ready := filepath.Join(r.dir, "stock.ready")
	c, err := r.self("stock", r.dbURL, r.kafkaAddr, ready)
	if err != nil {
		return err
	}
	if _, err := c.announced(ctx, ready); err != nil {
		return err
	}
	ctx, cancel := c.alive(ctx)
	defer cancel(nil)
	return because(ctx, r.driveStock(ctx, c, db))
}

func (r *rig) driveStock(ctx context.Context, c *child, db *sql.DB) error {
	pub, err := wsql.NewPublisher(db, wsql.PublisherConfig{
		SchemaAdapter: wsql.DefaultPostgreSQLSchema{}, AutoInitializeSchema: true,
	}, watermill.NopLogger{})
	if err != nil {
		return fmt.Errorf("create SQL publisher: %w", err)
	}
	outbox := forwarder.NewPublisher(pub, forwarder.PublisherConfig{})
	if err := stockRun(ctx, db, outbox, stockWarmUp, stockWarmUp); err != nil {
		return fmt.Errorf("warm up: %w", err)
	}
	if err := r.b.checkpoint(ctx); err != nil {
		return err
	}
	meter, err := r.meter("stock", c)
	if err != nil {
		return err
	}
	n := r.b.opts.events
	begin := time.Now()
	if err := stockRun(ctx, db, outbox, n, n+stockWarmUp); err != nil {
		return err
	}
	took := time.Since(begin)
	used, err := meter.per100k(n)
	if err != nil {
		return err
	}
	for name, seconds := range used {
		r.b.results.add("stock.cpu."+name, seconds)
	}
	r.b.results.add("stock.rate", perSecond(n, took))
	r.b.say("  stock Watermill: %d events in %.2fs, %.0f/s", n, took.Seconds(), perSecond(n, took))
	return nil
}

// stockRun publishes n events and waits until total have been applied since the beginning.
func stockRun(ctx context.Context, db *sql.DB, pub message.Publisher, n, total int) error {
	ids := deviceNames(devices)
	var next atomic.Int64
	g, gctx := errgroup.WithContext(ctx)
	for range stockWriters {
		g.Go(func() error {
			for i := next.Add(1) - 1; i < int64(n) && gctx.Err() == nil; i = next.Add(1) - 1 {
				m, err := stockMessage(ids[i%int64(len(ids))])
				if err != nil {
					return err
				}
				if err := pub.Publish(stockTopic, m); err != nil {
					return fmt.Errorf("publish: %w", err)
				}
			}
			return gctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return stockApplied(ctx, db, total)
}

func stockMessage(device string) (*message.Message, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("make event ID: %w", err)
	}
	e, err := event.Parse(body(device), event.Origin{
		Source: "http", Now: time.Now(), NewID: func() uuid.UUID { return id }, CorrelationID: id.String(),
	})
	if err != nil {
		return nil, fmt.Errorf("make event: %w", err)
	}
	data, err := e.Marshal()
	if err != nil {
		return nil, err
	}
	m := message.NewMessage(id.String(), data)
	m.Metadata.Set(event.MetaEventType, e.Type)
	m.Metadata.Set(event.MetaAggregateID, e.AggregateID)
	return m, nil
}

// stockApplied waits until the upserts are done. There may be more of them than events: delivery is at least once.
func stockApplied(ctx context.Context, db *sql.DB, total int) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		var applied int
		if err := db.QueryRowContext(ctx, "SELECT coalesce(sum(applied), 0) FROM stock_projections").Scan(&applied); err != nil {
			return fmt.Errorf("count upserts: %w", err)
		}
		if applied >= total {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for %d upserts: %w; %d are done", total, ctx.Err(), applied)
		}
	}
}
