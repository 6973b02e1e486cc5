-- +goose Up
-- Up to which id of the outbox the relay has taken everything: readers need not walk over what it has deleted, which
-- an old transaction of any session keeps vacuum from removing.
ALTER TABLE relay_cursor ADD COLUMN floor bigint NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE relay_cursor DROP COLUMN floor;
