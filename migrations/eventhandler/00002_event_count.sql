-- +goose Up
-- How many events the state is made of. Each counts once, in the transaction that applies it; it is also the version by
-- which a writer notices that another one was there. Rows from before this column count from 0.
ALTER TABLE projections ADD COLUMN event_count bigint NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE projections DROP COLUMN event_count;
