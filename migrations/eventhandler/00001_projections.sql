-- +goose Up
-- Current state per aggregate. position is that of the newest event applied: what is not newer has been applied already.
CREATE TABLE projections (
    projection_id        uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    projection_type      text        NOT NULL COLLATE "C",
    aggregate_id         text        NOT NULL COLLATE "C",
    state                jsonb       NOT NULL,
    last_event_id        uuid        NOT NULL,
    last_event_timestamp timestamptz NOT NULL,
    updated_at           timestamptz NOT NULL DEFAULT now(),
    position             bigint      NOT NULL,
    UNIQUE (projection_type, aggregate_id)
) WITH (
    -- Rows are rewritten all the time and no indexed column changes: room in the page keeps the updates heap-only.
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.05
);

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
DELETE FROM dlq WHERE consumer IN ('eventhandler');
DROP TABLE projections;
