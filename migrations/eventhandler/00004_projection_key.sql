-- +goose Up
-- One index in place of two: nothing looks a projection up by projection_id, and each index is one more place in which an
-- update that leaves its page has to be entered, after a look at every version of the row that vacuum could not remove yet.
ALTER TABLE projections
    DROP CONSTRAINT projections_pkey,
    DROP CONSTRAINT projections_projection_type_aggregate_id_key,
    ADD PRIMARY KEY (projection_type, aggregate_id);
-- A row that moves to another page finds room there for its next versions. With half a page, shared with all the others
-- that moved, every second update had to move again while an old transaction kept vacuum away.
ALTER TABLE projections SET (fillfactor = 20);

-- +goose Down
ALTER TABLE projections SET (fillfactor = 50);
ALTER TABLE projections
    DROP CONSTRAINT projections_pkey,
    ADD PRIMARY KEY (projection_id),
    ADD UNIQUE (projection_type, aggregate_id);
