-- Less is looked up and written for an attempt. Version 6 (PRAGMA user_version).
--
-- Attempts say their place in the order in which they came, which is what they were kept by already, and orders go by it: one tree
-- that grows at its end rather than two that are looked through. Whether a report names a pack is noted when it is written, so
-- that nobody reads the report to know. Commands are kept by their ids alone.

CREATE TABLE attempts_new (
    -- Its place in the order in which they came; a number is not given again while a later one is there.
    place      INTEGER PRIMARY KEY,
    attempt_id TEXT    NOT NULL UNIQUE,
    task_id    TEXT    NOT NULL,
    number     INTEGER NOT NULL,
    -- accepted, running, ending, reported, interrupted, over, salvage
    state      TEXT    NOT NULL,
    -- Directory of the attempt; empty until it is made.
    directory  TEXT    NOT NULL,
    -- Its worktree; empty until it is prepared.
    worktree   TEXT    NOT NULL,
    -- JSON of the wish that it ends; absent for none.
    stop       TEXT,
    -- JSON of its terminal report, kept to be sent again; absent until it is written.
    complete   TEXT,
    -- The server has all of its output, or does not want it.
    uploaded   INTEGER NOT NULL,
    created    INTEGER NOT NULL,
    updated    INTEGER NOT NULL,
    -- The server has answered the terminal report.
    answered   INTEGER NOT NULL DEFAULT 0,
    -- The terminal report names a pack.
    packed     INTEGER NOT NULL DEFAULT 0,
    -- The server has the pack of the result.
    delivered  INTEGER NOT NULL DEFAULT 0
) STRICT;

-- A report that cannot be read names nothing.
INSERT INTO attempts_new (place, attempt_id, task_id, number, state, directory, worktree, stop, complete, uploaded, created,
                          updated, answered, packed, delivered)
SELECT rowid, attempt_id, task_id, number, state, directory, worktree, stop, complete, uploaded, created, updated, answered,
       (CASE WHEN json_valid(complete) THEN complete ->> '$.outcome.Ok.pack' END) IS NOT NULL, delivered
FROM attempts;

CREATE TABLE orders_new (
    -- Place of the attempt.
    attempt INTEGER PRIMARY KEY,
    -- JSON.
    spawn   TEXT NOT NULL
) STRICT;
INSERT INTO orders_new (attempt, spawn)
SELECT attempts.rowid, orders.spawn FROM orders JOIN attempts ON attempts.attempt_id = orders.attempt_id;

CREATE TABLE commands_new (
    command_id TEXT    PRIMARY KEY,
    sequence   INTEGER NOT NULL,
    attempt_id TEXT    NOT NULL,
    -- JSON of the order, except for a spawn, whose content is that of its attempt.
    content    TEXT,
    received   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO commands_new (command_id, sequence, attempt_id, content, received)
SELECT command_id, sequence, attempt_id, content, received FROM commands;

DROP TABLE orders;
DROP TABLE attempts;
DROP TABLE commands;
ALTER TABLE attempts_new RENAME TO attempts;
ALTER TABLE orders_new RENAME TO orders;
ALTER TABLE commands_new RENAME TO commands;
CREATE INDEX attempts_by_task ON attempts (task_id);
