-- Copies of attempts' work. The row is written after its blob is durable, and deleted before it.
CREATE TABLE checkpoints (
    id      blob PRIMARY KEY,        -- UUIDv7, made by the daemon: in the order they were taken
    task    blob NOT NULL,
    attempt blob NOT NULL,
    owner   blob NOT NULL,
    stored  integer NOT NULL,        -- when the server had all of it
    doc     text NOT NULL
);
CREATE INDEX checkpoints_by_task ON checkpoints (task, id);
CREATE INDEX checkpoints_by_attempt ON checkpoints (attempt, id);
CREATE INDEX checkpoints_by_time ON checkpoints (stored);
