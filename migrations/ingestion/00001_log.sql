-- +goose Up
-- One row an event, in the order it is to be published. The relay empties it; payload is text that has been checked,
-- so that readers of the bus see what the sender wrote.
CREATE TABLE outbox (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id     uuid        NOT NULL,
    event_type   text        NOT NULL,
    aggregate_id text        NOT NULL,
    event_time   timestamptz NOT NULL,
    ingested_at  timestamptz NOT NULL,
    payload      json        NOT NULL,
    metadata     json        NOT NULL
) WITH (
    -- A queue is all churn: clean it by count, not by share of its (small) size.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 20000,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 200000
);

-- The event log: append-only. position is the order in which events are published and applied.
CREATE TABLE event_store (
    event_id     uuid        PRIMARY KEY,
    event_type   text        NOT NULL COLLATE "C",
    aggregate_id text        NOT NULL COLLATE "C",
    event_time   timestamptz NOT NULL,
    ingested_at  timestamptz NOT NULL,
    payload      jsonb       NOT NULL,
    metadata     jsonb       NOT NULL,
    position     bigint      NOT NULL
);
CREATE UNIQUE INDEX event_store_position ON event_store (position);
CREATE INDEX event_store_aggregate ON event_store (aggregate_id, position);
CREATE INDEX event_store_type ON event_store (event_type, position);
CREATE INDEX event_store_time ON event_store USING brin (event_time);

-- How far the relay has published: everything up to position has been acknowledged by the bus.
CREATE TABLE relay_cursor (
    name       text        PRIMARY KEY,
    position   bigint      NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO relay_cursor (name, position) VALUES ('bus', 0);

CREATE TABLE IF NOT EXISTS dlq (
    dlq_id           uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    consumer         text        NOT NULL,
    event_id         uuid,
    event_payload    bytea       NOT NULL,
    error_message    text        NOT NULL,
    failed_at        timestamptz NOT NULL DEFAULT now(),
    retry_count      integer     NOT NULL DEFAULT 0,
    status           text        NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'replayed', 'discarded')),
    source_topic     text        NOT NULL,
    source_partition integer,
    source_offset    bigint,
    message_key      text,
    correlation_id   text,
    bus_topic        text        NOT NULL,
    published_at     timestamptz
);
-- A message that comes again is one dead letter. A source without partitions has none to compare, and one without
-- offsets can't tell. The bytes are part of it: a topic that was deleted and made anew counts from 0 again.
CREATE UNIQUE INDEX IF NOT EXISTS dlq_source
    ON dlq (consumer, source_topic, coalesce(source_partition, -1), source_offset, sha256(event_payload));
CREATE INDEX IF NOT EXISTS dlq_list ON dlq (consumer, failed_at, dlq_id);
CREATE INDEX IF NOT EXISTS dlq_unpublished ON dlq (consumer, failed_at) WHERE published_at IS NULL;

-- +goose Down
-- Other services of this database may share the table, so only our own rows go.
DELETE FROM dlq WHERE consumer IN ('ingestion', 'relay');
DROP TABLE relay_cursor;
DROP TABLE event_store;
DROP TABLE outbox;
