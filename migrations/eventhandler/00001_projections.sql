-- +goose Up
-- Current state per aggregate. position is that of the newest event applied: what is not newer has been applied already.
CREATE TABLE projections (
    projection_id        uuid        NOT NULL DEFAULT gen_random_uuid(),
    projection_type      text        NOT NULL COLLATE "C",
    aggregate_id         text        NOT NULL COLLATE "C",
    state                jsonb       NOT NULL,
    last_event_id        uuid        NOT NULL,
    last_event_timestamp timestamptz NOT NULL,
    updated_at           timestamptz NOT NULL DEFAULT now(),
    position             bigint      NOT NULL,
    -- How many events the state is made of. Each counts once, in the transaction that applies it; it is also the version
    -- by which a writer notices that another one was there.
    event_count          bigint      NOT NULL DEFAULT 0,
    -- One index: each more is one more place in which an update that leaves its page has to be entered.
    PRIMARY KEY (projection_type, aggregate_id)
) WITH (
    -- Rows are rewritten all the time and no indexed column changes: room in the page keeps the updates heap-only, and a
    -- row that moves to another page finds room there for its next versions.
    fillfactor = 20,
    autovacuum_vacuum_scale_factor = 0.05
);

-- Whether event_count counts everything that a consumer has ever applied. The ledger can't say what is missing at one
-- whose counts began later.
CREATE TABLE consumer_counts (
    consumer text    PRIMARY KEY,
    complete boolean NOT NULL
);
INSERT INTO consumer_counts (consumer, complete) VALUES ('eventhandler', true);

-- +goose Down
-- Other services of this database may share the tables of dead letters, so only our own rows go.
DELETE FROM dlq WHERE consumer = 'eventhandler';
DELETE FROM dlq_replay_letters WHERE replay_id IN (SELECT replay_id FROM dlq_replays WHERE service = 'eventhandler');
DELETE FROM dlq_replays WHERE service = 'eventhandler';
DROP TABLE consumer_counts, projections;
