-- +goose Up
-- term counts leaderships of the relay: who has lost the lead, and does not know it yet, can't move the cursor any more.
-- republish is a position from which on somebody wants everything to be published again; whoever leads next does it.
ALTER TABLE relay_cursor ADD COLUMN term bigint NOT NULL DEFAULT 0, ADD COLUMN republish bigint;

-- +goose Down
ALTER TABLE relay_cursor DROP COLUMN term, DROP COLUMN republish;
