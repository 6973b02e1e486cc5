-- +goose Up
-- Events of a time, newest first, without a walk over the log.
CREATE INDEX event_store_by_time ON event_store (event_time, position);
DROP INDEX event_store_time;

-- +goose Down
CREATE INDEX event_store_time ON event_store USING brin (event_time);
DROP INDEX event_store_by_time;
