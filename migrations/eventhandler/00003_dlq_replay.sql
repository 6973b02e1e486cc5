-- +goose Up
-- What a replay needs and leaves. Each owner of dlq adds the same: services can share the table, in any order.
-- event_type and position are the event's, where they are known; properties are what an MQTT sender gave beside the body.
-- An edited payload stands beside the bytes as they came. reason says why a letter is not pending any more.
ALTER TABLE dlq
    ADD COLUMN IF NOT EXISTS event_type     text,
    ADD COLUMN IF NOT EXISTS position       bigint,
    ADD COLUMN IF NOT EXISTS properties     jsonb,
    ADD COLUMN IF NOT EXISTS replay_payload bytea,
    ADD COLUMN IF NOT EXISTS replay_topic   text,
    ADD COLUMN IF NOT EXISTS retried_at     timestamptz,
    ADD COLUMN IF NOT EXISTS replayed_at    timestamptz,
    ADD COLUMN IF NOT EXISTS discarded_at   timestamptz,
    ADD COLUMN IF NOT EXISTS reason         text;
CREATE INDEX IF NOT EXISTS dlq_pending ON dlq (consumer, failed_at, dlq_id) WHERE status = 'pending';
CREATE INDEX IF NOT EXISTS dlq_event ON dlq (event_id) WHERE event_id IS NOT NULL;

-- A bulk replay. Who runs it renews the lease; one that has run out is free for another instance to go on with.
CREATE TABLE IF NOT EXISTS dlq_replays (
    replay_id   uuid             PRIMARY KEY,
    service     text             NOT NULL,
    filter      jsonb            NOT NULL,
    rate        double precision NOT NULL,
    total       bigint           NOT NULL,
    replayed    bigint           NOT NULL DEFAULT 0,
    failed      bigint           NOT NULL DEFAULT 0,
    skipped     bigint           NOT NULL DEFAULT 0,
    last_error  text,
    created_at  timestamptz      NOT NULL DEFAULT now(),
    runner      uuid,
    lease_until timestamptz,
    finished_at timestamptz,
    cancelled   boolean          NOT NULL DEFAULT false
);
CREATE INDEX IF NOT EXISTS dlq_replays_list ON dlq_replays (service, created_at, replay_id);
CREATE INDEX IF NOT EXISTS dlq_replays_open ON dlq_replays (service, created_at) WHERE finished_at IS NULL;

-- What is left of the sets that were frozen when their replays began; a letter is in one at a time.
CREATE TABLE IF NOT EXISTS dlq_replay_items (
    dlq_id    uuid   PRIMARY KEY,
    replay_id uuid   NOT NULL REFERENCES dlq_replays ON DELETE CASCADE,
    seq       bigint NOT NULL
);
CREATE INDEX IF NOT EXISTS dlq_replay_items_next ON dlq_replay_items (replay_id, seq);

-- +goose Down
-- The tables and columns may be another service's too, so only our own rows go.
DELETE FROM dlq_replays WHERE service = 'eventhandler';
