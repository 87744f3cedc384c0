-- Copies of attempts' work. The row is written after its blob is durable, and deleted before it.
CREATE TABLE checkpoints (
    id      uuid PRIMARY KEY,        -- UUIDv7, made by the daemon: in the order they were taken
    task    uuid NOT NULL,
    attempt uuid NOT NULL,
    owner   uuid NOT NULL,
    stored  timestamptz NOT NULL,    -- when the server had all of it
    doc     jsonb NOT NULL
);
CREATE INDEX checkpoints_by_task ON checkpoints (task, id);
CREATE INDEX checkpoints_by_attempt ON checkpoints (attempt, id);
CREATE INDEX checkpoints_by_time ON checkpoints (stored);
