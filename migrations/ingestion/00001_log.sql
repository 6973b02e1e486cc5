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

-- The event log: append-only. position is the order in which events are published and applied; sequenced_at is when the
-- event got it.
CREATE TABLE event_store (
    event_id     uuid        PRIMARY KEY,
    event_type   text        NOT NULL COLLATE "C",
    aggregate_id text        NOT NULL COLLATE "C",
    event_time   timestamptz NOT NULL,
    ingested_at  timestamptz NOT NULL,
    payload      jsonb       NOT NULL,
    metadata     jsonb       NOT NULL,
    position     bigint      NOT NULL,
    sequenced_at timestamptz DEFAULT now()
);
CREATE UNIQUE INDEX event_store_position ON event_store (position);
CREATE INDEX event_store_aggregate ON event_store (aggregate_id, position);
CREATE INDEX event_store_type ON event_store (event_type, position);
CREATE INDEX event_store_time ON event_store USING brin (event_time);

-- How far the relay has published: everything up to position has been acknowledged by the bus.
CREATE TABLE relay_cursor (
    name       text        PRIMARY KEY,
    position   bigint      NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- Up to where relay_counts has counted. It is not always the cursor: one that is set back, to publish again, passes
    -- the same events twice, and they count once.
    counted    bigint      NOT NULL DEFAULT 0,
    -- Rows of the outbox that were not stored again because their event_id was there.
    duplicates bigint      NOT NULL DEFAULT 0,
    -- Up to which id of the outbox the relay has taken everything: readers need not walk over what it has deleted, which
    -- an old transaction of any session keeps vacuum from removing.
    floor      bigint      NOT NULL DEFAULT 0
);
INSERT INTO relay_cursor (name, position) VALUES ('bus', 0);

-- How many events of each topic the log holds up to the position "counted", so that nobody has to count millions.
-- Whoever moves the cursor counts what it passes in the same transaction.
CREATE TABLE relay_counts (
    topic  text   PRIMARY KEY,
    events bigint NOT NULL
) WITH (fillfactor = 10); -- few rows that are rewritten all the time

-- +goose Down
-- Other services of this database may share the tables of dead letters, so only our own rows go.
DELETE FROM dlq WHERE consumer IN ('ingestion', 'relay');
DELETE FROM dlq_replay_letters WHERE replay_id IN (SELECT replay_id FROM dlq_replays WHERE service = 'ingestion');
DELETE FROM dlq_replays WHERE service = 'ingestion';
DROP TABLE relay_counts, relay_cursor, event_store, outbox;
