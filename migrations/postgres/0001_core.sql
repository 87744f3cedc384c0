-- What is filtered on has a column of its own; the rest of a thing is in `doc`, the JSON form of the domain type.
-- The schema of migrations/sqlite is the same but for native types; a test compares them.

CREATE TABLE meta (
    key   text PRIMARY KEY,  -- server_secret, last_alive, ...
    value text NOT NULL
);

CREATE TABLE owners (
    id      uuid PRIMARY KEY,
    name    text NOT NULL UNIQUE,   -- 1 to 63 of a-z, 0-9 and '-'
    created timestamptz NOT NULL
);

CREATE TABLE keys (
    id      uuid PRIMARY KEY,
    hash    text NOT NULL UNIQUE,   -- SHA-256 of the key text, in hex; the text itself is nowhere
    kind    text NOT NULL,          -- admin, owner, daemon
    owner   uuid,                   -- null for admin keys
    label   text NOT NULL,
    created timestamptz NOT NULL,
    revoked timestamptz             -- null while it is good
);

CREATE TABLE contracts (
    id         uuid PRIMARY KEY,
    owner      uuid NOT NULL,
    status     text NOT NULL,        -- active, done, failed, cancelled
    anonymous  boolean NOT NULL,     -- made for a lone task
    cancelling boolean NOT NULL,     -- cancelled, and some tasks are still to follow
    ended      timestamptz,          -- when its last task became final
    doc        jsonb NOT NULL
);
CREATE INDEX contracts_by_owner ON contracts (owner, id);
CREATE INDEX contracts_cancelling ON contracts (id) WHERE cancelling;
CREATE INDEX contracts_ended ON contracts (ended) WHERE anonymous AND ended IS NOT NULL;

CREATE TABLE classes (
    id           uuid PRIMARY KEY,   -- hash of owner and requirements
    owner        uuid NOT NULL,
    requirements jsonb NOT NULL      -- agent, labels, path
);

CREATE TABLE tasks (
    id         uuid PRIMARY KEY,
    contract   uuid NOT NULL,
    owner      uuid NOT NULL,
    name       text NOT NULL,
    class      uuid NOT NULL,
    status     text NOT NULL,        -- pending, starting, running, ...
    final      boolean NOT NULL,     -- done, merged, failed, cancelled
    ready      boolean NOT NULL,     -- the dispatcher may take it, as far as the task itself goes
    priority   integer NOT NULL,     -- higher first
    wait_until timestamptz,          -- a time it waits for
    hidden     boolean NOT NULL,
    spec       jsonb NOT NULL,       -- what was asked
    doc        jsonb NOT NULL        -- the rest
);
CREATE UNIQUE INDEX tasks_by_name ON tasks (contract, name);
CREATE INDEX tasks_by_contract ON tasks (contract, id);
CREATE INDEX tasks_by_owner ON tasks (owner, id);
CREATE INDEX tasks_ready ON tasks (contract, class, priority DESC, id) WHERE ready;
CREATE INDEX tasks_waiting ON tasks (wait_until) WHERE wait_until IS NOT NULL;
CREATE INDEX tasks_unfinished ON tasks (contract, id) WHERE NOT final;

CREATE TABLE edges (
    dependent  uuid NOT NULL,        -- the task that waits
    dependency uuid NOT NULL,        -- the task it waits for
    contract   uuid NOT NULL,        -- of both
    satisfied  boolean NOT NULL,     -- the dependency is complete, and counted
    PRIMARY KEY (dependent, dependency)
);
CREATE INDEX edges_by_dependency ON edges (dependency);

-- One row for each contract and requirement class that has had tasks: the dispatcher walks these, never the backlog.
CREATE TABLE lanes (
    contract uuid NOT NULL,
    class    uuid NOT NULL,
    owner    uuid NOT NULL,
    is_open  boolean NOT NULL,       -- the contract may start a task now
    head     integer,                -- highest priority among its ready tasks; null for none
    served   timestamptz NOT NULL,   -- when a task was last taken from it
    PRIMARY KEY (contract, class)
);
CREATE INDEX lanes_walk ON lanes (class, head DESC, served) WHERE is_open AND head IS NOT NULL;

CREATE TABLE attempts (
    id       uuid PRIMARY KEY,       -- random; with task and number, the fence
    task     uuid NOT NULL,
    number   integer NOT NULL,       -- from 1 within the task
    contract uuid NOT NULL,
    daemon   uuid NOT NULL,
    live     boolean NOT NULL,       -- not ENDED: it holds a slot
    due      timestamptz,            -- when something must have happened
    doc      jsonb NOT NULL
);
CREATE UNIQUE INDEX attempts_by_task ON attempts (task, number);
CREATE INDEX attempts_live ON attempts (daemon) WHERE live;
CREATE INDEX attempts_due ON attempts (due) WHERE due IS NOT NULL;

CREATE TABLE daemons (
    id       uuid PRIMARY KEY,
    owner    uuid NOT NULL,
    name     text NOT NULL,
    epoch    bigint NOT NULL,        -- number of its last session
    attached boolean NOT NULL,       -- not lost since
    seen     timestamptz NOT NULL,   -- coarse
    doc      jsonb NOT NULL
);
CREATE UNIQUE INDEX daemons_by_name ON daemons (owner, name);

-- Commands that no daemon has answered yet.
CREATE TABLE commands (
    daemon   uuid NOT NULL,
    sequence bigint NOT NULL,
    doc      jsonb NOT NULL,
    PRIMARY KEY (daemon, sequence)
);

-- The event log, in commit order: all ledger transactions are serial.
CREATE TABLE events (
    sequence bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at       timestamptz NOT NULL,
    contract uuid NOT NULL,
    task     uuid,
    doc      jsonb NOT NULL
);
CREATE INDEX events_by_contract ON events (contract, sequence);
CREATE INDEX events_by_task ON events (task, sequence) WHERE task IS NOT NULL;
CREATE INDEX events_by_time ON events (at);

-- Client-made request ids, kept 24 h.
CREATE TABLE requests (
    owner   uuid NOT NULL,
    id      text NOT NULL,
    created timestamptz NOT NULL,
    doc     jsonb NOT NULL,          -- hash of the body, ids of what was made
    PRIMARY KEY (owner, id)
);
CREATE INDEX requests_by_time ON requests (created);

-- Ledger batches, to learn the outcome of a COMMIT whose answer was lost.
CREATE TABLE batches (
    id uuid PRIMARY KEY,
    at timestamptz NOT NULL
);
CREATE INDEX batches_by_time ON batches (at);

-- Blobs in the object store: written after the blob is durable, deleted before it.
CREATE TABLE blobs (
    name    text PRIMARY KEY,
    owner   uuid NOT NULL,
    attempt uuid NOT NULL,
    kind    text NOT NULL,           -- output
    start   bigint NOT NULL,         -- offset of its first byte
    length  bigint NOT NULL,
    gap     boolean NOT NULL,        -- bytes before it are missing
    final   boolean NOT NULL,        -- nothing follows
    created timestamptz NOT NULL
);
CREATE INDEX blobs_by_attempt ON blobs (attempt, kind, start);
CREATE INDEX blobs_by_time ON blobs (created);
