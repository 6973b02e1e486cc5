-- +goose Up
-- Whether event_count counts everything that a consumer has ever applied. The ledger can't say what is missing at one
-- whose counts began later.
CREATE TABLE consumer_counts (
    consumer text    PRIMARY KEY,
    complete boolean NOT NULL
);

-- Rows from before event_count counted from 0. Where the event log is in this database the count is made good.
-- +goose StatementBegin
DO $$
DECLARE
    whole boolean := NOT EXISTS (SELECT FROM projections);
BEGIN
    IF NOT whole AND to_regclass('event_store') IS NOT NULL THEN
        LOCK TABLE projections IN SHARE ROW EXCLUSIVE MODE; -- nothing is applied meanwhile
        UPDATE projections p SET event_count = n.events
        FROM (
            SELECT p.projection_id, count(*) AS events
            FROM projections p JOIN event_store e ON e.aggregate_id = p.aggregate_id AND e.position <= p.position
                AND e.event_type LIKE CASE p.projection_type WHEN 'sensor_state' THEN 'sensor.%' WHEN 'user_session' THEN 'user.%' END
            WHERE NOT EXISTS (SELECT FROM dlq d WHERE d.consumer = 'eventhandler' AND d.event_id = e.event_id)
                OR EXISTS (SELECT FROM dlq d WHERE d.consumer = 'eventhandler' AND d.event_id = e.event_id AND d.status = 'replayed')
            GROUP BY p.projection_id
        ) AS n WHERE p.projection_id = n.projection_id AND p.event_count <> n.events;
        -- A log that lacks what has been applied is not the one that it came from.
        whole := NOT EXISTS (SELECT FROM projections p
            WHERE NOT EXISTS (SELECT FROM event_store e WHERE e.position = p.position AND e.aggregate_id = p.aggregate_id));
    END IF;
    INSERT INTO consumer_counts (consumer, complete) VALUES ('eventhandler', whole);
END $$;
-- +goose StatementEnd

-- +goose Down
DROP TABLE consumer_counts;
