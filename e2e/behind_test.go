package e2e

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// What users do not see: the tables and the topics. A running platform may keep them out of reach.

// pool opens a database of the platform.
func pool(t testing.TB, url string) *pgxpool.Pool {
	t.Helper()
	db, err := pgxpool.New(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(db.Close)
	if err := db.Ping(t.Context()); err != nil {
		if live {
			t.Skipf("the database of the running platform can't be looked into (INGESTION_DATABASE_URL, EVENTHANDLER_DATABASE_URL): %v", err)
		}
		require.NoError(t, err)
	}
	return db
}

// rows reads a query's rows into structs with fields named after the columns.
func rows[T any](ctx context.Context, db *pgxpool.Pool, query string, args ...any) ([]T, error) {
	r, err := db.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(r, pgx.RowToStructByName[T])
}

// topic returns how many partitions a topic has, and its retention.ms.
func (p *platform) topic(t testing.TB, name string) (partitions int, retention string) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(p.kafka, ",")...))
	require.NoError(t, err)
	defer client.Close()
	admin := kadm.NewClient(client)
	ctx, cancel := context.WithTimeout(t.Context(), answers)
	defer cancel()
	topics, err := admin.ListTopics(ctx, name)
	require.NoError(t, err)
	require.NoError(t, topics.Error(), name)
	configs, err := admin.DescribeTopicConfigs(ctx, name)
	require.NoError(t, err)
	for _, config := range configs[0].Configs {
		if config.Key == "retention.ms" {
			retention = config.MaybeValue()
		}
	}
	return len(topics[name].Partitions), retention
}

// bus reads topics from a point in time on.
type bus struct {
	client *kgo.Client
	seen   []*kgo.Record
}

// listen reads what is published on the topics from the time since, or all of it if that is zero.
func (p *platform) listen(t testing.TB, since time.Time, topics ...string) *bus {
	t.Helper()
	from := kgo.NewOffset().AtStart()
	if !since.IsZero() {
		from = kgo.NewOffset().AfterMilli(since.UnixMilli())
	}
	client, err := kgo.NewClient(
		kgo.SeedBrokers(strings.Split(p.kafka, ",")...),
		kgo.ConsumeTopics(topics...),
		kgo.ConsumeResetOffset(from),
		kgo.MetadataMinAge(100*time.Millisecond),
		kgo.FetchMaxWait(200*time.Millisecond),
	)
	require.NoError(t, err)
	t.Cleanup(client.Close)
	ctx, cancel := context.WithTimeout(t.Context(), answers)
	defer cancel()
	if err := client.Ping(ctx); err != nil {
		if live {
			t.Skipf("the bus of the running platform can't be looked into (REDPANDA_BROKERS): %v", err)
		}
		require.NoError(t, err)
	}
	return &bus{client: client}
}

// until reads on until what was read is enough.
func (b *bus) until(t testing.TB, enough func([]*kgo.Record) bool, what string, args ...any) []*kgo.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	for !enough(b.seen) {
		fetches := b.client.PollFetches(ctx)
		require.NoError(t, ctx.Err(), append([]any{"on the bus: " + what}, args...)...)
		fetches.EachRecord(func(r *kgo.Record) { b.seen = append(b.seen, r) })
	}
	return b.seen
}

// ofKey returns the records of an aggregate, in their order.
func ofKey(records []*kgo.Record, key string) (found []*kgo.Record) {
	for _, r := range records {
		if string(r.Key) == key {
			found = append(found, r)
		}
	}
	return found
}

// header returns a record's header, empty if there is none.
func header(r *kgo.Record, name string) string {
	for _, h := range r.Headers {
		if h.Key == name {
			return string(h.Value)
		}
	}
	return ""
}
