-- +goose Up
-- Current state per aggregate; position is that of the newest event that was applied, event_count how many were. Each
-- projection type has a partition, so that one that was built anew takes the place of the old one at once; what has no
-- partition of its own is in projections_other. The rows are rewritten all the time and no indexed column changes; how
-- full a partition's pages may be is said where it is created.
CREATE TABLE projections (
    projection_id        uuid        NOT NULL DEFAULT gen_random_uuid(),
    projection_type      text        NOT NULL COLLATE "C",
    aggregate_id         text        NOT NULL COLLATE "C",
    state                jsonb       NOT NULL,
    last_event_id        uuid        NOT NULL,
    last_event_timestamp timestamptz NOT NULL,
    updated_at           timestamptz NOT NULL DEFAULT now(),
    position             bigint      NOT NULL,
    event_count          bigint      NOT NULL DEFAULT 0,
    PRIMARY KEY (projection_type, aggregate_id)
) PARTITION BY LIST (projection_type);
CREATE TABLE projections_other PARTITION OF projections DEFAULT;

-- The builds of each projection type. The table of a version is projections_<type>_v<version>.
CREATE TABLE projection_versions (
    projection_type text        NOT NULL COLLATE "C",
    version         integer     NOT NULL,
    state           text        NOT NULL CHECK (state IN ('active', 'building', 'previous')),
    created_at      timestamptz NOT NULL DEFAULT now(),
    switched_at     timestamptz,
    PRIMARY KEY (projection_type, version)
);
CREATE UNIQUE INDEX projection_versions_active ON projection_versions (projection_type) WHERE state = 'active';

-- The events that a version was built without. How far it was built is in consumer_positions, as <type>@<version>.
CREATE TABLE projection_refusals (
    projection_type text    NOT NULL COLLATE "C",
    version         integer NOT NULL,
    event_id        uuid    NOT NULL,
    position        bigint  NOT NULL,
    reason          text    NOT NULL,
    PRIMARY KEY (projection_type, version, event_id)
);

-- +goose Down
-- +goose StatementBegin
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT format('projections_%s_v%s', projection_type, version) FROM projection_versions WHERE state <> 'active' LOOP
        EXECUTE format('DROP TABLE IF EXISTS %I', name);
    END LOOP;
    DELETE FROM consumer_positions p USING projection_versions v WHERE p.consumer = v.projection_type || '@' || v.version;
    DELETE FROM consumer_positions WHERE consumer = 'eventhandler';
    DELETE FROM dlq WHERE consumer = 'eventhandler';
    DELETE FROM dlq_replay_letters WHERE replay_id IN (SELECT replay_id FROM dlq_replays WHERE service = 'eventhandler');
    DELETE FROM dlq_replays WHERE service = 'eventhandler';
END $$;
-- +goose StatementEnd
DROP TABLE projection_refusals;
DROP TABLE projection_versions;
DROP TABLE projections;
