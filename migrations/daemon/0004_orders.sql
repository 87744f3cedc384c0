-- Orders are written once and are large; attempts change several times. Apart from each other, a change of an attempt writes a
-- tenth of the pages. Version 4 (PRAGMA user_version).

-- What the server ordered of an attempt; absent for one that was only ever cancelled here.
CREATE TABLE orders (
    attempt_id TEXT PRIMARY KEY,
    -- JSON.
    spawn      TEXT NOT NULL
) STRICT;

INSERT INTO orders (attempt_id, spawn) SELECT attempt_id, spawn FROM attempts WHERE spawn IS NOT NULL;
ALTER TABLE attempts DROP COLUMN spawn;
