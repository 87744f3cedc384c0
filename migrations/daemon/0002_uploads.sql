-- Files on their way to the server: checkpoints and results' packs. Version 2 (PRAGMA user_version).

CREATE TABLE uploads (
    attempt_id    TEXT    NOT NULL,
    task_id       TEXT    NOT NULL,
    number        INTEGER NOT NULL,
    -- The checkpoint that the file is; empty for the pack of the attempt's result.
    checkpoint_id TEXT    NOT NULL,
    path          TEXT    NOT NULL,
    bytes         INTEGER NOT NULL,
    -- Of the whole, 64 hex digits.
    sha256        TEXT    NOT NULL,
    -- JSON of what a checkpoint is; absent for a result.
    about         TEXT,
    created       INTEGER NOT NULL,
    PRIMARY KEY (attempt_id, checkpoint_id)
) STRICT;

-- The server has answered the terminal report.
ALTER TABLE attempts ADD COLUMN answered INTEGER NOT NULL DEFAULT 0;
-- The server has the pack of the result.
ALTER TABLE attempts ADD COLUMN delivered INTEGER NOT NULL DEFAULT 0;
