-- +goose Up
-- Who replayed or discarded a letter: the name of the API token, null where none is asked for.
ALTER TABLE dlq ADD COLUMN decided_by text;
ALTER TABLE dlq_replays ADD COLUMN asked_by text;

-- +goose Down
ALTER TABLE dlq_replays DROP COLUMN asked_by;
ALTER TABLE dlq DROP COLUMN decided_by;
