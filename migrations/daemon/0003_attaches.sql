-- Hellos are numbered, so that a server can tell one that comes late from the newest. Version 3 (PRAGMA user_version).

-- How often a hello was said with this journal.
ALTER TABLE meta ADD COLUMN attaches INTEGER NOT NULL DEFAULT 0;
