-- +goose Up
-- Over how many partitions the keys of a topic are spread. It stays as it was when the relay first saw the topic: with
-- another number keys would move to other partitions, and their events overtake those that wait in the old ones.
CREATE TABLE topic_partitions (
    topic      text PRIMARY KEY,
    partitions integer NOT NULL CHECK (partitions > 0)
);

-- +goose Down
DROP TABLE topic_partitions;
