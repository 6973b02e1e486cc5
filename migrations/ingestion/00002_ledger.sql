-- +goose Up
-- When the event got its position. Events from before this column don't know it.
ALTER TABLE event_store ADD COLUMN sequenced_at timestamptz;
ALTER TABLE event_store ALTER COLUMN sequenced_at SET DEFAULT now();

-- The ledger: how many events of each topic the log holds up to the position "counted", so that nobody has to count
-- millions. Whoever moves the cursor counts what it passes in the same statement. counted is not always the cursor: one
-- that is set back, to publish again, passes the same events twice, and they count once.
ALTER TABLE relay_cursor
    ADD COLUMN counted       bigint NOT NULL DEFAULT 0,
    ADD COLUMN sensor_events bigint NOT NULL DEFAULT 0,
    ADD COLUMN user_actions  bigint NOT NULL DEFAULT 0,
    ADD COLUMN system_events bigint NOT NULL DEFAULT 0,
    -- Rows of the outbox that were not stored again because their event_id was there.
    ADD COLUMN duplicates    bigint NOT NULL DEFAULT 0;
UPDATE relay_cursor SET counted = position, sensor_events = n.sensor, user_actions = n.users, system_events = n.total - n.sensor - n.users
FROM (
    SELECT count(*) AS total, count(*) FILTER (WHERE event_type LIKE 'sensor.%') AS sensor,
        count(*) FILTER (WHERE event_type LIKE 'user.%') AS users
    FROM event_store WHERE position <= (SELECT position FROM relay_cursor WHERE name = 'bus')
) AS n WHERE name = 'bus';
-- Until now a duplicate left a gap in the positions, and nothing else.
UPDATE relay_cursor SET duplicates = n.gaps
FROM (SELECT coalesce(max(position), 0) - count(*) AS gaps FROM event_store) AS n WHERE name = 'bus';


-- +goose Down
ALTER TABLE relay_cursor
    DROP COLUMN counted, DROP COLUMN sensor_events, DROP COLUMN user_actions, DROP COLUMN system_events, DROP COLUMN duplicates;
ALTER TABLE event_store DROP COLUMN sequenced_at;
