-- +goose Up
-- The messages that consumers could not handle, with the bytes as they came. Each owner's database has the same table.
CREATE TABLE dlq (
    dlq_id           uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    consumer         text        NOT NULL,
    event_id         uuid,
    event_payload    bytea       NOT NULL,
    error_message    text        NOT NULL,
    failed_at        timestamptz NOT NULL DEFAULT now(),
    retry_count      integer     NOT NULL DEFAULT 0,
    status           text        NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'replayed', 'discarded')),
    -- Where the message was read: a topic of the bus, an MQTT topic, the outbox.
    source_topic     text        NOT NULL,
    source_partition integer,
    source_offset    bigint,
    message_key      text,
    correlation_id   text,
    -- The event's, where they are known.
    event_type       text,
    position         bigint,
    -- What an MQTT sender gave beside the body.
    properties       jsonb,
    -- Where and when the letter is published; publish_at is the next attempt as long as it is not.
    bus_topic        text        NOT NULL,
    publish_at       timestamptz NOT NULL DEFAULT now(),
    published_at     timestamptz,
    -- What a replay used in place of what came, and what became of the letter. reason says why it is not pending any more.
    replay_payload   bytea,
    replay_topic     text,
    retried_at       timestamptz,
    replayed_at      timestamptz,
    discarded_at     timestamptz,
    reason           text
);
-- A message that comes again is one dead letter. A source without partitions has none to compare. The bytes are part of
-- it: a topic that was deleted and made anew counts from 0 again.
CREATE UNIQUE INDEX dlq_source
    ON dlq (consumer, source_topic, coalesce(source_partition, -1), source_offset, sha256(event_payload));
-- A message over MQTT has no offset to know it by. Its event ID, which the sender gave it, and its bytes say the same.
CREATE UNIQUE INDEX dlq_unplaced
    ON dlq (consumer, event_id, sha256(event_payload)) WHERE source_offset IS NULL AND event_id IS NOT NULL;
CREATE INDEX dlq_list ON dlq (consumer, failed_at, dlq_id);
CREATE INDEX dlq_pending ON dlq (consumer, failed_at, dlq_id) WHERE status = 'pending';
CREATE INDEX dlq_event ON dlq (event_id) WHERE event_id IS NOT NULL;
CREATE INDEX dlq_unpublished ON dlq (consumer, publish_at, failed_at, dlq_id) WHERE published_at IS NULL;

-- A bulk replay. Whichever instance locks the row first does the next letter, from next_at on.
CREATE TABLE dlq_replays (
    replay_id   uuid             PRIMARY KEY,
    service     text             NOT NULL,
    filter      jsonb            NOT NULL,
    rate        double precision NOT NULL, -- letters a second, at most
    total       bigint           NOT NULL,
    replayed    bigint           NOT NULL DEFAULT 0,
    failed      bigint           NOT NULL DEFAULT 0,
    skipped     bigint           NOT NULL DEFAULT 0,
    last_error  text,
    created_at  timestamptz      NOT NULL DEFAULT now(),
    next_at     timestamptz      NOT NULL DEFAULT now(),
    finished_at timestamptz,
    cancelled   boolean          NOT NULL DEFAULT false
) WITH (fillfactor = 50); -- rows are rewritten at each turn, and no indexed column changes
CREATE INDEX dlq_replays_list ON dlq_replays (service, created_at, replay_id);
CREATE INDEX dlq_replays_open ON dlq_replays (service) WHERE finished_at IS NULL;

-- What is left of the sets that were frozen when their replays began; a letter is in one at a time. It is no column of
-- dlq, and has no foreign key: with a million letters the one takes four times as long and holds them meanwhile, the other
-- three times as long.
CREATE TABLE dlq_replay_letters (
    dlq_id    uuid   PRIMARY KEY,
    replay_id uuid   NOT NULL,
    turn      bigint NOT NULL
);
CREATE INDEX dlq_replay_letters_turn ON dlq_replay_letters (replay_id, turn);

-- +goose Down
DROP TABLE dlq_replay_letters, dlq_replays, dlq;
