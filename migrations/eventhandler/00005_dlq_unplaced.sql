-- +goose Up
-- A message over MQTT has no offset to know it by when it comes again, after a crash or because its dead letter was
-- stored and the answer was lost. Its event ID, which the sender gave it, and its bytes say the same. Those that came
-- again before this index was there go.
DELETE FROM dlq a USING dlq b
WHERE a.source_offset IS NULL AND b.source_offset IS NULL AND a.consumer = b.consumer AND a.event_id = b.event_id
    AND sha256(a.event_payload) = sha256(b.event_payload) AND (a.failed_at, a.dlq_id) > (b.failed_at, b.dlq_id);
CREATE UNIQUE INDEX IF NOT EXISTS dlq_unplaced
    ON dlq (consumer, event_id, sha256(event_payload)) WHERE source_offset IS NULL AND event_id IS NOT NULL;

-- +goose Down
-- Other services of this database may share the table: the index stays with it.
SELECT 1;
