-- The daemon's journal: what it has accepted, what it is doing, what it owes the server. Version 1 (PRAGMA user_version).

-- One row: the journal itself.
CREATE TABLE meta (
    id           INTEGER PRIMARY KEY CHECK (id = 1),
    -- UUIDv4; messages are numbered within it. A journal that is rebuilt has a new one.
    journal_id   TEXT    NOT NULL,
    -- Highest sequence of a command in this journal; 0 for none.
    last_command INTEGER NOT NULL DEFAULT 0,
    -- Sequence of the last message written; the next one has this plus one, without gaps.
    last_message INTEGER NOT NULL DEFAULT 0,
    -- Microseconds since the epoch.
    created      INTEGER NOT NULL
) STRICT;

-- Commands accepted: the same id again is a no-op, the same id with other content an error.
CREATE TABLE commands (
    command_id TEXT    PRIMARY KEY,
    sequence   INTEGER NOT NULL,
    attempt_id TEXT    NOT NULL,
    -- JSON of the order, except for a spawn, whose content is in its attempt's row.
    content    TEXT,
    received   INTEGER NOT NULL
) STRICT;

CREATE INDEX commands_by_sequence ON commands (sequence);

-- Attempts this daemon knows of.
CREATE TABLE attempts (
    attempt_id TEXT    PRIMARY KEY,
    task_id    TEXT    NOT NULL,
    number     INTEGER NOT NULL,
    -- accepted, running, ending, reported, interrupted, over, salvage
    state      TEXT    NOT NULL,
    -- JSON of the order; absent for an attempt that was only ever cancelled here.
    spawn      TEXT,
    -- Directory of the attempt; empty until it is made.
    directory  TEXT    NOT NULL DEFAULT '',
    -- Its worktree; empty until it is prepared.
    worktree   TEXT    NOT NULL DEFAULT '',
    -- JSON of the wish that it ends; absent for none.
    stop       TEXT,
    -- JSON of its terminal report, kept to be sent again; absent until it is written.
    complete   TEXT,
    -- The server has all of its output, or does not want it.
    uploaded   INTEGER NOT NULL DEFAULT 0,
    created    INTEGER NOT NULL,
    updated    INTEGER NOT NULL
) STRICT;

CREATE INDEX attempts_by_task ON attempts (task_id);

-- Messages the server has not answered.
CREATE TABLE outbox (
    sequence   INTEGER PRIMARY KEY,
    attempt_id TEXT    NOT NULL,
    task_id    TEXT    NOT NULL,
    number     INTEGER NOT NULL,
    at         INTEGER NOT NULL,
    -- started, progress, complete, recovery_detected, warning
    kind       TEXT    NOT NULL,
    -- JSON.
    report     TEXT    NOT NULL
) STRICT;

CREATE INDEX outbox_by_attempt ON outbox (attempt_id, kind);
