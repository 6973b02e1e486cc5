-- +goose Up
-- How far each consumer of the bus is, in the database that it writes to. A row is written in the transaction that
-- applies events, so that what it says is what has been applied.
CREATE TABLE IF NOT EXISTS consumer_positions (
    consumer    text        NOT NULL COLLATE "C",
    topic       text        NOT NULL COLLATE "C",
    partition   integer     NOT NULL,
    -- Log position of the newest event of the partition that was handled: what is not newer has been handled already.
    position    bigint      NOT NULL DEFAULT 0,
    -- Where to read on: the offset behind the newest record, in the topic with this ID. -1 while nothing was read.
    next_offset bigint      NOT NULL DEFAULT -1,
    topic_id    uuid,
    -- Whoever takes the partition counts it up, and writes with the number it got only: one that has lost the partition
    -- and does not know it changes nothing.
    epoch       bigint      NOT NULL DEFAULT 0,
    -- Events of the log that were handled, each once; those of them that are dead letters and not replayed, and those that
    -- do not concern the consumer.
    events      bigint      NOT NULL DEFAULT 0,
    dead        bigint      NOT NULL DEFAULT 0,
    skipped     bigint      NOT NULL DEFAULT 0,
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, topic, partition)
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- +goose Down
-- Other services of this database may share the table.
SELECT 1;
